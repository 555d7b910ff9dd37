"""The one order in which the replicas of the whole fleet would leave: that of the eviction policy.

Its currency is the rank: with "lru" the time of the last use, with "gdsf" the worth over one clock
of the fleet.
"""

import heapq
from collections.abc import Iterable, Iterator
from typing import Final

from services.controller.core import memory, slots
from services.controller.core.curves import INFINITY, SLOTS, Curve
from services.controller.core.entities import Unit
from services.controller.core.fleet import Fleet
from services.controller.core.memory import NOTHING, Memory
from services.controller.core.victims import Opening, Terms, families

NOBODY: Final[frozenset[Unit]] = frozenset()
ANY_TERMS: Final = Terms()
TIE: Final = 0.01  # victims whose worth differs by no more are as good as each other


def cheapest(fleet: Fleet, openings: Iterable[tuple[float, Opening]], now: float) -> Opening | None:
    """The opening where there is room first when the replicas on all of their servers leave in one
    order, that of the policy. Among those that follow within `TIE`, the quietest server.

    Each opening comes with a rank that nothing there is below; these ranks rise.
    """
    leaving: list[tuple[float, str, Opening]] = []  # a heap: what leaves next, by server
    found: list[Opening] = []
    limit = INFINITY

    def advance(until: float) -> None:
        nonlocal limit
        while leaving and leaving[0][0] <= min(until, limit):
            rank, server, opening = leaving[0]
            if not opening.enough():
                opening.take()
            if opening.enough() and opening.cost <= rank:
                heapq.heappop(leaving)
                found.append(opening)
                limit = min(limit, _as_good_as(fleet, rank, now))
                continue
            following = opening.cost if opening.enough() else opening.next_rank()
            if following is None:
                heapq.heappop(leaving)
            else:
                heapq.heapreplace(leaving, (following, server, opening))

    for bound, opening in openings:
        advance(bound)
        if bound > limit:
            break
        first = opening.cost if opening.enough() else opening.next_rank()
        if first is not None:
            heapq.heappush(leaving, (first, opening.server, opening))
    advance(INFINITY)
    found.sort(key=lambda each: (slots.busy(fleet, each.server), each.cost, each.server))
    return found[0] if found else None


def by_cost(fleet: Fleet, servers: Iterable[str], need: Memory) -> list[tuple[float, str]]:
    """The servers in the order of what so much room costs there at least, with that."""
    return sorted([(curve_of(fleet, server, need).cost(need), server) for server in servers])


def curve_of(fleet: Fleet, server: str, need: Memory = NOTHING) -> Curve:
    """What room costs on a server, up to `need`; worked out anew only when something there has
    changed, or when more is needed."""
    agenda, curve = fleet.agenda, fleet.curves.by_server.get(server)
    if (
        curve is None
        or server in agenda.changed
        or server in agenda.touched
        or not curve.reaches(need)
    ):
        curve = Curve(_free(fleet, server), _leaving(fleet, server), need)
        fleet.curves.put(server, curve)
    return curve


def _free(fleet: Fleet, server: str) -> Memory:
    known, account = fleet.servers[server], fleet.accounts[server]
    free = {name: limit - account.staying.get(name, 0) for name, limit in known.budget.items()}
    if known.max_models:
        free[SLOTS] = known.max_models - account.staying_slots
    return free


def _leaving(fleet: Fleet, server: str) -> Iterator[tuple[float, Memory, int]]:
    here = fleet.replicas[server]
    for rank, family in families(fleet, server, NOBODY, ANY_TERMS):
        if len(family) == 1:
            (unit,) = family
            yield rank, here[unit].reserved, here[unit].slots
        else:
            replicas = [here[unit] for unit in family]
            slots = sum(replica.slots for replica in replicas)
            yield rank, memory.total([each.reserved for each in replicas]), slots


def _as_good_as(fleet: Fleet, rank: float, now: float) -> float:
    """The highest rank that is as good as `rank`. With "lru" an idle time counts, and with "gdsf"
    what a replica is worth beyond what was evicted last."""
    worth = now - rank if fleet.uses.by_age else rank - fleet.uses.clock
    return rank + TIE * max(0.0, worth)


def score(fleet: Fleet, cost: float, now: float) -> float:
    """Score, below 1/2, how little the dearest victim will be missed: 1/4 with "lru" where it has
    been idle for a minute, with "gdsf" where ten uses a second of loading by share of a server."""
    if fleet.uses.by_age:
        idle = max(0.0, now - cost)
        return 0.5 * idle / (idle + 60)
    return 5 / (10 + max(0.0, cost - fleet.uses.clock))
