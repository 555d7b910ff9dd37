"""Where a unit goes, and what has to leave for it: filter, then score in [0, 1], then pick.

The victims are chosen before any of them is touched: the least recently used that free enough, and
none at all when the newcomer would not fit even then.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from services.controller.core import memory
from services.controller.core.entities import (
    Health,
    Limits,
    Replica,
    Replicas,
    Server,
    Unit,
    UnitSpec,
    reservation,
)
from services.controller.core.memory import Memory
from services.controller.core.states import OCCUPYING, State

Specs = Mapping[Unit, UnitSpec]


@dataclass(frozen=True, slots=True)
class ServerView:
    """A server with its replicas, and which of those may not be evicted now, with the reason."""

    server: Server
    replicas: Replicas
    protected: Mapping[Unit, str]


@dataclass(frozen=True, slots=True)
class Place:
    """Put `units` (parts first) on `server`, after `victims` (ensembles first) are gone."""

    server: str
    units: tuple[UnitSpec, ...]
    victims: tuple[Unit, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Room will come by itself: something is on its way out, or its use lease will end."""

    reason: str


@dataclass(frozen=True, slots=True)
class Blocked:
    """Only pinned or held replicas stand in the way: nothing will change by waiting."""

    reason: str


@dataclass(frozen=True, slots=True)
class Never:
    """No server could hold it even if it were empty."""

    reason: str


@dataclass(frozen=True, slots=True)
class NoServer:
    """No healthy server."""

    reason: str


Decision = Place | Wait | Blocked | Never | NoServer


def group(spec: UnitSpec, specs: Specs) -> tuple[UnitSpec, ...]:
    """The unit and all that it requires, parts first, each once. Unknown parts are left out."""
    found: dict[Unit, UnitSpec] = {}

    def visit(member: UnitSpec) -> None:
        for part in member.requires:
            if part not in found and part in specs and part != spec.unit:
                visit(specs[part])
        found.setdefault(member.unit, member)

    visit(spec)
    return tuple(found.values())


def holders(unit: Unit, replicas: Replicas, specs: Specs) -> frozenset[Unit]:
    """The replicas on the same server that need `unit` there, directly or through others."""
    found: set[Unit] = set()
    open_ = [unit]
    while open_:
        part = open_.pop()
        for other in replicas:
            if other not in found and other in specs and part in specs[other].requires:
                found.add(other)
                open_.append(other)
    return frozenset(found)


def reserved(replicas: Iterable[Replica]) -> Memory:
    """Bytes reserved by all of them, whatever their state."""
    return memory.total(replica.reserved for replica in replicas)


def slots_used(replicas: Iterable[Replica], specs: Specs) -> int:
    return sum(slots(replica.unit, specs) for replica in replicas)


def slots(unit: Unit, specs: Specs) -> int:
    """A unit that is no longer in the catalogue still takes a place until it is gone."""
    return specs[unit].slots if unit in specs else 1


def occupied(replicas: Replicas) -> Iterator[Replica]:
    return (replica for replica in replicas.values() if replica.state in OCCUPYING)


def place(
    spec: UnitSpec, views: Iterable[ServerView], specs: Specs, limits: Limits, now: float
) -> Decision:
    """Decide for one unit over all servers."""
    members = group(spec, specs)
    listed = list(views)
    healthy = [view for view in listed if view.server.health is Health.HEALTHY]
    possible = [view for view in listed if _shortage(members, view.server, limits) is None]
    if listed and not possible:
        return Never(
            "; ".join(
                sorted(
                    {
                        shortage
                        for view in listed
                        if (shortage := _shortage(members, view.server, limits)) is not None
                    }
                )
            )
        )
    if not healthy:
        return NoServer(
            ", ".join(
                f"{view.server.id} is {view.server.reason or view.server.health.value}"
                for view in listed
            )
            or "no server is configured"
        )
    outcomes = [
        _on_server(members, view, specs, limits)
        for view in possible
        if view.server.health is Health.HEALTHY
    ]
    placed = [
        (outcome, view)
        for outcome, view in zip(
            outcomes, (v for v in possible if v.server.health is Health.HEALTHY), strict=True
        )
        if isinstance(outcome, Place)
    ]
    if placed:
        best, _ = max(
            placed,
            key=lambda pair: (score(pair[0], pair[1], limits, now), pair[1].server.id),
        )
        return best
    waiting = [outcome for outcome in outcomes if isinstance(outcome, Wait)]
    if waiting:
        return waiting[0]
    blocked = [outcome for outcome in outcomes if isinstance(outcome, Blocked)]
    if blocked:
        return blocked[0]
    return Wait("the servers that could hold it are not healthy")


def _shortage(members: tuple[UnitSpec, ...], server: Server, limits: Limits) -> str | None:
    """Why `members` can never be on `server` together, or None where they can."""
    need = memory.total(reservation(member, server.budget, limits) for member in members)
    # A guess must not rule a unit out: only what was declared, learned or lies on disk does.
    certain = memory.total(
        reservation(member, server.budget, limits)
        if member.size_known
        else dict.fromkeys(server.budget, member.artifact_bytes)
        for member in members
    )
    over = memory.excess(certain, server.budget)
    if over:
        return (
            f"{server.id} has {memory.text({r: server.budget[r] for r in over})}, "
            f"it needs {memory.text({r: need.get(r, 0) for r in over})}"
        )
    wanted = sum(member.slots for member in members)
    if server.max_models and wanted > server.max_models:
        return f"{server.id} holds {server.max_models} models at a time, it is made of {wanted}"
    return None


def _on_server(
    members: tuple[UnitSpec, ...], view: ServerView, specs: Specs, limits: Limits
) -> Place | Wait | Blocked:
    leaving = [
        member.unit
        for member in members
        if member.unit in view.replicas
        and view.replicas[member.unit].state in (State.DRAINING, State.UNLOADING)
    ]
    if leaving:
        return Wait(f"{leaving[0]} is still on its way out of {view.server.id}")
    missing = tuple(member for member in members if member.unit not in view.replicas)
    chosen = _victims(members, missing, view, specs, limits)
    if not isinstance(chosen, tuple):
        return chosen
    need = memory.total(reservation(m, view.server.budget, limits) for m in missing)
    return Place(
        view.server.id,
        missing,
        chosen,
        f"{memory.text(need)} on {view.server.id}"
        + (f", after {', '.join(map(str, chosen))}" if chosen else ", which has room"),
    )


def _victims(
    members: tuple[UnitSpec, ...],
    missing: tuple[UnitSpec, ...],
    view: ServerView,
    specs: Specs,
    limits: Limits,
) -> tuple[Unit, ...] | Wait | Blocked:
    """The units that have to leave `view` for `missing`; ensembles before their parts."""
    wanted = {member.unit for member in members}
    room = _Room(missing, view, specs, limits)
    gone: set[Unit] = set()

    # Versions of one model that differ in config can't be resident side by side: Triton would
    # reload the one for the other.
    for replica in view.replicas.values():
        clash = _clash(replica.unit, missing, specs)
        if clash and replica.unit not in wanted:
            kin = {replica.unit, *holders(replica.unit, view.replicas, specs)}
            refusal = _refusal(kin, wanted, view)
            if refusal is not None:
                return refusal
            gone |= kin

    if not room.enough(gone):
        found = families(wanted | gone, view, specs)
        for family in found:
            gone |= family
            if room.enough(gone):
                break
        else:
            return room.refusal(wanted)
        for family in reversed(found):  # the most recently used stay where they can
            rest = gone.difference(family)
            if family <= gone and _closed(rest, view, specs) and room.enough(rest):
                gone = set(rest)
    return ensembles_first(gone, view, specs)


class _Room:
    """Whether a server's budget and slots hold the newcomers once some replicas are gone."""

    def __init__(
        self, missing: tuple[UnitSpec, ...], view: ServerView, specs: Specs, limits: Limits
    ) -> None:
        self._view = view
        self._specs = specs
        budget = view.server.budget
        self._need = memory.total(reservation(member, budget, limits) for member in missing)
        self._slots = sum(member.slots for member in missing)

    def enough(self, gone: Iterable[Unit]) -> bool:
        left = self._left(set(gone))
        server = self._view.server
        slots_free = (
            not server.max_models
            or slots_used(left, self._specs) + self._slots <= server.max_models
        )
        return slots_free and memory.fits(memory.plus(reserved(left), self._need), server.budget)

    def _left(self, gone: set[Unit]) -> list[Replica]:
        # What is on its way out already counts as gone: its memory is waited for, not asked twice.
        return [
            replica
            for unit, replica in self._view.replicas.items()
            if unit not in gone and replica.state not in (State.DRAINING, State.UNLOADING)
        ]

    def refusal(self, wanted: set[Unit]) -> Wait | Blocked:
        """Why not even all victims together are enough, and whether waiting can help."""
        view = self._view
        firm = [
            replica
            for unit, replica in view.replicas.items()
            if unit in wanted or view.protected.get(unit) == PINNED
        ]
        room = memory.plus(reserved(firm), self._need)
        server = view.server
        if not memory.fits(room, server.budget) or (
            server.max_models and slots_used(firm, self._specs) + self._slots > server.max_models
        ):
            names = ", ".join(str(replica.unit) for replica in firm if replica.unit not in wanted)
            return Blocked(f"on {server.id} the room is taken by what is pinned: {names}")
        return Wait(f"everything on {server.id} is about to be used or about to leave")


PINNED: Final = "pinned"


def _refusal(family: set[Unit], wanted: set[Unit], view: ServerView) -> Wait | Blocked | None:
    for unit in family:
        if unit in wanted:
            return Blocked(f"{unit} needs another version of the same model on {view.server.id}")
        if view.protected.get(unit) == PINNED:
            return Blocked(f"{unit} is pinned on {view.server.id} and has another config")
        if unit in view.protected or view.replicas[unit].state is not State.READY:
            return Wait(f"{unit} is {view.protected.get(unit, 'changing')} on {view.server.id}")
    return None


def _clash(unit: Unit, missing: tuple[UnitSpec, ...], specs: Specs) -> bool:
    return unit in specs and any(
        member.unit.model == unit.model
        and member.unit != unit
        and member.config_digest != specs[unit].config_digest
        for member in missing
    )


def families(excluded: set[Unit], view: ServerView, specs: Specs) -> list[frozenset[Unit]]:
    """What can leave together, least recently used first: a unit and all that need it here."""
    found: list[tuple[float, Unit, frozenset[Unit]]] = []
    for unit, replica in view.replicas.items():
        if replica.state is not State.READY or unit in excluded:
            continue
        family = frozenset({unit, *holders(unit, view.replicas, specs)})
        if family & excluded or any(
            member in view.protected or view.replicas[member].state is not State.READY
            for member in family
        ):
            continue
        last = max(view.replicas[member].last_used for member in family)
        found.append((last, unit, family))
    found.sort(key=lambda row: (row[0], row[1]))
    return [family for _, _, family in found]


def _closed(gone: set[Unit], view: ServerView, specs: Specs) -> bool:
    """Whether nothing stays that needs something of `gone`."""
    return all(holders(unit, view.replicas, specs) <= gone for unit in gone)


def ensembles_first(gone: Iterable[Unit], view: ServerView, specs: Specs) -> tuple[Unit, ...]:
    return tuple(sorted(gone, key=lambda unit: (len(holders(unit, view.replicas, specs)), unit)))


# --- scores: each in [0, 1], 1 is best ------------------------------------------------------------


def _undisturbed(choice: Place, view: ServerView, limits: Limits, now: float) -> float:
    """1 when nothing has to leave, else 1 / (1 + victims)."""
    return 1 / (1 + len(choice.victims))


def _victims_idle(choice: Place, view: ServerView, limits: Limits, now: float) -> float:
    """How long the most recently used victim has been idle: 1/2 at a minute."""
    if not choice.victims:
        return 1.0
    idle = min(max(0.0, now - view.replicas[unit].last_used) for unit in choice.victims)
    return idle / (idle + 60)


def _memory_free(choice: Place, view: ServerView, limits: Limits, now: float) -> float:
    """The least free share of any budgeted resource."""
    taken = reserved(view.replicas.values())
    shares = [1 - taken.get(r, 0) / limit for r, limit in view.server.budget.items() if limit]
    return min(1.0, max(0.0, min(shares, default=1.0)))


def _quiet(choice: Place, view: ServerView, limits: Limits, now: float) -> float:
    """1 / (1 + loads under way or queued)."""
    busy = (State.QUEUED, State.LOADING)
    return 1 / (1 + sum(replica.state in busy for replica in view.replicas.values()))


Score = Callable[[Place, ServerView, Limits, float], float]

SCORES: Final[tuple[tuple[float, Score], ...]] = (
    (0.4, _undisturbed),
    (0.2, _victims_idle),
    (0.2, _memory_free),
    (0.2, _quiet),
)


def score(choice: Place, view: ServerView, limits: Limits, now: float) -> float:
    """The weighted mean of `SCORES`, in [0, 1]."""
    return sum(weight * measure(choice, view, limits, now) for weight, measure in SCORES)
