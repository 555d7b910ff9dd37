"""The catalogue's changes, remembered for those who follow it.

All watchers share one log, and each only has a position in it. What a slow reader has missed is
merged when it reads on, so nothing queues up. A watcher that is further behind than the log
remembers gets a snapshot.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from services.common.errors import NotReady
from services.registry.catalogue.store import Snapshot
from services.registry.core.catalogue import Entry

MAX_ENTRIES = 5000  # entries remembered, of a few kilobytes each


@dataclass(frozen=True, slots=True)
class Delta:
    """Entries to replace, None for a deleted model. It is empty when nothing has changed."""

    revision: int
    changed: Mapping[str, Entry | None] = field(default_factory=dict)


class CatalogueLog:
    """The newest deltas, for one event loop. `revision` is the catalogue's at the start."""

    def __init__(self, revision: int, max_entries: int = MAX_ENTRIES) -> None:
        self._floor = self._head = revision
        self._max_entries = max_entries
        self._deltas: deque[Delta] = deque()
        self._entries = 0
        self._news = asyncio.Event()
        self._closed = False

    def publish(self, delta: Delta) -> None:
        """Add a delta. Revisions only grow."""
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
        """End every `follow`."""
        self._closed = True
        self._wake()

    def remembers(self, revision: int) -> bool:
        """Return whether all that came after `revision` is known."""
        return self._floor <= revision <= self._head

    async def follow(
        self,
        start: int,
        snapshot: Callable[[], Awaitable[Snapshot]],
        idle_seconds: float,
    ) -> AsyncGenerator[Snapshot | Delta]:
        """Yield all that comes after `start`, or a snapshot first if that is 0 or forgotten.

        After every `idle_seconds` without a change there is an empty delta. Raises NotReady once
        the log is closed.
        """
        at = start if start and self.remembers(start) else None
        while not self._closed:
            if at is None or at < self._floor:
                whole = await snapshot()
                # It may contain a change that is yet to be published.
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
        """Wait for news, for at most `seconds`. Return False if the log is closed."""
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
