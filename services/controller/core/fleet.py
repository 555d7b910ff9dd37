"""The state of residency: the servers and their replicas, and the owners of everything else.

Containers change; the values in them are immutable and replaced. Each container is changed by the
methods of its owner alone. In particular, only `put`, `amend`, `move` and `remove` touch a
replica, so every move goes through the table in `states.py`, and what is added up of replicas
(accounts, indexes) is kept right in one place.
"""

from collections.abc import Iterable, Iterator, Set
from dataclasses import replace
from typing import Any, Final

from services.controller.core import events as ev
from services.controller.core.accounts import Account
from services.controller.core.agenda import Agenda
from services.controller.core.copies import Pressures
from services.controller.core.curves import Curves
from services.controller.core.entities import Replica, ReplicaKey, Server, Unit, UnitSpec, Use
from services.controller.core.failures import Failures
from services.controller.core.habits import Habits
from services.controller.core.knowledge import Knowledge
from services.controller.core.limits import Limits
from services.controller.core.memory import Memory
from services.controller.core.roster import Roster
from services.controller.core.states import APPLIED, CHANGING, COMING, Cause, State, after
from services.controller.core.uses import UNUSED, Uses
from services.controller.core.wants import Wants
from services.controller.core.withdrawals import Withdrawals


class Fleet:
    """All state of the engine.

    `now`: seconds of the engine's clock. For `unload_from` and `followers`, see `Engine`.
    """

    def __init__(
        self,
        limits: Limits,
        now: float,
        unload_from: float,
        followers: Set[str] | None = None,
    ) -> None:
        #: The numbers that decide.
        self.limits: Final = limits
        #: The number of the newest table of placements.
        self.revision = 0
        #: The number of the newest load: it tells its outcome from that of an earlier one.
        self.attempt = 0
        #: Every server, by name.
        self.servers: dict[str, Server] = {}
        #: The servers of each host, by the host's name.
        self.hosts: dict[str, list[str]] = {}
        #: The replicas of each server.
        self.replicas: dict[str, dict[Unit, Replica]] = {}
        #: What the replicas of each server take, added up.
        self.accounts: dict[str, Account] = {}
        #: The servers that have a replica of each unit, in whatever state. Never empty.
        self.where: dict[Unit, set[str]] = {}
        #: The replicas of each model, all its versions. Never empty.
        self.of_model: dict[str, set[ReplicaKey]] = {}
        #: Replicas that were found READY and were not in the catalogue then.
        self.strangers: set[ReplicaKey] = set()
        #: When each replica was removed that was removed not long ago, in seconds of the engine's
        #: clock: an index read before may have it still.
        self.departed: dict[ReplicaKey, float] = {}
        #: Instructions of the present event so far.
        self.out: list[ev.Instruction] = []
        #: How many servers were looked after at ticks; says whose turn is next.
        self._looked_after = 0

        #: What is to be looked at again.
        self.agenda = Agenda()
        #: The catalogue, as far as it matters here.
        self.known = Knowledge()
        #: What is wanted, and who waits for it.
        self.wants = Wants(limits, self.known, self.agenda)
        #: The Routers, and what is being withdrawn from them.
        self.withdrawals = Withdrawals(limits, self.agenda, unload_from, followers)
        #: What is not tried for a while.
        self.failures = Failures(now)
        #: How the replicas are used, and in which order they would leave.
        self.uses = Uses(limits, self.known, self.servers)
        #: How busy the units are.
        self.pressures = Pressures()
        #: What will be used soon.
        self.habits = Habits(limits)
        #: The servers that are worth a look for a newcomer, where there are many.
        self.roster = Roster()
        #: What room costs on each server, as far as that is known.
        self.curves = Curves()

    # --- servers ----------------------------------------------------------------------------------

    def add_server(self, server: Server) -> None:
        self.servers[server.id] = server
        self.hosts.setdefault(server.host or server.id, []).append(server.id)
        self.replicas[server.id] = {}
        self.accounts[server.id] = Account()
        self.uses.add_server(server.id)

    def put_server(self, server: Server) -> None:
        self.servers[server.id] = server
        self.agenda.look_at_server(server.id)

    def measure_server(self, server: Server, measured: Memory, leaked: Memory) -> Server:
        """Note what a server's models take; nothing that is decided there hangs on it."""
        found = self.servers[server.id] = replace(server, measured=measured, leaked=leaked)
        return found

    def neighbours(self, server: str) -> list[str]:
        """The servers on the same host, itself included."""
        return self.hosts[self.servers[server].host or server]

    def look_at_host(self, server: str) -> None:
        """Something has ended on the server. The loads of a host are bounded together, so another
        may start on any server there."""
        for neighbour in self.neighbours(server):
            self.agenda.look_at_server(neighbour)

    def some_servers(self, most: int) -> list[Server]:
        """The next `most` servers, in rotation."""
        names = list(self.servers)
        start = self._looked_after % len(names) if names else 0
        self._looked_after = start + most
        chosen = (names + names)[start : start + min(len(names), most)]
        return [self.servers[name] for name in chosen]

    # --- replicas, read ---------------------------------------------------------------------------

    def replica(self, key: ReplicaKey) -> Replica | None:
        here = self.replicas.get(key.server)
        return here.get(key.unit) if here is not None else None

    def at(self, key: ReplicaKey, attempt: int, state: State) -> Replica | None:
        """The replica that an outcome is about, or None where it is about an earlier one."""
        replica = self.replica(key)
        if replica is None or replica.attempt != attempt or replica.state is not state:
            return None
        return replica

    def use(self, key: ReplicaKey) -> Use:
        """How the replica is used; `UNUSED` where that is not known."""
        here = self.uses.on.get(key.server)
        return here.get(key.unit, UNUSED) if here is not None else UNUSED

    def everywhere(self, unit: Unit) -> Iterator[Replica]:
        """The replicas of `unit`, in the order of their servers."""
        return (self.replicas[server][unit] for server in sorted(self.where.get(unit, ())))

    def ready(self, unit: Unit) -> list[Replica]:
        """The replicas of `unit` that answer."""
        if unit not in self.where:
            return []
        return [replica for replica in self.everywhere(unit) if replica.state is State.READY]

    def of_model_on(self, model: str, server: str) -> Iterator[Replica]:
        here = self.replicas[server]
        return (here[key.unit] for key in self.of_model.get(model, ()) if key.server == server)

    def changing(self, key: ReplicaKey) -> bool:
        """Return whether the server is busy with the same model: it takes one call about it at a
        time."""
        for replica in self.of_model_on(key.unit.model, key.server):
            if replica.state in CHANGING:
                return True
        return False

    def applied(self, key: ReplicaKey) -> tuple[int, ...]:
        """The other versions of the unit's model that the server holds and is to go on holding."""
        return tuple(
            sorted(
                replica.unit.version
                for replica in self.of_model_on(key.unit.model, key.server)
                if replica.unit != key.unit and replica.state in APPLIED
            )
        )

    def holders(self, unit: Unit, server: str) -> set[Unit]:
        """The units on the server that need `unit` there, directly or through others."""
        users = self.known.users
        if unit not in users:
            return set()
        here = self.replicas[server]
        found: set[Unit] = set()
        open_ = [unit]
        while open_:
            for user in users.get(open_.pop(), ()):
                if user in here and user not in found:
                    found.add(user)
                    open_.append(user)
        return found

    def callers(self, unit: Unit, server: str) -> list[Unit]:
        """Return the units on the server, or on their way, that call `unit` without a version."""
        here, specs = self.replicas[server], self.known.specs
        return [
            user
            for user in self.known.users.get(unit, ())
            if user in here and unit in specs[user].unversioned
        ]

    def family(self, unit: Unit, server: str) -> set[Unit]:
        """Return what has to leave the server when `unit` does: itself and all that need it
        there."""
        return {unit, *self.holders(unit, server)}

    def protection(self, replica: Replica) -> str | None:
        """Return why a replica may not be evicted for another, or None where it may."""
        key = replica.key
        unit, known = key.unit, self.known
        if unit in known.pinned:
            return "pinned"
        if unit in known.kept and len(self.ready(unit)) <= known.specs[unit].min_copies:
            return "its minimum of copies"
        if key in self.withdrawals.use_leases:
            return "about to be used"
        if self.uses.on[key.server][unit].sequences:
            return "in use by a sequence"
        return None

    def status(self, unit: Unit) -> str:
        """Return why `unit` is not READY anywhere, for people; empty where it is."""
        if self.ready(unit):
            return ""
        if unit in self.wants.by_unit:
            return self.wants.by_unit[unit].status
        if unit in self.failures.by_unit:
            return f"load failed: {self.failures.by_unit[unit].cause}"
        for replica in self.everywhere(unit):
            return replica.state.value
        return "not resident; loaded when it is asked for"

    # --- replicas, changed ------------------------------------------------------------------------

    def put(self, replica: Replica) -> None:
        """Take in a new replica, or what has become of a known one."""
        server, unit = replica.key
        here, account = self.replicas[server], self.accounts[server]
        before = here.get(unit)
        if before is None:
            self.where.setdefault(unit, set()).add(server)
            self.of_model.setdefault(unit.model, set()).add(replica.key)
        else:
            account.add(before, -1)
            if before.state in COMING and replica.state not in COMING:
                self.agenda.is_displaced(replica.key)
        account.add(replica, 1)
        here[unit] = replica
        if before is not None and before.state is not replica.state and replica.state in CHANGING:
            self.agenda.touch_server(server)  # a load or an unload that begins makes no room
        else:
            self.agenda.look_at_server(server)
        if replica.state is State.READY and (before is None or before.state is not State.READY):
            self.agenda.has_arrived(unit)
            self.uses.ready(replica)

    def amend(self, replica: Replica, **fields: Any) -> Replica:
        """Change `fields` of a replica that stays in its state."""
        amended = replica._replace(**fields)
        assert amended.state is replica.state, "a replica moves by the table"
        self.put(amended)
        return amended

    def explain(self, replica: Replica, reason: str) -> None:
        """Say anew why a replica is in its state."""
        self.replicas[replica.key.server][replica.unit] = replica._replace(reason=reason)

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
        self.withdrawals.forget(key)
        self.habits.forget_replica(key)
        self.pressures.forget_replica(key)
        self.departed[key] = now
        self.agenda.is_displaced(key)
        self.accounts[server].add(replica, -1)
        del self.replicas[server][unit]
        self.uses.forget(replica)
        _discard(self.where, unit, server)
        _discard(self.of_model, unit.model, key)
        self.look_at_host(server)

    def touch(self, key: ReplicaKey, used: float, requests: int) -> None:
        """Count `requests` for a replica, the last of them at `used`. The use of an ensemble is a
        use of its parts."""
        server, unit = key
        here = self.replicas[server]
        if requests:
            self.habits.used(key, used, self.use(key).last_used)
        replica = here.get(unit)
        if replica is not None:
            self.uses.touch(replica, used, requests)
        spec = self.known.specs.get(unit)
        if spec is not None and spec.requires:
            for part in self.known.group(spec)[:-1]:
                beside = here.get(part.unit)
                if beside is not None:
                    self.uses.touch(beside, used, requests)

    def next_attempt(self) -> int:
        self.attempt += 1
        return self.attempt

    def note_stranger(self, key: ReplicaKey) -> None:
        self.strangers.add(key)

    def forget_stranger(self, key: ReplicaKey) -> None:
        self.strangers.discard(key)

    def forget_departed(self, now: float, after_seconds: float) -> None:
        for key, when in list(self.departed.items()):
            if now - when > after_seconds:
                del self.departed[key]

    # --- what is told -----------------------------------------------------------------------------

    def learn(self, replica: Replica) -> None:
        """Remember how large the replica was seen to be."""
        if self._is_current(replica):
            self._tell_learned(self.known.learn_memory(replica.unit, replica.measured))

    def learn_load(self, replica: Replica, seconds: float) -> None:
        """Remember how long the replica's load took."""
        if self._is_current(replica):
            self._tell_learned(self.known.learn_load(replica.unit, seconds))

    def _is_current(self, replica: Replica) -> bool:
        """Return whether a replica was loaded from the files and the config that are known of its
        unit. Another one says nothing about them."""
        spec = self.known.specs.get(replica.unit)
        loaded = (replica.digest, replica.fingerprint)
        return spec is not None and loaded == (spec.digest, spec.fingerprint)

    def _tell_learned(self, spec: UnitSpec | None) -> None:
        if spec is not None:
            learned, seconds = spec.learned, spec.load_seconds
            self.out.append(
                ev.Learned(spec.unit, spec.config_digest, spec.fingerprint, learned, seconds)
            )

    def publish(self, models: Iterable[str], servers: Iterable[str] = ()) -> None:
        self.revision += 1
        self.out.append(ev.Publish(self.revision, frozenset(models), frozenset(servers)))

    def record(self, kind: ev.Kind, reason: str, **about: Any) -> None:
        self.out.append(ev.Record(kind, reason, **about))

    def tell(self, instruction: ev.Instruction) -> None:
        self.out.append(instruction)

    def take_instructions(self) -> list[ev.Instruction]:
        taken, self.out = self.out, []
        return taken


def _discard(index: dict[Any, set[Any]], key: object, value: object) -> None:
    values = index[key]
    values.discard(value)
    if not values:
        del index[key]
