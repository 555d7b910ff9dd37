"""Retries: which calls are repeated, after what pause, and how much of their time is left."""

import math
import random
import time
from typing import Final, NamedTuple

from shoal.client.errors import CallFailed

DEFAULT_TIMEOUT: Final = 30.0  # seconds
DEFAULT_RETRIES: Final = 5

MIN_PAUSE: Final = 0.01  # seconds
GROWTH: Final = 1.5  # factor by which the pause grows with each further refusal
# The largest share that chance adds to a pause, so that callers refused together spread out.
JITTER: Final = 0.25

# The request may have been carried out, so only the caller can know whether to repeat it.
_NEVER_REPEATED: Final = frozenset({"SERVER_LOST"})


class Limits(NamedTuple):
    """The limits of a client.

    `timeout` is in seconds, for calls that set none. `retries` is the most that one call is
    repeated.
    """

    timeout: float
    retries: int


class Tries:
    """The time and the retries that one call has left.

    `timeout` is in seconds; None means no limit.
    """

    def __init__(self, timeout: float | None, retries: int) -> None:
        self._deadline = math.inf if timeout is None else time.monotonic() + timeout
        self._retries = retries
        self._refused = 0

    def left(self) -> float | None:
        """Return the seconds left, or None where there is no limit."""
        if self._deadline == math.inf:
            return None
        return max(self._deadline - time.monotonic(), 0.001)

    def pause(self, error: CallFailed) -> float:
        """Return the seconds to wait before the next attempt.

        Raises `error` itself where the call must not be repeated, or not before its deadline.
        """
        self._refused += 1
        if (
            error.retry_after is None
            or error.reason in _NEVER_REPEATED
            or self._refused > self._retries
        ):
            raise error
        wait = pause(error.retry_after, self._refused, random.random())
        if time.monotonic() + wait >= self._deadline:
            raise error
        return wait


def pause(retry_after: float, refused: int, draw: float) -> float:
    """Return the seconds to wait after the refusal number `refused`, counted from 1.

    `draw` is a random number in [0, 1). The pause is never shorter than `retry_after`, the seconds
    that the service asked for.
    """
    grown = max(retry_after, MIN_PAUSE) * GROWTH ** (refused - 1)
    return float(grown * (1 + JITTER * draw))
