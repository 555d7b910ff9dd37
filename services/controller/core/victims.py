"""What has to leave a server for a newcomer.

The victims are chosen before any of them is touched: those that the policy ranks lowest, no more
than it takes, and none at all if the newcomer would not fit even then.
"""

from collections.abc import Iterator, Set
from dataclasses import dataclass
from typing import Final

from services.controller.core.entities import Replica, Unit, UnitSpec
from services.controller.core.events import Weighed
from services.controller.core.fleet import Fleet
from services.controller.core.memory import Memory
from services.controller.core.rooms import Room
from services.controller.core.states import LEAVING, OCCUPYING, State

FIRM: Final = frozenset({"pinned", "its minimum of copies"})
SHOWN: Final = 3  # replicas that were spared, in an explanation


@dataclass(frozen=True, slots=True)
class Wait:
    """The answer that room will come by itself: something is leaving, or a use lease will end."""

    reason: str


@dataclass(frozen=True, slots=True)
class Later(Wait):
    """The answer that room can be made, but not before a load could begin: until then everything
    stays where it serves."""


@dataclass(frozen=True, slots=True)
class Blocked:
    """The answer that only pinned or kept replicas stand in the way: waiting changes nothing."""

    reason: str


@dataclass(frozen=True, slots=True)
class Terms:
    """The limits of what may be evicted for a newcomer: nothing unless `evict`, and no replica that
    was used after `idle_since` (seconds of the engine's clock)."""

    evict: bool = True
    idle_since: float = float("inf")


Victims = tuple[Unit, ...]


class Opening:
    """What would have to leave a server for a newcomer, found step by step: what is worth least
    first, by the policy, beside what cannot be resident together with the newcomer at all."""

    __slots__ = (
        "_clashing",
        "_families",
        "_fleet",
        "_gone",
        "_next",
        "_room",
        "_wanted",
        "cost",
        "server",
        "units",
    )

    def __init__(
        self,
        fleet: Fleet,
        server: str,
        wanted: set[Unit],
        missing: tuple[UnitSpec, ...],
        clashing: set[Unit],
        terms: Terms,
    ) -> None:
        self.server = server
        #: What is to be loaded there, parts first.
        self.units = missing
        #: The rank of the dearest that leaves so far. What takes no room leaves with its parts.
        self.cost = float("-inf")
        self._fleet = fleet
        self._clashing = clashing
        self._gone = set(clashing)
        self._wanted = wanted
        self._room = Room(fleet, server, wanted, missing)
        uses, here = fleet.uses.on[server], fleet.replicas[server]
        for unit in clashing:
            self._room.free(unit)
            if here[unit].slots:
                self.cost = max(self.cost, uses[unit].rank)
        self._families = families(fleet, server, wanted | clashing, terms)
        self._next: tuple[float, frozenset[Unit]] | None = None

    @property
    def undisturbed(self) -> bool:
        """Return whether there is room and nothing has to leave."""
        return not self._gone and self._room.enough()

    def enough(self) -> bool:
        """Return whether there is room once everything that was taken so far has left."""
        return self._room.enough()

    def next_rank(self) -> float | None:
        """The rank of what would leave next; None where nothing else may leave."""
        if self._next is None:
            self._next = next(self._families, None)
        return self._next[0] if self._next is not None else None

    def take(self) -> None:
        """Have that leave, too."""
        assert self._next is not None
        rank, family = self._next
        self._next = None
        for unit in family - self._gone:
            self._room.free(unit)
        self._gone |= family
        self.cost = max(self.cost, rank)

    def victims(self) -> Victims:
        """The units that have to leave, ensembles before their parts: what was taken, without those
        that turn out to be able to stay, the dearest first."""
        if len(self._gone) - len(self._clashing) > 1:
            self._spare()
        return ensembles_first(self._fleet, self.server, self._gone)

    def _spare(self) -> None:
        # The last one taken may be so large that some before it can stay.
        uses, gone, room = self._fleet.uses.on[self.server], self._gone, self._room
        by_worth = sorted(gone - self._clashing, key=lambda u: (uses[u].rank, u), reverse=True)
        for unit in by_worth:
            if unit not in gone:
                continue
            with_parts = [
                other for other in gone if other == unit or _needs(self._fleet, unit, other)
            ]
            for part in with_parts:
                room.keep(part)
            if room.enough() and not self._clashing.intersection(with_parts):
                gone.difference_update(with_parts)
            else:
                for part in with_parts:
                    room.free(part)

    def refusal(self) -> Wait | Blocked:
        """The reason why all that may leave is not enough, and whether waiting can help."""
        wanted = self._wanted
        firm = [
            replica
            for unit, replica in self._fleet.replicas[self.server].items()
            if unit in wanted or _held(self._fleet, replica, FIRM)
        ]
        if self._room.fits_beside(firm):
            return Wait(f"everything on {self.server} is about to be used or about to leave")
        names = ", ".join(sorted(str(r.unit) for r in firm if r.unit not in wanted))
        taken = (
            f"what is kept there: {names}"
            if names
            else "its own parts, which are too large together"
        )
        return Blocked(f"the room on {self.server} is taken by {taken}")


def opening(
    fleet: Fleet,
    server: str,
    members: tuple[UnitSpec, ...],
    missing: tuple[UnitSpec, ...],
    terms: Terms,
) -> Opening | Wait | Blocked:
    """What would have to leave `server` for `missing`, to be found; or what stands in the way."""
    wanted = {member.unit for member in members}
    clashing = _clashing(fleet, server, wanted, missing)
    if not isinstance(clashing, set):
        return clashing
    if clashing:
        if not terms.evict:
            return Wait(f"{server} holds another version that cannot be beside it")
        if any(fleet.uses.on[server][unit].last_used > terms.idle_since for unit in clashing):
            return Wait(f"{server} holds another version that cannot be beside it, which is in use")
    return Opening(fleet, server, wanted, missing, clashing, terms)


def families(
    fleet: Fleet, server: str, excluded: Set[Unit], terms: Terms
) -> Iterator[tuple[float, frozenset[Unit]]]:
    """The families that can leave, with their ranks, the lowest first: a unit and all that need it
    there."""
    here, uses, known = fleet.replicas[server], fleet.uses.on[server], fleet.known
    for rank, unit in in_order(fleet, server):
        if unit in excluded or uses[unit].last_used > terms.idle_since:
            continue
        spec = known.specs.get(unit)
        if spec is not None and spec.ensemble:
            continue  # on its own it frees nothing
        if unit not in known.users:
            if fleet.protection(here[unit]) is None:
                yield rank, frozenset((unit,))
            continue
        family = frozenset(fleet.family(unit, server))
        if not family & excluded and all(may_leave(fleet, here[member]) for member in family):
            yield rank, family


def first_to_free(fleet: Fleet, server: str, over: Memory, terms: Terms) -> frozenset[Unit] | None:
    """The first family that can leave and takes some of what the server has too much of. "models"
    in `over` stands for the number of models."""
    here = fleet.replicas[server]
    for _, family in families(fleet, server, set(), terms):
        for unit in family:
            replica = here[unit]
            if (replica.slots and "models" in over) or any(map(replica.reserved.get, over)):
                return family
    return None


def in_order(fleet: Fleet, server: str) -> Iterator[tuple[float, Unit]]:
    """The READY replicas of `server` with their ranks, the lowest first."""
    here, uses = fleet.replicas[server], fleet.uses.on[server]

    def rank(unit: Unit) -> float | None:
        replica = here.get(unit)
        ready = replica is not None and replica.state is State.READY
        return uses[unit].rank if ready else None

    yield from fleet.uses.orders[server].walk(rank)


def may_leave(fleet: Fleet, replica: Replica) -> bool:
    return replica.state is State.READY and fleet.protection(replica) is None


def front(fleet: Fleet, server: str) -> float:
    """The rank of the first replica that may leave `server`; infinity when none may."""
    for rank, unit in in_order(fleet, server):
        if may_leave(fleet, fleet.replicas[server][unit]):
            return rank
    return float("inf")


def weighed(fleet: Fleet, server: str, victims: Victims, now: float) -> tuple[Weighed, ...]:
    """The numbers behind a choice, for the victims and for those that would have been next."""
    found: list[Weighed] = []
    left, spared = len(victims), 0
    for _, unit in in_order(fleet, server):
        evicted = unit in victims
        left -= evicted
        if evicted or spared < SHOWN:
            spared += not evicted
            found.append(Weighed(unit, evicted, numbers(fleet, fleet.replicas[server][unit], now)))
        elif not left:
            break
    return tuple(found)


def numbers(fleet: Fleet, replica: Replica, now: float) -> dict[str, float]:
    """The figures that the eviction policy weighs: seconds, bytes and counts."""
    use = fleet.uses.on[replica.key.server][replica.unit]
    return {
        "idle_seconds": max(0.0, now - use.last_used),
        "uses": use.uses,
        "bytes": float(sum(replica.reserved.values())),
        "reload_seconds": fleet.known.reload_seconds(replica.unit),
        "in_flight": float(use.in_flight),
        "rank": use.rank,
    }


def clashing_with(fleet: Fleet, server: str, spec: UnitSpec) -> Unit | None:
    """A version that occupies the server and cannot be resident beside `spec`, if there is one."""
    for replica, _ in _conflicts(fleet, server, spec):
        if replica.state in OCCUPYING:
            return replica.unit
    return None


def _conflicts(fleet: Fleet, server: str, spec: UnitSpec) -> Iterator[tuple[Replica, str]]:
    """The replicas on the server that cannot stay beside `spec`, and why.

    Versions of a model with different configs exclude each other: Triton would reload one for the
    other. So do a version that something there calls without naming it and a newer one, which would
    answer in its place."""
    unit = spec.unit
    for replica in fleet.of_model_on(unit.model, server):
        if replica.unit == unit:
            continue
        if replica.digest != spec.digest:
            yield replica, "has a different config"
        elif replica.unit.version < unit.version and fleet.callers(replica.unit, server):
            yield replica, f"is called without a version, and {unit} is newer"
    here = fleet.replicas[server]
    for other in fleet.known.versions.get(unit.model, ()):
        if other.version < unit.version and other not in here:
            for user in fleet.callers(other, server):
                yield here[user], f"calls {other} without a version, and {unit} is newer"
    for part in spec.unversioned:
        for replica in fleet.of_model_on(part.model, server):
            if replica.unit.version > part.version:
                yield replica, f"is newer than {part}, which {unit} calls without a version"


def _clashing(
    fleet: Fleet, server: str, wanted: set[Unit], missing: tuple[UnitSpec, ...]
) -> set[Unit] | Wait | Blocked:
    """The families that have to leave because they cannot be beside the newcomers."""
    gone: set[Unit] = set()
    here = fleet.replicas[server]
    for member in missing:
        for replica, conflict in _conflicts(fleet, server, member):
            if replica.unit in wanted or replica.state in LEAVING:
                continue
            family = fleet.family(replica.unit, server)
            busy: Wait | None = None
            for unit in sorted(family):
                why = fleet.protection(here[unit])
                if unit in wanted:
                    return Blocked(f"{unit} needs another version of the same model on {server}")
                if why in FIRM:
                    return Blocked(f"{unit} is kept on {server} ({why}) and {conflict}")
                if busy is None and (why is not None or here[unit].state is not State.READY):
                    busy = Wait(f"{unit} is {why or 'changing'} on {server}")
            if busy is not None:
                return busy
            gone |= family
    return gone


def _needs(fleet: Fleet, user: Unit, part: Unit) -> bool:
    """Return whether `part` has to stay where `user` stays."""
    spec = fleet.known.specs.get(user)
    if spec is None or not spec.requires:
        return False
    return any(member.unit == part for member in fleet.known.group(spec)[:-1])


def ensembles_first(fleet: Fleet, server: str, gone: set[Unit]) -> Victims:
    if len(gone) < 2:
        return tuple(gone)
    return tuple(sorted(gone, key=lambda unit: (len(fleet.holders(unit, server)), unit)))


def _held(fleet: Fleet, replica: Replica, reasons: frozenset[str]) -> bool:
    """Return whether a replica, or something that needs it on its server, is protected for one of
    `reasons`."""
    here = fleet.replicas[replica.key.server]
    family = fleet.family(replica.unit, replica.key.server)
    return any(fleet.protection(here[member]) in reasons for member in family)


def clears(fleet: Fleet, server: str, members: tuple[UnitSpec, ...]) -> bool:
    """Return whether there will be room for `members` once what is under way is over. A sequence
    counts as staying: it may last for any time."""
    here = fleet.replicas[server]
    wanted = {member.unit for member in members}
    lasting = FIRM | {"in use by a sequence"}
    stays = [r for unit, r in here.items() if unit not in wanted and _held(fleet, r, lasting)]
    return Room(fleet, server, set(), members).fits_beside(stays)
