"""The state of residency: what is known of every server, replica, Router and waiter.

The containers change, the values in them are immutable and replaced. Only `put`, `move` and
`remove` touch a replica, so every move goes through the table in `states.py`, and what is added up
of them (accounts, indexes) is kept right in one place.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from services.controller.core import events as ev
from services.controller.core import memory
from services.controller.core.accounts import Account
from services.controller.core.blame import Break
from services.controller.core.copies import Pressure
from services.controller.core.entities import Replica, ReplicaKey, Server, Unit, UnitSpec, Use
from services.controller.core.limits import Limits
from services.controller.core.prediction import Patterns
from services.controller.core.ranking import POLICIES, RELOAD_SECONDS, Order
from services.controller.core.roster import Roster
from services.controller.core.routers import Drain, RouterView
from services.controller.core.states import APPLIED, CHANGING, COMING, Cause, State, after
from services.controller.core.timers import Timers
from services.controller.core.waiting import Waiter, Want

UNUSED: Final = Use(float("-inf"))
VISIT_SECONDS: Final = 10.0  # uses of a replica that follow closer are not looked at one by one


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a unit could not be loaded, or is set aside, and until when it is not tried again."""

    server: str
    cause: str
    until: float
    count: int
    set_aside: bool = False


class Fleet:
    """`unload_from`: nothing is unloaded earlier. `by_age`: a rank is the time of the last use, and
    no more. `departed`: when a replica was last removed, kept for a while. `claims`: servers that
    are kept for a unit that waited long. `evictions`: what somebody wants gone, by who waits for
    it. `silent_at`: when a Router may have been silent for too long. `changed`, `fresh`, `arrived`,
    `displaced`: servers, wants, units, and replicas that are no more or leave, to be looked at
    before the present event is done with. `out`: instructions so far."""

    def __init__(self, limits: Limits, now: float, unload_from: float) -> None:
        self.limits: Final = limits
        self.rank: Final = POLICIES[limits.policy]
        self.by_age: Final = limits.policy == "lru"
        self.unload_from: Final = unload_from
        self.revision = 0
        self.attempt = 0
        self.lease = 0

        self.specs: dict[Unit, UnitSpec] = {}
        self.versions: dict[str, tuple[Unit, ...]] = {}
        self.users: dict[Unit, set[Unit]] = {}
        self.kept: set[Unit] = set()
        self.pinned: set[Unit] = set()
        self.own_ttl: set[Unit] = set()
        self.strangers: set[ReplicaKey] = set()

        self.servers: dict[str, Server] = {}
        self.hosts: dict[str, list[str]] = {}
        self.replicas: dict[str, dict[Unit, Replica]] = {}
        self.uses: dict[str, dict[Unit, Use]] = {}
        self.accounts: dict[str, Account] = {}
        self.orders: dict[str, Order] = {}
        self.clocks: dict[str, float] = {}
        self.roster = Roster()
        self.where: dict[Unit, set[str]] = {}
        self.of_model: dict[str, set[ReplicaKey]] = {}

        self.wants: dict[Unit, Want] = {}
        self.waiting: dict[Unit, dict[int, Waiter]] = {}
        self.asked: dict[int, Unit] = {}
        self.deadlines: list[tuple[float, int]] = []
        self.unplaced: list[tuple[float, Unit]] = []
        self.turns: dict[Unit, tuple[float, Unit]] = {}
        self.claims: dict[str, Unit] = {}
        self.failures: dict[Unit, Failure] = {}
        self.evictions: dict[int, tuple[ReplicaKey, ...]] = {}

        self.routers: dict[str, RouterView] = {}
        self.silent_at = float("-inf")
        self.drains: dict[ReplicaKey, Drain] = {}
        self.use_leases: dict[ReplicaKey, set[str]] = {}
        self.lease_ends: list[tuple[float, str]] = []
        self.lease_keys: dict[str, ReplicaKey] = {}
        self.departed: dict[ReplicaKey, float] = {}

        self.preload: set[Unit] = set()
        self.looked_after = 0
        self.retried = 0
        self.ticked = now
        self.pressures: dict[Unit, Pressure] = {}
        self.queues: dict[ReplicaKey, float] = {}
        self.breaks: list[Break] = []

        self.patterns = Patterns()
        self.wall = 0.0  # seconds since the epoch, when the engine's clock was at zero
        self.predicted: dict[ReplicaKey, float] = {}
        self.predictions = 0
        self.predictions_hit = 0

        self.changed: dict[str, None] = {}
        self.fresh: dict[Unit, None] = {}
        self.arrived: dict[Unit, None] = {}
        self.displaced: dict[ReplicaKey, None] = {}
        self.timers = Timers()
        self.out: list[ev.Instruction] = []

    # --- servers ----------------------------------------------------------------------------------

    def add_server(self, server: Server) -> None:
        self.servers[server.id] = server
        self.hosts.setdefault(server.host or server.id, []).append(server.id)
        self.replicas[server.id] = {}
        self.uses[server.id] = {}
        self.accounts[server.id] = Account()
        self.orders[server.id] = Order()
        self.clocks[server.id] = 0.0

    def put_server(self, server: Server) -> None:
        self.servers[server.id] = server
        self.changed[server.id] = None

    def neighbours(self, server: str) -> list[str]:
        """The servers on the same host, itself included."""
        return self.hosts[self.servers[server].host or server]

    def look_at_host(self, server: str) -> None:
        """Something has ended on the server: its host's loads are bounded together, so another may
        start on any server there."""
        for neighbour in self.neighbours(server):
            self.changed[neighbour] = None

    # --- replicas ---------------------------------------------------------------------------------

    def replica(self, key: ReplicaKey) -> Replica | None:
        here = self.replicas.get(key.server)
        return here.get(key.unit) if here is not None else None

    def use(self, key: ReplicaKey) -> Use:
        """How it was used last; `UNUSED` where it is not known."""
        here = self.uses.get(key.server)
        return here.get(key.unit, UNUSED) if here is not None else UNUSED

    def everywhere(self, unit: Unit) -> Iterator[Replica]:
        """Its replicas, in the order of their servers."""
        return (self.replicas[server][unit] for server in sorted(self.where.get(unit, ())))

    def ready(self, unit: Unit) -> list[Replica]:
        """The replicas of `unit` that answer."""
        return [replica for replica in self.everywhere(unit) if replica.state is State.READY]

    def of_model_on(self, model: str, server: str) -> Iterator[Replica]:
        here = self.replicas[server]
        return (here[key.unit] for key in self.of_model.get(model, ()) if key.server == server)

    def put(self, replica: Replica) -> None:
        server, unit = replica.key
        here, account = self.replicas[server], self.accounts[server]
        before = here.get(unit)
        if before is None:
            self.where.setdefault(unit, set()).add(server)
            self.of_model.setdefault(unit.model, set()).add(replica.key)
        else:
            account.add(before, -1)
            if before.state in COMING and replica.state not in COMING:
                self.displaced[replica.key] = None
        account.add(replica, 1)
        here[unit] = replica
        self.changed[server] = None
        if replica.state is State.READY and (before is None or before.state is not State.READY):
            self.arrived[unit] = None
            self.orders[server].push(self.uses[server][unit].rank, unit)

    def move(self, replica: Replica, cause: Cause, reason: str, now: float, **more: Any) -> Replica:
        """`more`: other fields that change with the state."""
        state = after(replica.state, cause)
        moved = replica._replace(state=state, reason=reason, since=now, **more)
        self.put(moved)
        return moved

    def remove(self, replica: Replica, cause: Cause, now: float) -> None:
        assert after(replica.state, cause) is State.ABSENT
        key = replica.key
        server, unit = key
        if replica.state is State.READY:
            self.learn(replica)
            self.publish((unit.model,))
        self.drains.pop(key, None)
        self.use_leases.pop(key, None)
        self.predicted.pop(key, None)
        self.queues.pop(key, None)
        for name, view in self.routers.items():
            if key in view.in_use:
                in_use = {other: counts for other, counts in view.in_use.items() if other != key}
                self.routers[name] = replace(view, in_use=in_use)
        self.departed[key] = now
        self.displaced[key] = None
        self.accounts[server].add(replica, -1)
        del self.replicas[server][unit]
        self.uses[server].pop(unit, None)
        _discard(self.where, unit, server)
        _discard(self.of_model, unit.model, key)
        self.look_at_host(server)

    def at(self, key: ReplicaKey, attempt: int, state: State) -> Replica | None:
        """The replica that an outcome is about, or None where it is about a former one."""
        replica = self.replica(key)
        if replica is None or replica.attempt != attempt or replica.state is not state:
            return None
        return replica

    def changing(self, key: ReplicaKey) -> bool:
        """Whether the server is at work on the same model: it takes one call about it at a time."""
        return any(r.state in CHANGING for r in self.of_model_on(key.unit.model, key.server))

    def applied(self, key: ReplicaKey) -> tuple[int, ...]:
        """The other versions of the unit's model that the server holds and shall go on holding."""
        return tuple(
            sorted(
                replica.unit.version
                for replica in self.of_model_on(key.unit.model, key.server)
                if replica.unit != key.unit and replica.state in APPLIED
            )
        )

    # --- use --------------------------------------------------------------------------------------

    def share(self, replica: Replica) -> float:
        """The largest share of anything budgeted on its server that it takes."""
        server = self.servers[replica.key.server]
        shares = [replica.reserved.get(name, 0) / size for name, size in server.budget.items()]
        if server.max_models:
            shares.append(replica.slots / server.max_models)
        return max(shares, default=1.0)

    def reload_seconds(self, unit: Unit) -> float:
        spec = self.specs.get(unit)
        known = spec.load_seconds if spec is not None else None
        return RELOAD_SECONDS if known is None else known

    def touch(self, key: ReplicaKey, used: float, requests: int) -> None:
        """`requests` of a replica, the last at `used`. An ensemble's use is a use of its parts."""
        server, unit = key
        here = self.replicas[server]
        if requests and self.limits.predict:
            self._note_use(key, used)
        self._touch(here.get(unit), used, requests)
        spec = self.specs.get(unit)
        if spec is not None and spec.requires:
            for part in self.group(spec)[:-1]:
                self._touch(here.get(part.unit), used, requests)

    def _note_use(self, key: ReplicaKey, used: float) -> None:
        if self.predicted.pop(key, None) is not None:
            self.predictions_hit += 1
        if self.wall and used - self.use(key).last_used > VISIT_SECONDS:
            self.patterns.used(key.unit, self.wall + used)

    def _touch(self, replica: Replica | None, used: float, requests: int) -> None:
        if replica is None:
            return
        server, unit = replica.key
        before = self.uses[server][unit]
        last = max(used, before.last_used)
        faded: float = before.uses * 0.5 ** (
            (last - before.last_used) / self.limits.half_life_seconds
        )
        uses = faded + requests
        rank = last if self.by_age else self.rank_of(replica, last, uses)
        self.uses[server][unit] = before._replace(last_used=last, uses=uses, rank=rank)
        if rank < before.rank and replica.state is State.READY:
            self.orders[server].push(rank, unit)

    def start_use(self, replica: Replica, now: float) -> None:
        """A load counts as a use."""
        server, unit = replica.key
        before = self.uses[server].get(unit, UNUSED)
        rank = self.rank_of(replica, now, 1.0)
        self.uses[server][unit] = before._replace(last_used=now, uses=1.0, rank=rank)

    def rank_of(self, replica: Replica, last_used: float, uses: float) -> float:
        server, unit = replica.key
        reload = self.reload_seconds(unit)
        return self.rank(last_used, uses, reload, self.share(replica), self.clocks[server])

    # --- the catalogue ----------------------------------------------------------------------------

    def group(self, spec: UnitSpec) -> tuple[UnitSpec, ...]:
        """The unit and all that it requires, parts first, each once. Unknown parts are left out."""
        if not spec.requires:
            return (spec,)
        found: dict[Unit, UnitSpec] = {}
        seen: set[Unit] = set()

        def visit(member: UnitSpec) -> None:
            seen.add(member.unit)
            for part in member.requires:
                if part not in seen and part in self.specs:
                    visit(self.specs[part])
            found[member.unit] = member

        visit(spec)
        return tuple(found.values())

    def holders(self, unit: Unit, server: str) -> set[Unit]:
        """What is on the server and needs `unit` there, directly or through others."""
        if unit not in self.users:
            return set()
        here = self.replicas[server]
        found: set[Unit] = set()
        open_ = [unit]
        while open_:
            for user in self.users.get(open_.pop(), ()):
                if user in here and user not in found:
                    found.add(user)
                    open_.append(user)
        return found

    def family(self, unit: Unit, server: str) -> set[Unit]:
        """What has to leave the server when `unit` does: itself and all that need it there."""
        return {unit, *self.holders(unit, server)}

    def protection(self, replica: Replica) -> str | None:
        """Why a replica may not be evicted for another, or None where it may."""
        key = replica.key
        unit = key.unit
        if unit in self.pinned:
            return "pinned"
        if unit in self.kept and len(self.ready(unit)) <= self.specs[unit].min_copies:
            return "its minimum of copies"
        if key in self.use_leases:
            return "about to be used"
        if self.uses[key.server][unit].sequences:
            return "in use by a sequence"
        return None

    def status(self, unit: Unit) -> str:
        """Why `unit` is not READY anywhere, for people; empty when it is."""
        if self.ready(unit):
            return ""
        if unit in self.wants:
            return self.wants[unit].status
        if unit in self.failures:
            return f"load failed: {self.failures[unit].cause}"
        for replica in self.everywhere(unit):
            return replica.state.value
        return "not resident; loaded when it is asked for"

    def learn(self, replica: Replica) -> None:
        spec = self.specs.get(replica.unit)
        if spec is None or spec.ensemble:
            return
        learned = memory.highest(spec.learned, replica.measured)
        if learned != spec.learned:
            self._learned(replace(spec, learned=learned))

    def learn_load(self, unit: Unit, seconds: float) -> None:
        """A quicker load counts at once; a slower one, which may have had to share the machine,
        moves what is expected by a third."""
        spec = self.specs.get(unit)
        if spec is None or spec.ensemble:
            return
        known = spec.load_seconds
        if known is not None and seconds > known:
            seconds = known + (seconds - known) / 3
        if seconds != known:
            self._learned(replace(spec, load_seconds=seconds))

    def _learned(self, spec: UnitSpec) -> None:
        self.specs[spec.unit] = spec
        self.out.append(ev.Learned(spec.unit, spec.config_digest, spec.learned, spec.load_seconds))

    # --- what is told -----------------------------------------------------------------------------

    def publish(self, models: Iterable[str], servers: Iterable[str] = ()) -> None:
        self.revision += 1
        self.out.append(ev.Publish(self.revision, frozenset(models), frozenset(servers)))

    def record(self, kind: ev.Kind, reason: str, **about: Any) -> None:
        self.out.append(ev.Record(kind, reason, **about))


def _discard(index: dict[Any, set[Any]], key: object, value: object) -> None:
    values = index[key]
    values.discard(value)
    if not values:
        del index[key]
