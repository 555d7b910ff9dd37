"""Requests in flight by replica, and when each replica was last used."""

import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from services.router.core.routes import Replica, Target


class Use(NamedTuple):
    """`age`: seconds since it was last used. `requests`: begun since it was told last."""

    age: float
    in_flight: int
    requests: int


class InUse:
    """`on_busy(replica)` is called when a replica turns from idle to busy, `on_idle` when its last
    request ends."""

    def __init__(
        self, on_busy: Callable[[Replica], None], on_idle: Callable[[Replica], None]
    ) -> None:
        self._on_busy = on_busy
        self._on_idle = on_idle
        self._count: dict[Replica, int] = {}
        self._used: dict[Replica, float] = {}
        self._begun: Counter[Replica] = Counter()

    def begin(self, replica: Replica) -> None:
        count = self._count.get(replica, 0)
        self._count[replica] = count + 1
        self._begun[replica] += 1
        if not count:
            self._used[replica] = time.monotonic()
            self._on_busy(replica)

    def end(self, replica: Replica) -> None:
        count = self._count[replica] - 1
        if count:
            self._count[replica] = count
            return
        del self._count[replica]
        self._used[replica] = time.monotonic()
        self._on_idle(replica)

    def count(self, replica: Replica) -> int:
        return self._count.get(replica, 0)

    def usage_of(self, target: Target) -> int:
        """Requests in flight on all replicas of `target`."""
        return sum(n for replica, n in self._count.items() if replica.target == target)

    def busy(self) -> list[Replica]:
        return list(self._count)

    def usage(self) -> dict[Replica, Use]:
        """Every replica used since the last call or in flight now."""
        now = time.monotonic()
        begun = self._begun
        found = {
            replica: Use(now - used, 0, begun[replica]) for replica, used in self._used.items()
        }
        found.update(
            {replica: Use(0.0, count, begun[replica]) for replica, count in self._count.items()}
        )
        self.count_anew()
        self._used.clear()
        return found

    def count_anew(self) -> None:
        """Requests that were begun until now are not told any more."""
        self._begun = Counter()
