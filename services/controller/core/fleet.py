"""The state of residency: what is known of every server, replica, Router and waiter.

The containers change, the values in them are immutable and replaced. Only `put`, `move` and
`remove` touch a replica, so every move goes through the table in `states.py`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Final

from services.controller.core import events as ev
from services.controller.core import memory, residents
from services.controller.core.entities import Limits, Replica, ReplicaKey, Server, Unit, UnitSpec
from services.controller.core.memory import Memory
from services.controller.core.residents import PINNED, ServerView
from services.controller.core.routers import Drain, RouterView, UseLease
from services.controller.core.states import APPLIED, CHANGING, Cause, State, after
from services.controller.core.waiting import Want


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a unit could not be loaded, and until when it is not tried again."""

    server: str
    cause: str
    until: float
    count: int


@dataclass(frozen=True, slots=True)
class Eviction:
    """Somebody waits until these replicas are gone."""

    waiter: int
    keys: tuple[ReplicaKey, ...]


class Fleet:
    """`unload_from`: nothing is unloaded earlier. `healthy_at`: when a server was last healthy.
    `departed`: when a replica was last removed, kept for a while. `out`: instructions so far."""

    def __init__(self, limits: Limits, now: float, unload_from: float) -> None:
        self.limits: Final = limits
        self.unload_from: Final = unload_from
        self.healthy_at = now
        self.revision = 0
        self.attempt = 0
        self.lease = 0
        self.specs: dict[Unit, UnitSpec] = {}
        self.pinned: set[Unit] = set()
        self.servers: dict[str, Server] = {}
        self.replicas: dict[str, dict[Unit, Replica]] = {}
        self.wants: dict[Unit, Want] = {}
        self.failures: dict[Unit, Failure] = {}
        self.routers: dict[str, RouterView] = {}
        self.drains: dict[ReplicaKey, Drain] = {}
        self.use_leases: dict[ReplicaKey, dict[str, UseLease]] = {}
        self.evictions: dict[int, Eviction] = {}
        self.departed: dict[ReplicaKey, float] = {}
        self.out: list[ev.Instruction] = []

    def replica(self, key: ReplicaKey) -> Replica | None:
        return self.replicas.get(key.server, {}).get(key.unit)

    def ready(self, unit: Unit) -> list[Replica]:
        """The replicas of `unit` that answer."""
        found = (self.replicas[server].get(unit) for server in sorted(self.replicas))
        return [r for r in found if r is not None and r.state is State.READY]

    def occupied(self, server: str) -> Memory:
        """Bytes reserved by what the server holds now."""
        return residents.reserved(residents.occupied(self.replicas[server]))

    def status(self, unit: Unit) -> str:
        """Why `unit` is not READY anywhere, for people; empty when it is."""
        if self.ready(unit):
            return ""
        if unit in self.wants:
            return self.wants[unit].status
        if unit in self.failures:
            return f"load failed: {self.failures[unit].cause}"
        for found in self.replicas.values():
            if unit in found:
                return found[unit].state.value
        return "not resident; loaded when it is asked for"

    def put(self, replica: Replica) -> None:
        self.replicas[replica.key.server][replica.unit] = replica

    def move(self, replica: Replica, cause: Cause, reason: str, now: float) -> Replica:
        moved = replace(replica, state=after(replica.state, cause), reason=reason, since=now)
        self.put(moved)
        return moved

    def remove(self, replica: Replica, cause: Cause, now: float) -> None:
        assert after(replica.state, cause) is State.ABSENT
        if replica.state is State.READY:
            self.learn(replica)
            self.publish((replica.unit.model,))
        self.drains.pop(replica.key, None)
        self.use_leases.pop(replica.key, None)
        self.departed[replica.key] = now
        del self.replicas[replica.key.server][replica.unit]

    def publish(self, models: Iterable[str], servers: Iterable[str] = ()) -> None:
        self.revision += 1
        self.out.append(ev.Publish(self.revision, frozenset(models), frozenset(servers)))

    def record(self, kind: ev.Kind, reason: str, **about: Any) -> None:
        self.out.append(ev.Record(kind, reason, **about))

    def at(self, key: ReplicaKey, attempt: int, state: State) -> Replica | None:
        """The replica that an outcome is about, or None where it is about a former one."""
        replica = self.replica(key)
        if replica is None or replica.attempt != attempt or replica.state is not state:
            return None
        return replica

    def changing(self, key: ReplicaKey) -> bool:
        """Whether the server is at work on the same model: it takes one call about it at a time."""
        return any(
            replica.state in CHANGING and unit.model == key.unit.model
            for unit, replica in self.replicas[key.server].items()
        )

    def applied(self, key: ReplicaKey) -> tuple[int, ...]:
        """The other versions of the unit's model that the server holds and shall go on holding."""
        return tuple(
            sorted(
                unit.version
                for unit, replica in self.replicas[key.server].items()
                if unit.model == key.unit.model and unit != key.unit and replica.state in APPLIED
            )
        )

    def view(self, server: Server) -> ServerView:
        here = self.replicas.get(server.id, {})
        protected: dict[Unit, str] = {}
        for unit in here:
            if ReplicaKey(server.id, unit) in self.use_leases:
                protected[unit] = "about to be used"
        for unit in here:
            spec = self.specs.get(unit)
            if spec is not None and spec.pinned:
                for member in residents.group(spec, self.specs):
                    protected[member.unit] = PINNED
        return ServerView(server, here, protected)

    def touch(self, key: ReplicaKey, used: float) -> None:
        """An ensemble's use is a use of its parts."""
        here = self.replicas[key.server]
        spec = self.specs.get(key.unit)
        members = residents.group(spec, self.specs) if spec is not None else ()
        for unit in {key.unit, *(member.unit for member in members)}:
            replica = here.get(unit)
            if replica is not None and used > replica.last_used:
                self.put(replace(replica, last_used=used))

    def learn(self, replica: Replica) -> None:
        spec = self.specs.get(replica.unit)
        if spec is None or spec.ensemble:
            return
        learned = memory.highest(spec.learned, replica.measured)
        seconds = replica.load_seconds or spec.load_seconds
        if learned == spec.learned and seconds == spec.load_seconds:
            return
        self.specs[replica.unit] = replace(spec, learned=learned, load_seconds=seconds)
        self.out.append(ev.Learned(replica.unit, spec.config_digest, learned, seconds))
