"""The choice of what has to leave a server for a newcomer.

The victims are chosen before any of them is touched: those that the policy ranks lowest, no more
than it takes, and none at all if the newcomer would not fit even then.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from services.controller.core import memory
from services.controller.core.entities import Replica, Unit, UnitSpec
from services.controller.core.events import Weighed
from services.controller.core.fleet import Fleet
from services.controller.core.memory import Memory
from services.controller.core.sizing import reservation
from services.controller.core.states import LEAVING, OCCUPYING, State

FIRM: Final = frozenset({"pinned", "its minimum of copies"})
SHOWN: Final = 3  # replicas that were spared, in an explanation


@dataclass(frozen=True, slots=True)
class Wait:
    """The answer that room will come by itself: something is leaving, or a use lease will end."""

    reason: str


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


def choose(
    fleet: Fleet,
    server: str,
    members: tuple[UnitSpec, ...],
    missing: tuple[UnitSpec, ...],
    terms: Terms,
) -> Victims | Wait | Blocked:
    """The units that have to leave `server` for `missing`; ensembles before their parts."""
    wanted = {member.unit for member in members}
    clashing = _clashing(fleet, server, wanted, missing)
    if not isinstance(clashing, set):
        return clashing
    if any(fleet.uses.on[server][unit].last_used > terms.idle_since for unit in clashing):
        return Wait(f"{server} holds another version that cannot be beside it, which is in use")
    room = _Room(fleet, server, wanted, missing)
    gone = set(clashing)
    for unit in gone:
        room.free(unit)
    if not room.enough() and terms.evict:
        _evict_until_enough(fleet, server, wanted, gone, clashing, room, terms)
    if not room.enough():
        return room.refusal(wanted) if terms.evict else Wait(f"{server} has no spare room")
    if gone and not terms.evict:
        return Wait(f"{server} holds another version that cannot be beside it")
    return ensembles_first(fleet, server, gone)


def _evict_until_enough(
    fleet: Fleet,
    server: str,
    wanted: set[Unit],
    gone: set[Unit],
    clashing: set[Unit],
    room: "_Room",
    terms: Terms,
) -> None:
    for family in families(fleet, server, wanted | gone, terms):
        for unit in family - gone:
            room.free(unit)
        gone |= family
        if room.enough():
            break
    else:
        return
    # The last one taken may be so large that some before it can stay: most valuable first.
    uses = fleet.uses.on[server]
    for unit in sorted(gone - clashing, key=lambda u: (uses[u].rank, u), reverse=True):
        if unit not in gone:
            continue
        with_parts = [other for other in gone if other == unit or _needs(fleet, unit, other)]
        for part in with_parts:
            room.keep(part)
        if room.enough() and not clashing.intersection(with_parts):
            gone.difference_update(with_parts)
        else:
            for part in with_parts:
                room.free(part)


def families(
    fleet: Fleet, server: str, excluded: set[Unit], terms: Terms
) -> Iterator[frozenset[Unit]]:
    """The families that can leave, the lowest rank first: a unit and all that need it there."""
    here = fleet.replicas[server]
    for _, unit in in_order(fleet, server):
        if unit in excluded or fleet.uses.on[server][unit].last_used > terms.idle_since:
            continue
        spec = fleet.known.specs.get(unit)
        if spec is not None and spec.ensemble:
            continue  # on its own it frees nothing
        family = fleet.family(unit, server)
        if not family & excluded and all(may_leave(fleet, here[member]) for member in family):
            yield frozenset(family)


def first_to_free(fleet: Fleet, server: str, over: Memory, terms: Terms) -> frozenset[Unit] | None:
    """The first family that can leave and takes some of what the server has too much of. "models"
    in `over` stands for the number of models."""
    here = fleet.replicas[server]
    for family in families(fleet, server, set(), terms):
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
    """How much the next victim of `server` matters, over the server's clock; infinity when nothing
    there may leave."""
    for rank, unit in in_order(fleet, server):
        if may_leave(fleet, fleet.replicas[server][unit]):
            return rank - fleet.uses.clocks[server]
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


def clock_after(fleet: Fleet, server: str, weighed: tuple[Weighed, ...]) -> float:
    """The server's clock once the victims among `weighed` are evicted: their highest rank, but not
    above the rank of anything that could have left and stays, which would otherwise seem to matter
    less than nothing. With the policy "lru" a rank is a time, the same on all servers, and needs
    no clock."""
    if fleet.uses.by_age:
        return fleet.uses.clocks[server]
    here = fleet.replicas[server]
    evicted = [row.numbers["rank"] for row in weighed if row.evicted]
    spared = [
        row.numbers["rank"]
        for row in weighed
        if not row.evicted and may_leave(fleet, here[row.unit])
    ]
    highest = max(evicted, default=fleet.uses.clocks[server])
    return max(fleet.uses.clocks[server], min([highest, *spared]))


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


class _Room:
    """A count of whether a server has room for the newcomers, as replicas are counted out."""

    def __init__(
        self, fleet: Fleet, server: str, wanted: set[Unit], missing: tuple[UnitSpec, ...]
    ) -> None:
        self._fleet = fleet
        self._server = fleet.servers[server]
        self._here = fleet.replicas[server]
        self._slots = sum(member.slots for member in missing)
        account = fleet.accounts[server]
        self._need = _need(fleet, server, wanted, missing)
        planned, leaving, need = account.planned, account.leaving, self._need
        self._over = {
            name: planned.get(name, 0) - leaving.get(name, 0) + need.get(name, 0) - limit
            for name, limit in self._server.budget.items()
        }
        most = self._server.max_models
        self._slots_over = account.staying_slots + self._slots - most if most else 0

    def enough(self) -> bool:
        if self._slots_over > 0:
            return False
        for over in self._over.values():  # noqa: SIM110  all() takes twice as long
            if over > 0:
                return False
        return True

    def free(self, unit: Unit) -> None:
        self._count(unit, -1)

    def keep(self, unit: Unit) -> None:
        self._count(unit, 1)

    def _count(self, unit: Unit, sign: int) -> None:
        replica = self._here[unit]
        for name in self._over:
            self._over[name] += sign * replica.reserved.get(name, 0)
        if self._server.max_models:
            self._slots_over += sign * replica.slots

    def refusal(self, wanted: set[Unit]) -> Wait | Blocked:
        """The reason why all victims together are not enough, and whether waiting can help."""
        server = self._server
        firm = [
            replica
            for unit, replica in self._here.items()
            if unit in wanted or _held(self._fleet, replica, FIRM)
        ]
        room = memory.plus(memory.total(replica.reserved for replica in firm), self._need)
        slots = sum(replica.slots for replica in firm) + self._slots
        if not memory.fits(room, server.budget) or (
            server.max_models and slots > server.max_models
        ):
            names = ", ".join(sorted(str(r.unit) for r in firm if r.unit not in wanted))
            taken = (
                f"what is kept there: {names}"
                if names
                else "its own parts, which are too large together"
            )
            return Blocked(f"the room on {server.id} is taken by {taken}")
        return Wait(f"everything on {server.id} is about to be used or about to leave")


def _held(fleet: Fleet, replica: Replica, reasons: frozenset[str]) -> bool:
    """Return whether a replica, or something that needs it on its server, is protected for one of
    `reasons`."""
    here = fleet.replicas[replica.key.server]
    family = fleet.family(replica.unit, replica.key.server)
    return any(fleet.protection(here[member]) in reasons for member in family)


def clears(fleet: Fleet, server: str, members: tuple[UnitSpec, ...]) -> bool:
    """Return whether there will be room for `members` once what is under way is over. A sequence
    counts as staying: it may last for any time."""
    known, here = fleet.servers[server], fleet.replicas[server]
    wanted = {member.unit for member in members}
    lasting = FIRM | {"in use by a sequence"}
    stays = [r for unit, r in here.items() if unit not in wanted and _held(fleet, r, lasting)]
    need = _need(fleet, server, set(), members)
    slots = sum(replica.slots for replica in stays) + sum(member.slots for member in members)
    room = memory.plus(memory.total(replica.reserved for replica in stays), need)
    return memory.fits(room, known.budget) and not 0 < known.max_models < slots


def _need(fleet: Fleet, server: str, wanted: set[Unit], missing: tuple[UnitSpec, ...]) -> Memory:
    """Bytes that `missing` needs together. Where guesses add up to more than there is beside what
    `wanted` has there already, they are cut: the parts load one by one, and are measured."""
    budget, limits = fleet.servers[server].budget, fleet.limits
    if len(missing) == 1 and missing[0].size_known:
        return reservation(missing[0], budget, limits)
    total = memory.total([reservation(member, budget, limits) for member in missing])
    if all(member.size_known for member in missing):
        return total
    sure = memory.total(
        reservation(member, budget, limits) for member in missing if member.size_known
    )
    here = fleet.replicas[server]
    there = memory.total(here[unit].reserved for unit in wanted if unit in here)
    most = {name: limit - there.get(name, 0) for name, limit in budget.items()}
    cut = {name: min(amount, most.get(name, amount)) for name, amount in total.items()}
    return memory.highest(cut, sure)
