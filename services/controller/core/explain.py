"""Explanations of why a unit is where it is, and why it is not elsewhere.

The answers come from the functions that the engine decides with, asked what they would do now.
Asking changes nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.controller.core import demand, memory, placement, placing, victims
from services.controller.core.copies import Pressure
from services.controller.core.entities import Replica, Unit, UnitSpec
from services.controller.core.failures import Failure
from services.controller.core.fleet import Fleet
from services.controller.core.placement import Closed, Never, Place
from services.controller.core.sizing import reservation
from services.controller.core.states import LEAVING, State
from services.controller.core.victims import Terms, Wait
from services.controller.core.waiting import Want


@dataclass(frozen=True, slots=True)
class Stay:
    """A replica, and what would have to happen for it to leave.

    `placed` says why it is on this server; `kept_by`, why it may not be evicted for another (empty
    where it may). `turn` is its turn to leave among the `candidates` that may leave the server now,
    1 for the first and 0 where it may not. `numbers` are what the eviction policy weighs, in bytes
    and seconds, with "idle_ttl_seconds" where it has one.
    """

    replica: Replica
    placed: str
    kept_by: tuple[str, ...]
    turn: int
    candidates: int
    numbers: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outlook for a unit on one server.

    Either it `holds` the unit already, in whatever state; or placing it there is `possible` after
    `victims` (ensembles first) are gone, with a `score` in [0, 1]; or neither. `reason` says what
    it would take, or what stands in the way.
    """

    server: str
    holds: bool
    possible: bool
    reason: str
    score: float = 0.0
    victims: tuple[Unit, ...] = ()


@dataclass(frozen=True, slots=True)
class Absence:
    """The reason why a unit is not READY, or on no more servers.

    `reason` is one sentence. `waiters` counts the callers that wait for the unit, or for something
    that it is a part of. `turn` is its turn among what waits for a place, 1 for the first and 0
    where it does not wait. `failure` is that of the unit, or of something that it requires, while
    it is not tried again. `verdicts` has every server, in the order in which they would be taken.
    """

    unit: Unit
    reason: str
    waiters: int
    turn: int
    failure: Failure | None
    verdicts: tuple[Verdict, ...]


# --- what is there --------------------------------------------------------------------------------


def why_resident(fleet: Fleet, unit: Unit, now: float) -> tuple[Stay, ...]:
    """Explain each replica of `unit`, in the order of their servers; empty where there is none."""
    return tuple(_stay(fleet, replica, now) for replica in fleet.everywhere(unit))


def _stay(fleet: Fleet, replica: Replica, now: float) -> Stay:
    turns = eviction_turns(fleet, replica.key.server)
    turn = turns.get(replica.unit, 0)
    numbers = victims.numbers(fleet, replica, now)
    spec = fleet.known.specs.get(replica.unit)
    ttl = fleet.limits.idle_ttl(spec) if spec is not None else fleet.limits.idle_ttl_seconds
    if ttl:
        numbers["idle_ttl_seconds"] = ttl
    kept_by = () if turn or replica.state is not State.READY else _kept_by(fleet, replica)
    return Stay(replica, replica.placed, kept_by, turn, len(turns), numbers)


def eviction_turns(fleet: Fleet, server: str) -> dict[Unit, int]:
    """The units that may leave `server` now, each with its turn: 1 for the first."""
    turns: dict[Unit, int] = {}
    for _, family in victims.families(fleet, server, set(), Terms()):
        for unit in victims.ensembles_first(fleet, server, set(family) - turns.keys()):
            turns[unit] = len(turns) + 1
    return turns


def _kept_by(fleet: Fleet, replica: Replica) -> tuple[str, ...]:
    server, unit = replica.key
    here = fleet.replicas[server]
    own = fleet.protection(replica)
    reasons = [own] if own is not None else []
    for user in sorted(fleet.holders(unit, server)):
        why = fleet.protection(here[user])
        if why is None and here[user].state is not State.READY:
            why = here[user].state.value
        if why is not None:
            reasons.append(f"needed by {user} ({why})")
    return tuple(reasons) or ("an ensemble takes no room: it leaves with one of its parts",)


# --- what is not ----------------------------------------------------------------------------------


def why_not_loaded(fleet: Fleet, unit: Unit, now: float) -> Absence:
    """Explain why `unit` is not READY, or on no more servers. Raises ModelNotFound or
    VersionNotFound for what the engine does not know."""
    spec = fleet.known.specs.get(unit)
    if spec is None:
        error = demand.hopeless(fleet, unit, now)
        assert error is not None
        raise error
    want = _want(fleet, unit)
    verdicts = _verdicts(fleet, spec, want, now)
    failed = _failed(fleet, spec, now)
    return Absence(
        unit,
        _reason(fleet, spec, want, verdicts, now),
        sum(len(fleet.wants.waiting.get(user, ())) for user in fleet.known.with_users(unit)),
        _turn(fleet, want),
        failed[1] if failed is not None else None,
        verdicts,
    )


def _want(fleet: Fleet, unit: Unit) -> Want | None:
    """The want for the unit itself, or else the most urgent for something that it is a part of."""
    by_unit = fleet.wants.by_unit
    if unit in by_unit:
        return by_unit[unit]
    users = fleet.known.with_users(unit)
    wants = [by_unit[user] for user in users if user in by_unit]
    return min(wants, key=fleet.wants.order, default=None)


def _turn(fleet: Fleet, want: Want | None) -> int:
    turn = fleet.wants.turns.get(want.unit) if want is not None else None
    return fleet.wants.unplaced.index(turn) + 1 if turn is not None else 0


def _failed(fleet: Fleet, spec: UnitSpec, now: float) -> tuple[Unit, Failure] | None:
    for member in fleet.known.group(spec):
        failure = demand.failing(fleet, member.unit, now)
        if failure is not None:
            return member.unit, failure
    return None


def _verdicts(fleet: Fleet, spec: UnitSpec, want: Want | None, now: float) -> tuple[Verdict, ...]:
    """The servers that hold it, then those that could, the best first, then the rest."""
    terms = placing.terms(fleet, want, now) if want is not None else Terms()
    found = [_verdict(fleet, spec, name, terms, now) for name in sorted(fleet.servers)]
    possible = [verdict for verdict in found if verdict.possible]
    possible.sort(key=lambda v: (not v.victims, v.score, v.server), reverse=True)
    holds = [verdict for verdict in found if verdict.holds]
    return (*holds, *possible, *(v for v in found if not v.possible and not v.holds))


def _verdict(fleet: Fleet, spec: UnitSpec, name: str, terms: Terms, now: float) -> Verdict:
    server, members = fleet.servers[name], fleet.known.group(spec)
    replica = fleet.replicas[name].get(spec.unit)
    if replica is not None:
        return Verdict(name, True, False, f"{replica.state.value}: {replica.reason}")
    if not server.accepting:
        return Verdict(name, False, False, server.draining or server.reason or server.health.value)
    short = placement.shortage(fleet, members, server)
    if short is not None:
        return Verdict(name, False, False, short)
    outcome = placement.on_server(fleet, members, name, terms, now)
    assert outcome is not None, "it is open, large enough, and does not hold it"
    if isinstance(outcome, Place):
        reason = _cost(fleet, outcome)
        return Verdict(name, False, True, reason, outcome.score, outcome.victims)
    return Verdict(name, False, False, outcome.reason)


def _cost(fleet: Fleet, choice: Place) -> str:
    budget = fleet.servers[choice.server].budget
    need = [reservation(member, budget, fleet.limits) for member in choice.units]
    return placement.reason(choice, memory.total(need))


# --- in one sentence ------------------------------------------------------------------------------


def _reason(
    fleet: Fleet, spec: UnitSpec, want: Want | None, verdicts: Sequence[Verdict], now: float
) -> str:
    unit = spec.unit
    if fleet.ready(unit):
        return _no_more(fleet, spec, want)
    failed = _failed(fleet, spec, now)
    if failed is not None:
        return _not_tried(unit, *failed, now)
    if want is not None:
        return _on_its_way(fleet, unit, want, now)
    leaving = [r for r in fleet.everywhere(unit) if r.state in LEAVING]
    if leaving:
        state = f"{unit} is {leaving[0].state.value} on {leaving[0].key.server}"
        return f"{state} ({leaving[0].reason}), and nothing asks for it"
    for replica in fleet.everywhere(unit):
        return f"{unit} is {replica.state.value} on {replica.key.server}: {replica.reason}"
    return f"nothing asks for {unit}; {_outlook(fleet, spec, verdicts, now)}"


def _no_more(fleet: Fleet, spec: UnitSpec, want: Want | None) -> str:
    unit, ready = spec.unit, fleet.ready(spec.unit)
    there = f"{unit} is READY on {', '.join(replica.key.server for replica in ready)}"
    if want is not None and want.unit == unit:
        return f"{there}; another copy is wanted ({want.why}): {want.status}"
    most = fleet.limits.most_copies(spec)
    if len(ready) >= most:
        return f"{there}, as many as it may have (max_copies {most})"
    limits, pressure = fleet.limits, fleet.pressures.by_unit.get(unit) or Pressure(0.0)
    return (
        f"{there}; another copy is loaded after {limits.copy_up_seconds:g} s with more than "
        f"{limits.copy_in_flight:g} requests in flight on each "
        f"({pressure.in_flight / len(ready):.1f} now) or more than "
        f"{limits.copy_queue_seconds * 1000:.0f} ms in its queue "
        f"({pressure.queue * 1000:.0f} ms now)"
    )


def _not_tried(unit: Unit, member: Unit, failure: Failure, now: float) -> str:
    what = str(unit) if member == unit else f"{unit} requires {member}, which"
    wait = f"for {max(0.0, failure.until - now):.0f} s"
    if failure.set_aside:
        return f"{what} is set aside {wait}: {failure.cause}"
    times = f", {failure.count} times in a row" if failure.count > 1 else ""
    return (
        f"{what} could not be loaded on {failure.server}{times}, and is not tried again {wait}: "
        f"{failure.cause}"
    )


def _on_its_way(fleet: Fleet, unit: Unit, want: Want, now: float) -> str:
    asked = f"{unit} is wanted ({want.why})"
    if want.unit != unit:
        asked = f"{unit} is a part of {want.unit}, which is wanted ({want.why})"
    replica = fleet.replicas[want.server].get(unit) if want.server is not None else None
    if replica is not None and replica.state is State.LOADING:
        seconds = fleet.known.specs[unit].load_seconds
        takes = f", which takes about {seconds:.1f} s" if seconds is not None else ""
        return f"{asked} and loading on {want.server} for {now - replica.since:.1f} s{takes}"
    if replica is not None and replica.state is State.QUEUED:
        return f"{asked} and has a place on {want.server}: {replica.reason}"
    turn, queue = _turn(fleet, want), len(fleet.wants.unplaced)
    if turn:
        return f"{asked} and waits for a place, turn {turn} of {queue}: {want.status}"
    return f"{asked}: {want.status}"


def _outlook(fleet: Fleet, spec: UnitSpec, verdicts: Sequence[Verdict], now: float) -> str:
    """Return what would become of a request, in words."""
    for verdict in verdicts:
        if verdict.possible:
            return f"a request would load it: {verdict.reason}"
    decision = placement.place(fleet, spec, Terms(), now)
    assert not isinstance(decision, Place), "it is possible on none"
    if isinstance(decision, Never):
        return f"no server can hold it: {decision.reason}"
    if isinstance(decision, Closed):
        return f"no server takes it: {decision.reason}"
    if isinstance(decision, Wait):
        return f"a request would wait: {decision.reason}"
    return f"a request would be refused: {decision.reason}"
