"""How many bytes of requests are held at a time, and whether there is room for more."""

from typing import Final

SMALL: Final = 1 << 20  # bytes
UNLIMITED: Final = 2**63  # bytes
RESERVE: Final = 8  # one part in so many is kept for small requests


class Held:
    """`limit`: bytes of all requests together. Large ones leave a part of it to small ones, and one
    large one is let in whatever its size where there is no other."""

    def __init__(self, limit: int = UNLIMITED) -> None:
        self.limit = limit
        self.total = 0
        self.large = 0  # of these, those of large requests
        self.refused = 0  # requests

    def take(self, size: int) -> bool:
        """Whether there is room for a request of `size` bytes; then it is held, until `give`."""
        if size <= SMALL and self.total + size <= self.limit:
            self.total += size
            return True
        return self.grow(0, size)

    def grow(self, before: int, after: int) -> bool:
        """Likewise for one that comes piece by piece: of its `before` bytes that are held, there
        are to be `after`."""
        total = self.total + after - before
        large = self.large + _large(after) - _large(before)
        if after > before and not self._room(total, large, after):
            self.refused += 1
            return False
        self.total, self.large = total, large
        return True

    def give(self, size: int) -> None:
        """A request of `size` bytes is held no more."""
        self.total -= size
        if size > SMALL:
            self.large -= size

    def _room(self, total: int, large: int, size: int) -> bool:
        reserve = self.limit // RESERVE
        if size <= SMALL:
            return total <= self.limit or total - large <= reserve
        return large == size or (total <= self.limit and large <= self.limit - reserve)


def _large(size: int) -> int:
    return size if size > SMALL else 0
