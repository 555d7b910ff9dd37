"""How often something happens, and how often it may. Times are the caller's, in seconds."""

import math
from dataclasses import dataclass, field
from typing import Final, NamedTuple

RETRY_SECONDS: Final = 10.0
RETRY_SHARE: Final = 0.2
RETRIES_A_SECOND: Final = 10.0


class Bucket(NamedTuple):
    """A token bucket: `tokens` that were there at the time `at`."""

    tokens: float
    at: float

    def filled(self, rate: float, burst: float, now: float) -> float:
        """The tokens at `now`: `rate` more each second, `burst` at most."""
        return min(burst, self.tokens + rate * max(0.0, now - self.at))


def full(burst: float, now: float) -> Bucket:
    return Bucket(burst, now)


def take(bucket: Bucket, rate: float, burst: float, now: float) -> tuple[Bucket, float]:
    """One token, if there is a whole one: the bucket afterwards, and the seconds until the next
    one is there, which are 0 if it was taken. `rate` > 0, `burst` >= 1."""
    tokens = bucket.filled(rate, burst, now)
    if tokens >= 1.0:
        return Bucket(tokens - 1.0, now), 0.0
    return Bucket(tokens, now), (1.0 - tokens) / rate


@dataclass(slots=True)
class Meter:
    """What happened in the last `span` seconds, from two counts: the part of the one before that
    still lies within counts as if it had happened evenly."""

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
        """A second."""
        return self.count(now) / self.span

    def _turn(self, now: float) -> None:
        followed = now - self._begun < 2 * self.span
        self._before = self._count if followed else 0.0
        self._begun = self._begun + self.span if followed else now
        self._count = 0.0


@dataclass(slots=True)
class RetryBudget:
    """How many requests may be sent again: a fifth of those of the last 10 s, and 10 a second
    besides, for whoever sends few. So a failure of many cannot double the load on what is left.

    The rule and its numbers are those of Finagle's RetryBudget. `hedged`: sent to another replica
    because the first one takes long. `refused`: retries that it did not allow. `requests`: is to be
    added to when one begins.
    """

    retried: int = 0
    hedged: int = 0
    refused: int = 0
    requests: Meter = field(default_factory=lambda: Meter(RETRY_SECONDS))
    _retries: Meter = field(default_factory=lambda: Meter(RETRY_SECONDS))

    def retry(self, now: float) -> bool:
        """Whether one more may be sent again; it counts as sent if so."""
        allowed = self._take(now)
        self.retried += allowed
        self.refused += not allowed
        return allowed

    def hedge(self, now: float) -> bool:
        """Likewise, of one that may yet be answered."""
        allowed = self._take(now)
        self.hedged += allowed
        return allowed

    def _take(self, now: float) -> bool:
        allowed = RETRY_SHARE * self.requests.count(now) + RETRIES_A_SECOND * RETRY_SECONDS
        if self._retries.count(now) + 1 > allowed:
            return False
        self._retries.add(now)
        return True
