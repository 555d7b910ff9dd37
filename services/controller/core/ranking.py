"""Eviction policies, and the order in which replicas leave.

A policy gives each replica a rank; the lowest leaves first. A rank changes only when the replica is
used, so its place in the order is put right when its turn comes, not at every use.
"""

import heapq
from collections.abc import Callable, Iterator
from typing import Final

from services.controller.core.entities import Unit

RELOAD_SECONDS: Final = 1.0  # assumed for a unit that was never loaded

# last_used, uses (aged), reload seconds, share of the server, clock of the server
Rank = Callable[[float, float, float, float, float], float]


def lru(last_used: float, uses: float, reload: float, share: float, clock: float) -> float:
    """Rank by the last use, in seconds of the engine's clock: least recently used."""
    return last_used


def gdsf(last_used: float, uses: float, reload: float, share: float, clock: float) -> float:
    """Rank by clock + uses * reload / share: GreedyDual-Size-Frequency.

    L. Cherkasova, "Improving WWW Proxies Performance with Greedy-Dual-Size-Frequency Caching
    Policy", HP Laboratories HPL-98-69 (R.1), 1998: K = L + F * C / S, where L is the K of what was
    evicted last. Here C is the seconds that loading it again takes, S its share of the server in
    [0, 1], and F counts each use half after every half-life, so that old fame fades between
    evictions, too.
    """
    return clock + uses * reload / max(share, 1e-6)


POLICIES: Final[dict[str, Rank]] = {"lru": lru, "gdsf": gdsf}


class Order:
    """The READY replicas of one server in the order in which a policy would have them leave."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, Unit]] = []

    def copy(self) -> "Order":
        """An order to walk that leaves this one as it is."""
        other = Order()
        other._heap = self._heap.copy()
        return other

    def push(self, rank: float, unit: Unit) -> None:
        """Take in a replica that has become READY, or whose rank has fallen. `walk` notices by
        itself when a rank has risen."""
        heapq.heappush(self._heap, (rank, unit))

    def lowest(self) -> float:
        """A rank that no replica is below; infinity where there is none."""
        return self._heap[0][0] if self._heap else float("inf")

    def walk(self, rank: Callable[[Unit], float | None]) -> Iterator[tuple[float, Unit]]:
        """The units in order, with their ranks. `rank` gives the rank of a unit, or None when it is
        not READY here."""
        heap, seen = self._heap, list[tuple[float, Unit]]()
        found: set[Unit] = set()
        try:
            while heap:
                entry = heapq.heappop(heap)
                unit = entry[1]
                now = None if unit in found else rank(unit)
                if now is None:
                    continue
                if now != entry[0]:
                    # A rank that has fallen was pushed then, so this entry is stale.
                    if now > entry[0]:
                        heapq.heappush(heap, (now, unit))
                    continue
                found.add(unit)
                seen.append(entry)
                yield entry
        finally:
            for entry in seen:
                heapq.heappush(heap, entry)
