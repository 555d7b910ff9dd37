"""Counts the bytes of requests that are held, and decides whether there is room for more."""

from typing import Final

SMALL: Final = 1 << 20  # bytes
UNLIMITED: Final = 2**63  # bytes
RESERVE: Final = 8  # one in so many bytes is kept for small requests


class MemoryBudget:
    """A bound on the bytes of all requests together.

    Large requests leave a part of it to small ones. A large request is admitted whatever its size
    if there is no other."""

    def __init__(self, limit: int = UNLIMITED) -> None:
        self.limit = limit
        #: Bytes of all requests.
        self.held = 0
        #: Bytes of the large requests.
        self.large = 0
        #: The number of requests that did not fit.
        self.refused = 0

    def take(self, size: int) -> bool:
        """Return whether there is room for a request of `size` bytes. If so, it is held until
        `give`."""
        if size <= SMALL and self.held + size <= self.limit:
            self.held += size
            return True
        return self.grow(0, size)

    def grow(self, before: int, after: int) -> bool:
        """Return whether a request that holds `before` bytes may hold `after`. If so, it does."""
        total = self.held + after - before
        large = self.large + _large(after) - _large(before)
        if after > before and not self._room(total, large, after):
            self.refused += 1
            return False
        self.held, self.large = total, large
        return True

    def give(self, size: int) -> None:
        """Release a request of `size` bytes."""
        self.held -= size
        if size > SMALL:
            self.large -= size

    def _room(self, total: int, large: int, size: int) -> bool:
        reserve = self.limit // RESERVE
        if size <= SMALL:
            return total <= self.limit or total - large <= reserve
        return large == size or (total <= self.limit and large <= self.limit - reserve)


def _large(size: int) -> int:
    return size if size > SMALL else 0
