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
        #: The timers, in steps: a heap. It also has some that nothing waits for any longer.
        self._steps: list[int] = []
        #: How many things become due at each timer in the heap.
        self._awaited: dict[int, int] = {}

    def at(self, when: float) -> None:
        """Have a timer for something that becomes due at `when`."""
        if when < NEVER:
            step = _step(when)
            count = self._awaited.get(step)
            if count is None:
                heapq.heappush(self._steps, step)
            self._awaited[step] = (count or 0) + 1

    def cancel(self, when: float) -> None:
        """Something that would have become due at `when` is over."""
        if when < NEVER:
            step = _step(when)
            if step in self._awaited:
                self._awaited[step] -= 1

    def next(self) -> float | None:
        """The time of the first timer that something waits for; None where there is none."""
        while self._steps and not self._awaited[self._steps[0]]:
            del self._awaited[heapq.heappop(self._steps)]
        return self._steps[0] * STEP_SECONDS if self._steps else None

    def due(self, now: float) -> bool:
        """Return whether anything has become due since this was asked last."""
        found = False
        while self._steps and self._steps[0] * STEP_SECONDS <= now:
            found |= self._awaited.pop(heapq.heappop(self._steps)) > 0
        return found


def _step(when: float) -> int:
    step = math.ceil(when / STEP_SECONDS)
    return step if step * STEP_SECONDS >= when else step + 1  # rounding: never too early
