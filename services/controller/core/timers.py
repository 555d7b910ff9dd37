"""Timers: when something becomes due, whether or not anything else happens."""

import heapq
import math
from typing import Final

STEP_SECONDS: Final = 0.005  # the time between two timers, at least
NEVER: Final = 1e12  # seconds


class Timers:
    """The times at which something becomes due, in seconds of the engine's clock. What is due at
    nearly the same time shares a timer, which is never early."""

    def __init__(self) -> None:
        self._steps: list[int] = []
        self._known: set[int] = set()

    def at(self, when: float) -> None:
        if when < NEVER:
            step = math.ceil(when / STEP_SECONDS)
            if step * STEP_SECONDS < when:  # rounding: never too early
                step += 1
            if step not in self._known:
                self._known.add(step)
                heapq.heappush(self._steps, step)

    def next(self) -> float | None:
        return self._steps[0] * STEP_SECONDS if self._steps else None

    def due(self, now: float) -> bool:
        """Return whether anything has become due since this was asked last."""
        found = False
        while self._steps and self._steps[0] * STEP_SECONDS <= now:
            self._known.discard(heapq.heappop(self._steps))
            found = True
        return found
