"""Counts the requests in flight on each replica, and notes when each was last used."""

import time
from collections.abc import Callable
from typing import NamedTuple

from services.router.core.routing.routes import Replica, Target


class Use(NamedTuple):
    """The use of a replica."""

    #: Seconds since it was last used.
    age: float
    in_flight: int
    #: Requests that started since the last report.
    requests: int


class _Count:
    """The requests of one replica. `used` is when the last one ended, in seconds of the monotonic
    clock."""

    __slots__ = ("begun", "in_flight", "used")

    def __init__(self) -> None:
        self.in_flight = self.begun = 0
        self.used = 0.0


class InUse:
    """The use of all replicas.

    `on_busy` is called with a replica when it turns from idle to busy, `on_idle` when its last
    request ends."""

    def __init__(
        self, on_busy: Callable[[Replica], None], on_idle: Callable[[Replica], None]
    ) -> None:
        self._on_busy = on_busy
        self._on_idle = on_idle
        self._counts: dict[Replica, _Count] = {}

    def begin(self, replica: Replica) -> None:
        """Count a request as in flight."""
        count = self._counts.get(replica)
        if count is None:
            count = self._counts[replica] = _Count()
        count.begun += 1
        count.in_flight += 1
        if count.in_flight == 1:
            self._on_busy(replica)

    def end(self, replica: Replica) -> None:
        """Count a request as ended."""
        count = self._counts[replica]
        count.in_flight -= 1
        if not count.in_flight:
            count.used = time.monotonic()
            self._on_idle(replica)

    def count(self, replica: Replica) -> int:
        """Return the number of requests in flight on the replica."""
        count = self._counts.get(replica)
        return count.in_flight if count is not None else 0

    def in_flight_on(self, target: Target) -> int:
        """Return the number of requests in flight on all replicas of `target`."""
        found = self._counts.items()
        return sum(count.in_flight for replica, count in found if replica.target == target)

    def busy(self) -> list[Replica]:
        """Return the replicas with requests in flight."""
        return [replica for replica, count in self._counts.items() if count.in_flight]

    def usage(self) -> dict[Replica, Use]:
        """Return the use of every replica that has requests in flight or had some since the last
        report."""
        now = time.monotonic()
        found = {
            replica: Use(0.0 if count.in_flight else now - count.used, count.in_flight, count.begun)
            for replica, count in self._counts.items()
        }
        self.restart_counts()
        self._counts = {
            replica: count for replica, count in self._counts.items() if count.in_flight
        }
        return found

    def restart_counts(self) -> None:
        """Leave the requests that have started until now out of the next report."""
        for count in self._counts.values():
            count.begun = 0
