"""How long requests wait in the servers' own queues."""

import asyncio
from collections.abc import Mapping
from typing import Final

import structlog

from services.controller.core import events as ev
from services.controller.core.entities import Health, Unit
from services.controller.loop import Loop
from services.controller.triton import Statistics, Triton, TritonGone

LOOK_SECONDS: Final = 2.0

_log = structlog.get_logger(__name__)


class QueueWatch:
    """Feeds the mean time in queue of every healthy server's units."""

    def __init__(self, loop: Loop, tritons: Mapping[str, Triton]) -> None:
        self._loop = loop
        self._tritons = tritons

    async def run(self) -> None:
        """Look, for ever."""
        async with asyncio.TaskGroup() as tasks:
            for server in self._tritons:
                tasks.create_task(self._watch(server))

    async def _watch(self, server: str) -> None:
        before: Mapping[Unit, Statistics] = {}
        while True:
            if self._loop.engine.fleet.servers[server].health is Health.HEALTHY:
                try:
                    now = await self._tritons[server].statistics()
                except TritonGone as gone:
                    _log.debug("no statistics", server=server, cause=str(gone))
                else:
                    self._loop.feed(ev.QueuesSeen(server, waits(before, now)))
                    before = now
            await asyncio.sleep(LOOK_SECONDS)


def waits(
    before: Mapping[Unit, Statistics], now: Mapping[Unit, Statistics]
) -> Mapping[Unit, float]:
    """Mean seconds in queue of the requests since `before`, of the units that had any. The counters
    begin anew when a unit is loaded."""
    found: dict[Unit, float] = {}
    for unit, statistics in now.items():
        count, seconds = statistics.queued, statistics.queue_seconds
        last = before.get(unit)
        if last is not None and last.queued <= count and last.queue_seconds <= seconds:
            count, seconds = count - last.queued, seconds - last.queue_seconds
        if count > 0:
            found[unit] = seconds / count
    return found
