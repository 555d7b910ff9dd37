"""The catalogue's changes, remembered for those who follow it.

The log is one for all watchers, and each has only a place in it: what a slow reader missed is put
together when it reads on, so nothing queues up. Who is behind what is remembered gets a snapshot.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from services.common.errors import NotReady
from services.registry.catalogue.store import Snapshot
from services.registry.core.catalogue import Entry

MAX_ENTRIES = 5000  # entries remembered; some kilobytes each


@dataclass(frozen=True, slots=True)
class Delta:
    """Entries to replace, None for a model that is gone; none at all when nothing changed."""

    revision: int
    changed: Mapping[str, Entry | None] = field(default_factory=dict)


class CatalogueLog:
    """Deltas from a floor on. Of one event loop; `revision` is where the catalogue stands."""

    def __init__(self, revision: int, max_entries: int = MAX_ENTRIES) -> None:
        self._floor = self._head = revision
        self._max_entries = max_entries
        self._deltas: deque[Delta] = deque()
        self._entries = 0
        self._news = asyncio.Event()
        self._closed = False

    def publish(self, delta: Delta) -> None:
        """To be called in the order of revisions."""
        if delta.revision != self._head + 1:
            self._forget()  # another process wrote in between: watchers need a snapshot
        self._deltas.append(delta)
        self._entries += len(delta.changed)
        self._head = delta.revision
        if len(self._deltas) == 1:
            self._floor = delta.revision - 1
        while self._entries > self._max_entries:
            oldest = self._deltas.popleft()
            self._entries -= len(oldest.changed)
            self._floor = oldest.revision
        self._wake()

    def close(self) -> None:
        """Ends every `follow`."""
        self._closed = True
        self._wake()

    def remembers(self, revision: int) -> bool:
        """Whether all that came after `revision` is known."""
        return self._floor <= revision <= self._head

    async def follow(
        self,
        start: int,
        snapshot: Callable[[], Awaitable[Snapshot]],
        idle_seconds: float,
    ) -> AsyncGenerator[Snapshot | Delta]:
        """All that comes after `start`, or after a snapshot where that is 0 or not remembered.

        An empty delta each time that nothing was said for `idle_seconds`. Raises NotReady when the
        log is closed.
        """
        at = start if start and self.remembers(start) else None
        while not self._closed:
            if at is None or at < self._floor:
                whole = await snapshot()
                # It may hold a change whose publication is still to come.
                at = whole.revision
                yield whole
                continue
            if self._head <= at and not await self._woken(idle_seconds):
                break
            if self._floor <= at:
                delta = self._since(at)
                at = delta.revision
                yield delta
        raise NotReady(service="the Registry", cause="it is stopping", retry_after=1.0)

    def _since(self, revision: int) -> Delta:
        changed: dict[str, Entry | None] = {}
        for delta in self._deltas:
            if delta.revision > revision:
                changed.update(delta.changed)
        return Delta(max(self._head, revision), changed)

    async def _woken(self, seconds: float) -> bool:
        """Waits for news, at most so long. False: there will be none."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._news.wait()
        return not self._closed

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    def _forget(self) -> None:
        self._deltas.clear()
        self._entries = 0
