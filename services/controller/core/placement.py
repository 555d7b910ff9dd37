"""The choice of a server for a unit.

A newcomer goes where there is room, on the server that has the highest score. Where there is room
on none, the replicas of the whole fleet have one order in which they would leave, that of the
eviction policy, and the newcomer goes where the dearest of its victims comes first in that order.
Everything else is a filter: labels, budgets, claims, whether a load could begin.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final

from services.controller.core import memory, order, rooms, slots, victims
from services.controller.core.entities import Server, Unit, UnitSpec
from services.controller.core.fleet import Fleet
from services.controller.core.roster import INFINITY, LOOK_AT_ALL, STEPS
from services.controller.core.sizing import certain
from services.controller.core.states import LEAVING
from services.controller.core.victims import Blocked, Later, Opening, Terms, Wait


@dataclass(frozen=True, slots=True)
class Place:
    """The answer to put `units` (parts first) on `server`, after `victims` (ensembles first) are
    gone. `score` is in [0, 1], and `cost` the rank of the dearest victim."""

    server: str
    units: tuple[UnitSpec, ...]
    victims: tuple[Unit, ...]
    score: float
    cost: float = float("-inf")


@dataclass(frozen=True, slots=True)
class Never:
    """The answer that no server could hold it, even an empty one."""

    reason: str


@dataclass(frozen=True, slots=True)
class Closed:
    """The answer that no server that could hold it takes anything."""

    reason: str


Decision = Place | Wait | Blocked | Never | Closed


def place(
    fleet: Fleet,
    spec: UnitSpec,
    terms: Terms,
    now: float,
    only: Iterable[str] | None = None,
    *,
    thorough: bool = False,
) -> Decision:
    """Decide for one unit over all servers, or over `only` some when it is known that nothing has
    changed for it on the others. Where there are many servers, all of them are looked at only if
    `thorough`, or if it looks as though none could ever hold the unit."""
    members = fleet.known.group(spec)
    if only is None and len(fleet.servers) > LOOK_AT_ALL:
        best = _among_few(fleet, members, terms, now)
        if best is not None:
            return best
        if not thorough and any(
            server.accepting and shortage(fleet, members, server) is None
            for server in fleet.servers.values()
        ):
            return Later("the servers that could hold it are busy with other loads")
    looked_at = fleet.servers if only is None else only
    best = _best(fleet, members, looked_at, terms, now)
    return best if best is not None else _why_not(fleet, members, looked_at, terms)


def on_server(
    fleet: Fleet, members: tuple[UnitSpec, ...], server: str, terms: Terms, now: float
) -> Place | Wait | Blocked | None:
    """Return what `server` could do for `members`; None where it is out of the question."""
    best = _best(fleet, members, (server,), terms, now)
    return best if best is not None else _standing(fleet, members, server, terms)


def reason(choice: Place, need: memory.Memory) -> str:
    """Return what a choice takes and at whose cost, for people: `ram 60 MiB on t0, after evicting
    b:1`."""
    after = (
        f", after evicting {', '.join(map(str, choice.victims))}"
        if choice.victims
        else ", which has room"
    )
    return f"{memory.text(need)} on {choice.server}{after}"


# --- some servers, or the few that are worth a look -----------------------------------------------


def _best(
    fleet: Fleet, members: tuple[UnitSpec, ...], servers: Iterable[str], terms: Terms, now: float
) -> Place | None:
    """The best place on any of `servers`."""
    least = rooms.least(fleet, members)
    roomy = [server for server in servers if not rooms.too_full(fleet, server, least)]
    best = _roomiest(fleet, members, roomy, terms) if roomy else None
    if best is not None or not terms.evict:
        return best
    return _at_cost(fleet, members, servers, terms, now)


def _among_few(
    fleet: Fleet, members: tuple[UnitSpec, ...], terms: Terms, now: float
) -> Place | None:
    """The best of the servers with most room, and of those whose next victims are worth least."""
    roster = fleet.roster
    for roomy, cheap in STEPS:
        best = _roomiest(fleet, members, roster.roomy(roomy), terms)
        if best is None and terms.evict:
            found = islice(roster.cheap(lambda name: front(fleet, name)), cheap)
            best = _at_cost(fleet, members, [server for _, server in found], terms, now)
        if best is not None:
            return best
    return None


def _standing(
    fleet: Fleet, members: tuple[UnitSpec, ...], server: str, terms: Terms
) -> Wait | Blocked | None:
    """Return what stands in the way on a server that could hold `members`, and has no place for it;
    None where it is out of the question."""
    opening = _opening(fleet, members, server, terms)
    if not isinstance(opening, Opening):
        return opening
    if not terms.evict:
        return Wait(f"{server} has no spare room")
    busy = slots.none_for(fleet, server, opening.units)
    if busy is not None:
        return Later(busy)
    while not opening.enough() and opening.next_rank() is not None:
        opening.take()
    return opening.refusal()


def _opening(
    fleet: Fleet, members: tuple[UnitSpec, ...], server: str, terms: Terms
) -> Opening | Wait | Blocked | None:
    """What would have to leave `server` for `members`, to be found; or what stands in the way. None
    where it is out of the question."""
    known = fleet.servers[server]
    if not known.accepting or shortage(fleet, members, known) is not None:
        return None
    unit = members[-1].unit
    claimed_by = fleet.wants.claims.get(server)
    if claimed_by is not None and claimed_by != unit:
        return Wait(f"{server} is kept for {claimed_by}, which has waited longer")
    here = fleet.replicas[server]
    missing = members
    if any(member.unit in here for member in members):
        for member in members:
            there = here.get(member.unit)
            if there is not None and (there.state in LEAVING or there.broken):
                return Wait(f"{member.unit} is still on its way out of {server}")
        if unit in here:
            return None
        missing = tuple(member for member in members if member.unit not in here)
    return victims.opening(fleet, server, members, missing, terms)


# --- without an eviction --------------------------------------------------------------------------


def _roomiest(
    fleet: Fleet, members: tuple[UnitSpec, ...], servers: Iterable[str], terms: Terms
) -> Place | None:
    """The place with the highest score on any of `servers` where nothing has to leave."""
    unit = members[-1].unit
    scored: list[tuple[float, str, Opening]] = []
    for server in servers:
        opening = _opening(fleet, members, server, terms)
        if isinstance(opening, Opening) and opening.undisturbed:
            scored.append((room_score(fleet, server, unit), server, opening))
    if not scored:
        return None
    score, server, opening = max(scored, key=lambda each: each[:2])
    return Place(server, opening.units, (), 0.5 + score / 2)


def _free(fleet: Fleet, server: str, unit: Unit) -> float:
    """Score the smallest free share of anything budgeted."""
    return fleet.accounts[server].free_share(fleet.servers[server])


def _quiet(fleet: Fleet, server: str, unit: Unit) -> float:
    """Score 1 / (1 + loads under way or queued on the host)."""
    return 1 / (1 + slots.busy(fleet, server))


def _apart(fleet: Fleet, server: str, unit: Unit) -> float:
    """Score 1 when no other copy is in the zone, 1/2 when one is, 0 when one is on the host."""
    others = fleet.where.get(unit)
    if not others:
        return 1.0
    if others & set(fleet.neighbours(server)):
        return 0.0
    zone = fleet.servers[server].labels.get("zone")
    shared = zone is not None and any(
        fleet.servers[other].labels.get("zone") == zone for other in others
    )
    return 0.5 if shared else 1.0


Score = Callable[[Fleet, str, Unit], float]

SCORES: Final[tuple[tuple[float, Score], ...]] = ((0.4, _free), (0.4, _quiet), (0.2, _apart))


def room_score(fleet: Fleet, server: str, unit: Unit) -> float:
    """How well `unit` does on a server where nothing has to leave for it: the weighted mean of
    `SCORES`, in [0, 1]."""
    return sum(weight * part(fleet, server, unit) for weight, part in SCORES)


# --- at the cost of others ------------------------------------------------------------------------


def _at_cost(
    fleet: Fleet,
    members: tuple[UnitSpec, ...],
    servers: Iterable[str],
    terms: Terms,
    now: float,
) -> Place | None:
    """The place whose dearest victim is worth least, on any of `servers`."""
    unit = members[-1].unit
    possible = [server for server in servers if slots.none_free(fleet, server) is None]

    def openings() -> Iterator[tuple[float, Opening]]:
        for rank, server in order.by_cost(fleet, possible, rooms.least(fleet, members)):
            if rank == INFINITY:
                return
            opening = _opening(fleet, members, server, terms)
            if not isinstance(opening, Opening):
                continue
            if slots.none_for(fleet, server, opening.units) is None:
                yield rank, opening

    if not fleet.where.get(unit):
        return _place(fleet, order.cheapest(fleet, openings(), now), now)
    found = list(openings())
    apart = {opening.server: _apart(fleet, opening.server, unit) for _, opening in found}
    for score in sorted(set(apart.values()), reverse=True):  # copies are kept apart
        equal = [each for each in found if apart[each[1].server] == score]
        chosen = order.cheapest(fleet, equal, now)
        if chosen is not None:
            return _place(fleet, chosen, now)
    return None


def _place(fleet: Fleet, opening: Opening | None, now: float) -> Place | None:
    if opening is None:
        return None
    score = order.score(fleet, opening.cost, now)
    return Place(opening.server, opening.units, opening.victims(), score, opening.cost)


# --- where there is none --------------------------------------------------------------------------


def shortage(fleet: Fleet, members: tuple[UnitSpec, ...], server: Server) -> str | None:
    """Return why `members` can never be on `server` together, or None where they can."""
    for member in members:
        if member.incomplete and not server.auto_complete:
            return f"{server.id} runs without auto-completion, and its config needs it"
        for label, value in member.required_labels.items() if member.required_labels else ():
            if server.labels.get(label) != value:
                has = server.labels.get(label)
                return f"{server.id} has {label}={has or 'nothing'} but it requires {label}={value}"
    if server.budget:
        sure = memory.total([certain(member, server.budget, fleet.limits) for member in members])
        if not memory.fits(sure, server.budget):
            over = memory.excess(sure, server.budget)
            limit = memory.text({r: server.budget[r] for r in over})
            return f"{server.id} has {limit} but it needs {memory.text({r: sure[r] for r in over})}"
    if server.max_models:
        wanted = sum(member.slots for member in members)
        if wanted > server.max_models:
            return (
                f"{server.id} holds {server.max_models} models at a time but it is made of {wanted}"
            )
    return None


def _why_not(
    fleet: Fleet, members: tuple[UnitSpec, ...], looked_at: Iterable[str], terms: Terms
) -> Decision:
    others: list[Wait | Blocked] = []
    for server in looked_at:
        found = _standing(fleet, members, server, terms)
        if isinstance(found, Later):
            return found
        if found is not None:
            others.append(found)
    for kind in (Wait, Blocked):
        for outcome in others:
            if isinstance(outcome, kind):
                return outcome
    shortages = {
        server.id: why
        for server in fleet.servers.values()
        if (why := shortage(fleet, members, server)) is not None
    }
    if fleet.servers and len(shortages) == len(fleet.servers):
        some = sorted(set(shortages.values()))[:5]
        return Never("; ".join(some) + ("; …" if len(set(shortages.values())) > 5 else ""))
    holding = members[-1].unit
    closed = [
        f"{server.id}: {server.draining or server.reason or server.health.value}"
        for server in fleet.servers.values()
        if server.id not in shortages and not server.accepting
    ]
    if any(server.accepting for server in fleet.servers.values() if server.id not in shortages):
        return Wait(f"every server that could hold {holding} holds it already")
    return Closed(", ".join(closed[:5]) or "no server is configured")


# --- for the roster -------------------------------------------------------------------------------


def room(fleet: Fleet, server: str) -> float:
    """How well a newcomer does on a server where nothing has to leave, wherever its copies are; 0.0
    where none may come."""
    if not fleet.servers[server].accepting:
        return 0.0
    account = fleet.accounts[server]
    return account.free_share(fleet.servers[server]) + 1 / (1 + account.busy)


def front(fleet: Fleet, server: str) -> float:
    """The rank of the next victim on a server; infinity where nothing may leave, and while no load
    could begin."""
    account = fleet.accounts[server]
    if not fleet.servers[server].accepting or account.busy >= fleet.limits.loads_per_server:
        return INFINITY
    return order.curve_of(fleet, server).lowest


def lowest(fleet: Fleet, server: str) -> float:
    """A rank that `front` is not below."""
    account = fleet.accounts[server]
    if not fleet.servers[server].accepting or account.busy >= fleet.limits.loads_per_server:
        return INFINITY
    return fleet.uses.orders[server].lowest()
