"""What requests hold of the Router's memory, refused where there is no room for more."""

import random
from typing import Final

from services.router.core.admission.memory import SMALL, Held
from services.router.core.errors import MemoryTaken

RETRY_SECONDS: Final = 0.5  # to twice as long, at random, so that not all come back at once


def hold(held: Held, size: int) -> int:
    """The bytes that are to be given back. Raises MemoryTaken."""
    if not held.take(size):
        raise taken(held, size)
    return size


def taken(held: Held, size: int) -> MemoryTaken:
    return MemoryTaken(
        size=size,
        held=held.total,
        limit=held.limit,
        small=SMALL,
        retry_after=RETRY_SECONDS * random.uniform(1.0, 2.0),
    )


class Holding:
    """Of one request that comes piece by piece. Bytes."""

    def __init__(self, held: Held) -> None:
        self._held = held
        self.size = 0

    def grow(self, more: int) -> None:
        """Raises MemoryTaken."""
        size = self.size + more
        if not self._held.grow(self.size, size):
            raise taken(self._held, size)
        self.size = size

    def release(self) -> None:
        self._held.give(self.size)
        self.size = 0
