"""How often something happens, and how often it may.

Times are the caller's, in seconds."""

import math
from dataclasses import dataclass, field
from typing import Final, NamedTuple

RETRY_SECONDS: Final = 10.0
RETRY_SHARE: Final = 0.2
RETRIES_A_SECOND: Final = 10.0


class Bucket(NamedTuple):
    """A token bucket that held `tokens` at the time `at`."""

    tokens: float
    at: float

    def filled(self, rate: float, burst: float, now: float) -> float:
        """Return the tokens at `now`, with `rate` more each second and at most `burst`."""
        return min(burst, self.tokens + rate * max(0.0, now - self.at))


def full(burst: float, now: float) -> Bucket:
    """Return a full bucket."""
    return Bucket(burst, now)


def take(bucket: Bucket, rate: float, burst: float, now: float) -> tuple[Bucket, float]:
    """Take one token if there is a whole one.

    Returns the bucket afterwards, and the seconds until the next token is there, which are 0 if one
    was taken. `rate` > 0, `burst` >= 1."""
    tokens = bucket.filled(rate, burst, now)
    if tokens >= 1.0:
        return Bucket(tokens - 1.0, now), 0.0
    return Bucket(tokens, now), (1.0 - tokens) / rate


@dataclass(slots=True)
class Meter:
    """Counts what happened in the last `span` seconds.

    It keeps two counts. The part of the previous span that is still within reach counts as if its
    events had been spread evenly."""

    span: float = 1.0
    _begun: float = -math.inf
    _count: float = 0.0
    _before: float = 0.0

    def add(self, now: float, number: float = 1.0) -> None:
        if now - self._begun >= self.span:
            self._turn(now)
        self._count += number

    def count(self, now: float) -> float:
        if now - self._begun >= self.span:
            self._turn(now)
        return self._count + self._before * (1.0 - (now - self._begun) / self.span)

    def rate(self, now: float) -> float:
        """Return the count per second."""
        return self.count(now) / self.span

    def _turn(self, now: float) -> None:
        followed = now - self._begun < 2 * self.span
        self._before = self._count if followed else 0.0
        self._begun = self._begun + self.span if followed else now
        self._count = 0.0


@dataclass(slots=True)
class RetryBudget:
    """Bounds how many requests may be sent again: a fifth of the requests of the last 10 s, plus 10
    a second for those who send few. A large failure thus cannot double the load on what is left.

    The rule and its numbers are those of Finagle's RetryBudget."""

    retried: int = 0
    #: Requests sent to a second replica because the first one took long.
    hedged: int = 0
    #: Retries that were not allowed.
    refused: int = 0
    #: To be incremented for every request that starts.
    requests: Meter = field(default_factory=lambda: Meter(RETRY_SECONDS))
    _retries: Meter = field(default_factory=lambda: Meter(RETRY_SECONDS))

    def retry(self, now: float) -> bool:
        """Return whether one more request may be sent again. If so, it counts as sent."""
        allowed = self._take(now)
        self.retried += allowed
        self.refused += not allowed
        return allowed

    def hedge(self, now: float) -> bool:
        """Return whether one more request may be sent to a second replica. If so, it counts as
        sent."""
        allowed = self._take(now)
        self.hedged += allowed
        return allowed

    def _take(self, now: float) -> bool:
        allowed = RETRY_SHARE * self.requests.count(now) + RETRIES_A_SECOND * RETRY_SECONDS
        if self._retries.count(now) + 1 > allowed:
            return False
        self._retries.add(now)
        return True
