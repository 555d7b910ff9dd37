"""What has to leave a server for a newcomer.

The victims are chosen before any of them is touched: the least recently used that free enough, and
none at all when the newcomer would not fit even then.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from services.controller.core import memory
from services.controller.core.entities import Limits, Replica, Unit, UnitSpec, reservation
from services.controller.core.memory import Memory
from services.controller.core.residents import (
    PINNED,
    ServerView,
    Specs,
    clashes,
    holders,
    reserved,
    slots_used,
)
from services.controller.core.states import State


@dataclass(frozen=True, slots=True)
class Wait:
    """Room will come by itself: something is on its way out, or its use lease will end."""

    reason: str


@dataclass(frozen=True, slots=True)
class Blocked:
    """Only pinned or held replicas stand in the way: nothing will change by waiting."""

    reason: str


def choose(
    members: tuple[UnitSpec, ...],
    missing: tuple[UnitSpec, ...],
    view: ServerView,
    specs: Specs,
    limits: Limits,
) -> tuple[Unit, ...] | Wait | Blocked:
    """The units that have to leave `view` for `missing`; ensembles before their parts."""
    wanted = {member.unit for member in members}
    room = _Room(wanted, missing, view, specs, limits)
    gone: set[Unit] = set()

    # Versions of one model that differ in config can't be resident side by side: Triton would
    # reload the one for the other.
    for replica in view.replicas.values():
        clash = clashes(replica.unit, missing, specs)
        if clash and replica.unit not in wanted:
            kin = {replica.unit, *holders(replica.unit, view.replicas, specs)}
            refusal = _refusal(kin, wanted, view)
            if refusal is not None:
                return refusal
            gone |= kin

    if not room.enough(gone):
        clashing = frozenset(gone)
        for family in families(wanted | gone, view, specs):
            gone |= family
            if room.enough(gone):
                break
        else:
            return room.refusal(wanted)
        spared = sorted(gone - clashing, key=lambda unit: (view.replicas[unit].last_used, unit))
        for unit in reversed(spared):  # the most recently used stay where they can
            rest = gone - {unit, *_parts(unit, gone, view, specs)}
            if room.enough(rest):
                gone = rest
    return ensembles_first(gone, view, specs)


class _Room:
    """Whether a server's budget and slots hold the newcomers once some replicas are gone."""

    def __init__(
        self,
        wanted: set[Unit],
        missing: tuple[UnitSpec, ...],
        view: ServerView,
        specs: Specs,
        limits: Limits,
    ) -> None:
        self._view = view
        self._specs = specs
        self._need = _need(wanted, missing, view, limits)
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
            names = ", ".join(sorted(str(r.unit) for r in firm if r.unit not in wanted))
            taken = f"what is pinned: {names}" if names else "its own parts, larger than expected"
            return Blocked(f"on {server.id} the room is taken by {taken}")
        return Wait(f"everything on {server.id} is about to be used or about to leave")


def _need(
    wanted: set[Unit], missing: tuple[UnitSpec, ...], view: ServerView, limits: Limits
) -> Memory:
    """What `missing` is to have room for. Guesses that add up to more than there is, beside those
    of `wanted` that are there already, are cut: the parts load one by one, and are measured."""
    budget = view.server.budget
    total = memory.total(reservation(member, budget, limits) for member in missing)
    certain = memory.total(
        reservation(member, budget, limits) for member in missing if member.size_known
    )
    there = reserved(replica for unit, replica in view.replicas.items() if unit in wanted)
    most = {name: limit - there.get(name, 0) for name, limit in budget.items()}
    cut = {name: min(amount, most.get(name, amount)) for name, amount in total.items()}
    return memory.highest(cut, certain)


def _refusal(family: set[Unit], wanted: set[Unit], view: ServerView) -> Wait | Blocked | None:
    for unit in sorted(family):
        if unit in wanted:
            return Blocked(f"{unit} needs another version of the same model on {view.server.id}")
        if view.protected.get(unit) == PINNED:
            return Blocked(f"{unit} is pinned on {view.server.id} and has another config")
    for unit in sorted(family):
        if unit in view.protected or view.replicas[unit].state is not State.READY:
            return Wait(f"{unit} is {view.protected.get(unit, 'changing')} on {view.server.id}")
    return None


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


def _parts(unit: Unit, among: Iterable[Unit], view: ServerView, specs: Specs) -> set[Unit]:
    """What of `among` has to stay where `unit` stays."""
    return {part for part in among if unit in holders(part, view.replicas, specs)}


def ensembles_first(gone: Iterable[Unit], view: ServerView, specs: Specs) -> tuple[Unit, ...]:
    return tuple(sorted(gone, key=lambda unit: (len(holders(unit, view.replicas, specs)), unit)))
