"""The room that the store's contents take on disk, promised before it is taken.

What is arriving counts in full from its first byte, so the contents never take more than the
budget, and the file system keeps some room for others.
"""

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from typing import Final

from services.registry.core.errors import StoreFull
from services.registry.storage.blobs import Blobs
from shoal.sizes import format_size

# What a content of unknown size is promised at a time, in bytes.
GROWTH: Final = 16 * 2**20

# Frees so many bytes for what is described, or says why that cannot be.
Free = Callable[[int, str], Awaitable[str]]


class Room:
    """The room of a store.

    `budget` is in bytes, None for no limit. `spare` bytes of the file system are left free.
    """

    def __init__(self, blobs: Blobs, budget: int | None, spare: int) -> None:
        self.budget = budget
        self._blobs = blobs
        self._spare = spare
        self._promised: dict[str, int] = {}  # bytes by key
        self._idle: dict[str, int] = {}  # bytes on disk of what is not arriving now, by key
        self._deciding = asyncio.Lock()

    def look(self) -> None:
        """Take in what lies unfinished on disk. Blocks."""
        found = self._blobs.partials()
        self._idle = {key: size for key, (size, _) in found.items() if key not in self._promised}

    @property
    def used(self) -> int:
        """Return the bytes that are taken or promised."""
        return self._blobs.size + sum(self._promised.values()) + sum(self._idle.values())

    @property
    def free_on_disk(self) -> int:
        return shutil.disk_usage(self._blobs.root).free

    def over(self) -> int:
        """Return the bytes that are taken beyond the budget."""
        return 0 if self.budget is None else max(0, self.used - self.budget)

    @property
    def arriving(self) -> frozenset[str]:
        """Return the keys of what is arriving."""
        return frozenset(self._promised)

    async def promise(self, key: str, size: int, free: Free, wanted_for: str) -> None:
        """Promise room for a content of `size` bytes in all. Raises StoreFull."""
        async with self._deciding:
            already = self._promised.get(key, 0)
            while True:
                idle = 0 if already else self._idle.get(key, 0)
                lacking, cause = self._lacking(size - already - idle)
                if not lacking:
                    break
                if refused := await free(lacking, wanted_for):
                    raise StoreFull(
                        wanted_for=wanted_for,
                        needed=format_size(size),
                        cause=f"{cause}; {refused}",
                        retry_after=None,
                    )
            self._idle.pop(key, None)
            self._promised[key] = max(size, already)

    async def grow(self, key: str, size: int, free: Free, wanted_for: str) -> None:
        """Promise more for a content whose size was not known. Raises StoreFull."""
        if size > self._promised.get(key, 0):
            await self.promise(key, size + GROWTH, free, wanted_for)

    def settle(self, key: str) -> None:
        """End a promise: the content is whole, broken off or gone."""
        self._promised.pop(key, None)
        arrived = self._blobs.arrived(key)
        if arrived:
            self._idle[key] = arrived

    def forget(self, key: str) -> None:
        """Note that what was unfinished is gone."""
        self._idle.pop(key, None)

    def _lacking(self, more: int) -> tuple[int, str]:
        """Return how many bytes are lacking for `more`, and why."""
        if more <= 0:
            return 0, ""
        beyond = 0 if self.budget is None else self.used + more - self.budget
        written = sum(self._blobs.arrived(key) for key in self._promised)
        outstanding = sum(self._promised.values()) - written
        free = self.free_on_disk
        scarce = more + outstanding + self._spare - free
        if beyond >= scarce:
            budget = self.budget or 0
            cause = f"{format_size(self.used)} of the budget of {format_size(budget)} are taken"
            return max(0, beyond), cause
        return max(0, scarce), f"{format_size(max(free, 0))} are free on its file system"
