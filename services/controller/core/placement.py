"""The choice of a server for a unit: filter, then score in [0, 1], then pick.

Servers with room come before servers where something would have to leave.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from services.controller.core import memory, victims
from services.controller.core.entities import Server, Unit, UnitSpec
from services.controller.core.fleet import Fleet
from services.controller.core.roster import LOOK_AT_ALL, STEPS
from services.controller.core.sizing import certain
from services.controller.core.states import LEAVING
from services.controller.core.victims import Blocked, Terms, Wait


@dataclass(frozen=True, slots=True)
class Place:
    """The answer to put `units` (parts first) on `server`, after `victims` (ensembles first) are
    gone. `score` is in [0, 1]."""

    server: str
    units: tuple[UnitSpec, ...]
    victims: tuple[Unit, ...]
    score: float


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
            return Wait("the servers that could hold it are busy with other loads")
    best, others = _best(fleet, members, fleet.servers if only is None else only, terms, now)
    return best if best is not None else _why_not(fleet, members, others)


def _among_few(
    fleet: Fleet, members: tuple[UnitSpec, ...], terms: Terms, now: float
) -> Place | None:
    """The best of a few servers that are worth a look. More are looked at while none will do."""
    for count in STEPS:
        best, _ = _best(fleet, members, fleet.roster.roomy(count), terms, now)
        if best is not None and not best.victims:
            return best
        if terms.evict:
            cheap = fleet.roster.cheap(lambda server: victim_score(fleet, server), count)
            best, _ = _best(fleet, members, cheap, terms, now)
            if best is not None:
                return best
    return None


def _best(
    fleet: Fleet, members: tuple[UnitSpec, ...], servers: Iterable[str], terms: Terms, now: float
) -> tuple[Place | None, list[Wait | Blocked]]:
    placed: list[Place] = []
    others: list[Wait | Blocked] = []
    for server in servers:
        outcome = on_server(fleet, members, server, terms, now)
        if isinstance(outcome, Place):
            placed.append(outcome)
        elif isinstance(outcome, Wait | Blocked):
            others.append(outcome)
    if not placed:
        return None, others
    return max(placed, key=lambda place: (not place.victims, place.score, place.server)), others


def on_server(
    fleet: Fleet, members: tuple[UnitSpec, ...], server: str, terms: Terms, now: float
) -> Place | Wait | Blocked | None:
    """Return what `server` could do for `members`; None where it is out of the question."""
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
    chosen = victims.choose(fleet, server, members, missing, terms)
    if not isinstance(chosen, tuple):
        return chosen
    return Place(server, missing, chosen, score(fleet, server, members, chosen, now))


def reason(choice: Place, need: memory.Memory) -> str:
    """Return what a choice takes and at whose cost, for people: `ram 60 MiB on t0, after evicting
    b:1`."""
    after = (
        f", after evicting {', '.join(map(str, choice.victims))}"
        if choice.victims
        else ", which has room"
    )
    return f"{memory.text(need)} on {choice.server}{after}"


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
    fleet: Fleet, members: tuple[UnitSpec, ...], outcomes: list[Wait | Blocked]
) -> Decision:
    for kind in (Wait, Blocked):
        for outcome in outcomes:
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


# --- scores: each in [0, 1], 1 is best ------------------------------------------------------------


def _undisturbed(
    fleet: Fleet, server: str, members: tuple[UnitSpec, ...], leaving: tuple[Unit, ...], now: float
) -> float:
    """Score 1 when nothing has to leave, else 1 / (1 + victims)."""
    return 1 / (1 + len(leaving))


def _little_lost(
    fleet: Fleet, server: str, members: tuple[UnitSpec, ...], leaving: tuple[Unit, ...], now: float
) -> float:
    """Score how little the victims will be missed. With the policy "lru": how long the most
    recently used has been idle, 1/2 at a minute. With "gdsf": the seconds of loading that their
    recent uses would have cost, 1/2 at ten."""
    if not leaving:
        return 1.0
    uses = fleet.uses.on[server]
    if fleet.uses.by_age:
        idle = min(max(0.0, now - uses[unit].last_used) for unit in leaving)
        return idle / (idle + 60)
    lost = sum(uses[unit].uses * fleet.known.reload_seconds(unit) for unit in leaving)
    return 10 / (10 + lost)


def _free(
    fleet: Fleet, server: str, members: tuple[UnitSpec, ...], leaving: tuple[Unit, ...], now: float
) -> float:
    """Score the smallest free share of anything budgeted."""
    return fleet.accounts[server].free_share(fleet.servers[server])


def _quiet(
    fleet: Fleet, server: str, members: tuple[UnitSpec, ...], leaving: tuple[Unit, ...], now: float
) -> float:
    """Score 1 / (1 + loads under way or queued on the host)."""
    busy = sum(fleet.accounts[neighbour].busy for neighbour in fleet.neighbours(server))
    return 1 / (1 + busy)


def _apart(
    fleet: Fleet, server: str, members: tuple[UnitSpec, ...], leaving: tuple[Unit, ...], now: float
) -> float:
    """Score 1 when no other copy is in the zone, 1/2 when one is, 0 when one is on the host."""
    others = fleet.where.get(members[-1].unit)
    if not others:
        return 1.0
    if others & set(fleet.neighbours(server)):
        return 0.0
    zone = fleet.servers[server].labels.get("zone")
    shared = zone is not None and any(
        fleet.servers[other].labels.get("zone") == zone for other in others
    )
    return 0.5 if shared else 1.0


Score = Callable[[Fleet, str, tuple[UnitSpec, ...], tuple[Unit, ...], float], float]

SCORES: Final[tuple[tuple[float, Score], ...]] = (
    (0.25, _undisturbed),
    (0.25, _little_lost),
    (0.2, _free),
    (0.2, _quiet),
    (0.1, _apart),
)


def score(
    fleet: Fleet, server: str, members: tuple[UnitSpec, ...], leaving: tuple[Unit, ...], now: float
) -> float:
    """The weighted mean of `SCORES`, in [0, 1]."""
    return sum(weight * part(fleet, server, members, leaving, now) for weight, part in SCORES)


def room_score(fleet: Fleet, server: str) -> float:
    """How well a newcomer does on a server where nothing has to leave; 0.0 where none may come."""
    if not fleet.servers[server].accepting:
        return 0.0
    account = fleet.accounts[server]
    return account.free_share(fleet.servers[server]) + 1 / (1 + account.busy)


def victim_score(fleet: Fleet, server: str) -> float:
    """How much the next victim on a server matters; the lower, the better. Infinity where nothing
    may leave, and while the queue of loads is long: an old victim is not worth a long wait."""
    account = fleet.accounts[server]
    if not fleet.servers[server].accepting or account.busy >= 2 * fleet.limits.loads_per_server:
        return float("inf")
    return victims.front(fleet, server)
