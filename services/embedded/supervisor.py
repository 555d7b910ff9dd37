"""All parts: started together, kept running, and stopped in order."""

import asyncio
from collections.abc import Callable, Sequence

from services.embedded.errors import PartFailed
from services.embedded.keeper import Keeper
from services.embedded.part import BackOff, Event, Part


class Supervisor:
    """Keeps all parts running. `waves` are stopped one after the other, each wave together."""

    def __init__(
        self,
        waves: Sequence[Sequence[Part]],
        report: Callable[[Event], None],
        back_off: BackOff | None = None,
    ) -> None:
        self._waves = [
            [Keeper(part, report, back_off or BackOff()) for part in wave] for wave in waves
        ]
        self._keepers = [keeper for wave in self._waves for keeper in wave]

    async def run(
        self, stop: asyncio.Event, at_once: asyncio.Event, when_up: Callable[[], None]
    ) -> None:
        """Run all parts until `stop` is set; `at_once` then ends every grace period.

        Calls `when_up` once all parts are ready. If a part ends before that, stops the others and
        raises PartFailed.
        """
        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(keeper.run(), name=keeper.part.name) for keeper in self._keepers
            ]
            try:
                if await self._up(stop):
                    when_up()
                    await stop.wait()
            finally:
                for wave in self._waves:
                    await asyncio.gather(*(keeper.stop(at_once) for keeper in wave))
                for task in running:
                    task.cancel()  # still running only if its process cannot be killed
        if failures := [keeper.failure for keeper in self._keepers if keeper.failure]:
            raise PartFailed("\n".join(failures))

    async def restart(self, part: str) -> None:
        """End a part gracefully, so that it starts again; return when it has ended."""
        for keeper in self._keepers:
            if keeper.part.name == part:
                await keeper.restart()

    async def _up(self, stop: asyncio.Event) -> bool:
        """Wait until all parts are ready, one has failed, or `stop`; return whether all are."""
        stopped = asyncio.ensure_future(stop.wait())
        pending = {asyncio.ensure_future(keeper.settled.wait()) for keeper in self._keepers}
        while pending and not stop.is_set() and not self._failed():
            _, pending = await asyncio.wait(
                {*pending, stopped}, return_when=asyncio.FIRST_COMPLETED
            )
            pending.discard(stopped)
        for wait in (*pending, stopped):
            wait.cancel()
        return not stop.is_set() and not self._failed()

    def _failed(self) -> bool:
        return any(keeper.failure for keeper in self._keepers)
