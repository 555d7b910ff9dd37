"""Requests in flight by replica, and when each replica was last used."""

import time
from collections.abc import Callable
from typing import NamedTuple

from services.router.core.routing.routes import Replica, Target


class Use(NamedTuple):
    """`age`: seconds since it was last used. `requests`: begun since it was told last."""

    age: float
    in_flight: int
    requests: int


class _Count:
    """Of one replica. `used`: when it was in flight last; seconds of the monotonic clock."""

    __slots__ = ("begun", "in_flight", "used")

    def __init__(self) -> None:
        self.in_flight = self.begun = 0
        self.used = 0.0


class InUse:
    """`on_busy(replica)` is called when a replica turns from idle to busy, `on_idle` when its last
    request ends."""

    def __init__(
        self, on_busy: Callable[[Replica], None], on_idle: Callable[[Replica], None]
    ) -> None:
        self._on_busy = on_busy
        self._on_idle = on_idle
        self._counts: dict[Replica, _Count] = {}

    def begin(self, replica: Replica) -> None:
        count = self._counts.get(replica)
        if count is None:
            count = self._counts[replica] = _Count()
        count.begun += 1
        count.in_flight += 1
        if count.in_flight == 1:
            self._on_busy(replica)

    def end(self, replica: Replica) -> None:
        count = self._counts[replica]
        count.in_flight -= 1
        if not count.in_flight:
            count.used = time.monotonic()
            self._on_idle(replica)

    def count(self, replica: Replica) -> int:
        count = self._counts.get(replica)
        return count.in_flight if count is not None else 0

    def usage_of(self, target: Target) -> int:
        """Requests in flight on all replicas of `target`."""
        found = self._counts.items()
        return sum(count.in_flight for replica, count in found if replica.target == target)

    def busy(self) -> list[Replica]:
        return [replica for replica, count in self._counts.items() if count.in_flight]

    def usage(self) -> dict[Replica, Use]:
        """Every replica used since the last call or in flight now."""
        now = time.monotonic()
        found = {
            replica: Use(0.0 if count.in_flight else now - count.used, count.in_flight, count.begun)
            for replica, count in self._counts.items()
        }
        self.count_anew()
        self._counts = {
            replica: count for replica, count in self._counts.items() if count.in_flight
        }
        return found

    def count_anew(self) -> None:
        """Requests that were begun until now are not told any more."""
        for count in self._counts.values():
            count.begun = 0
