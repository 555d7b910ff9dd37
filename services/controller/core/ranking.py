"""Eviction policies, and the order in which replicas leave.

A policy gives each replica a rank; the lowest leaves first. A rank changes only when the replica is
used, so its place in the order is put right when its turn comes, not at every use.
"""

from bisect import insort
from collections.abc import Callable, Iterator
from typing import Final

from services.controller.core.entities import Unit

RELOAD_SECONDS: Final = 1.0  # assumed for a unit that was never loaded

# last_used, uses (aged), reload seconds, share of the server, clock of the fleet
Rank = Callable[[float, float, float, float, float], float]


def lru(last_used: float, uses: float, reload: float, share: float, clock: float) -> float:
    """Rank by the last use, in seconds of the engine's clock: least recently used."""
    return last_used


def gdsf(last_used: float, uses: float, reload: float, share: float, clock: float) -> float:
    """Rank by clock + uses * reload / share: GreedyDual-Size-Frequency.

    L. Cherkasova, "Improving WWW Proxies Performance with Greedy-Dual-Size-Frequency Caching
    Policy", HP Laboratories HPL-98-69 (R.1), 1998: K = L + F * C / S, where L is the K of what was
    evicted last. Here L is the highest K evicted so far in the fleet, C the seconds that loading it
    again takes, and S its share of the server in [0, 1]. F counts each use half after every
    half-life, over all residences of the unit.
    """
    return clock + uses * reload / max(share, 1e-6)


POLICIES: Final[dict[str, Rank]] = {"lru": lru, "gdsf": gdsf}


class Order:
    """The READY replicas of one server in the order in which a policy would have them leave.

    An entry has the rank that its replica had once. It is put right when a walk comes to it.
    """

    __slots__ = ("_entries",)

    def __init__(self) -> None:
        self._entries: list[tuple[float, Unit]] = []

    def copy(self) -> "Order":
        """An order to walk that leaves this one as it is."""
        other = Order()
        other._entries = self._entries.copy()
        return other

    def push(self, rank: float, unit: Unit) -> None:
        """Take in a replica that has become READY, or whose rank has fallen. `walk` notices by
        itself when a rank has risen."""
        insort(self._entries, (rank, unit))

    def lowest(self) -> float:
        """A rank that no replica is below; infinity where there is none."""
        return self._entries[0][0] if self._entries else float("inf")

    def walk(self, rank: Callable[[Unit], float | None]) -> Iterator[tuple[float, Unit]]:
        """The units in order, with their ranks. `rank` gives the rank of a unit, or None when it is
        not READY here. Nothing may be pushed, and no other walk made, between two of them."""
        entries, at = self._entries, 0
        before: tuple[float, Unit] | None = None
        while at < len(entries):
            entry = entries[at]
            now = rank(entry[1])
            if now == entry[0] and entry != before:
                before = entry
                at += 1
                yield entry
            else:
                del entries[at]
                if now is not None and now > entry[0]:
                    insort(entries, (now, entry[1]))
                # A rank that has fallen was pushed then, so this entry is stale.
