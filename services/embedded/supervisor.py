"""Starts all parts together, keeps them running, and stops them in order."""

import asyncio
from collections.abc import Callable, Sequence

from services.embedded.errors import PartFailed
from services.embedded.keeper import Keeper
from services.embedded.part import BackOff, Event, Part


class Supervisor:
    """`waves`: the parts in the order in which they are stopped; a wave's parts stop together."""

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
        """Until `stop` is set; `at_once` then cuts every grace short.

        Calls `when_up` when all parts are ready. Raises PartFailed when one ends before, after
        the others have been stopped.
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
                    task.cancel()  # only one whose process cannot even be killed still runs
        if failures := [keeper.failure for keeper in self._keepers if keeper.failure]:
            raise PartFailed("\n".join(failures))

    async def restart(self, part: str) -> None:
        """Ends a part gracefully, to be started again; returns when it has ended."""
        for keeper in self._keepers:
            if keeper.part.name == part:
                await keeper.restart()

    async def _up(self, stop: asyncio.Event) -> bool:
        """Waits until every part is ready, one has failed, or `stop`; True: all are ready."""
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
