"""Reserves memory for requests, and refuses them if there is none left."""

import random
from typing import Final

from services.router.core.admission.memory import SMALL, MemoryBudget
from services.router.core.errors import MemoryTaken

RETRY_SECONDS: Final = 0.5  # up to twice as long at random, so that not all return at once


def reserve(budget: MemoryBudget, size: int) -> int:
    """Reserve `size` bytes and return that size, to be given back. Raises MemoryTaken."""
    if not budget.take(size):
        raise _refusal(budget, size)
    return size


def _refusal(budget: MemoryBudget, size: int) -> MemoryTaken:
    """Return the error for a request of `size` bytes that does not fit."""
    return MemoryTaken(
        size=size,
        held=budget.held,
        limit=budget.limit,
        small=SMALL,
        retry_after=RETRY_SECONDS * random.uniform(1.0, 2.0),
    )


class Reservation:
    """The bytes reserved for one request that arrives piece by piece."""

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget = budget
        self.size = 0

    def grow(self, more: int) -> None:
        """Reserve `more` bytes. Raises MemoryTaken."""
        size = self.size + more
        if not self._budget.grow(self.size, size):
            raise _refusal(self._budget, size)
        self.size = size

    def release(self) -> None:
        """Give everything back."""
        self._budget.give(self.size)
        self.size = 0
