"""The residency engine over random histories: its invariants hold after every event."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from services.common.errors import ShoalError
from services.controller.core import events as ev
from services.controller.core import memory
from services.controller.core.entities import Replica, ReplicaKey, Server, Unit, UnitSpec
from services.controller.core.errors import NeverFits
from services.controller.core.fleet import Fleet
from services.controller.core.limits import Limits
from services.controller.core.residency import Engine
from services.controller.core.states import OCCUPYING, TRANSITIONS, State
from tests.support.residency_world import MIB, Order, ensemble, spec, unit
from tests.support.results import record

LIMITS = Limits(
    router_seconds=2.0,
    use_lease_seconds=1.0,
    backoff_seconds=1.0,
    max_backoff_seconds=4.0,
    set_aside_seconds=2.0,
    suspect_seconds=5.0,
    server_patience_seconds=2.0,
    claim_seconds=1.0,
    copy_up_seconds=0.5,
    copy_down_seconds=2.0,
    copy_in_flight=1.0,
    headroom_idle_seconds=1.0,
    slow_load_seconds=1.0,
)
limits = st.builds(
    lambda **drawn: replace(LIMITS, **drawn),
    policy=st.sampled_from(["lru", "gdsf"]),
    loads_per_server=st.sampled_from([1, 2]),
    loads_per_host=st.sampled_from([1, 3]),
    idle_ttl_seconds=st.sampled_from([0.0, 5.0]),
    predict=st.booleans(),
)
SEVERAL = (
    Server("t0", "h:1", {"ram": 300 * MIB}, 3, soft={"ram": 250 * MIB}),
    Server("t1", "h:2", {"ram": 500 * MIB, "gpu:0": 100}, 0, host="x"),
    Server("t2", "h:3", {"ram": 300 * MIB}, 4, headroom_models=1, host="x", labels={"zone": "z"}),
)
FEW = [
    *(spec(name, (i % 3 + 1) * 70) for i, name in enumerate("abc")),
    spec("d", declared={"ram": 70 * MIB, "gpu:0": 60}),
    spec("g", declared={"ram": 10 * MIB, "gpu:0": 60}),
    spec("f", 0, artifact_bytes=10 * MIB),
    spec("a:2", 70, load_seconds=1.0),
    spec("b:2", 70, config_digest="other"),
    spec("bls", 20, requires=(unit("a"),), unversioned=frozenset({unit("a")})),
    ensemble("e", "a", "c"),
    ensemble("top", "e", "d"),
]
STRANGER = unit("stranger")
KINDS = st.sampled_from(["loaded"] * 6 + ["failed", "hung", "late"])


class FakeRouter:
    """What a Router knows: the table it applied last, and what it has in flight."""

    def __init__(self) -> None:
        self.table: set[ReplicaKey] = set()
        self.in_flight: set[ReplicaKey] = set()
        self.sequences: set[ReplicaKey] = set()

    def usage(self, requests: int = 1) -> dict[ReplicaKey, ev.Usage]:
        return {
            key: ev.Usage(0.0, 3 * (key in self.in_flight), requests, int(key in self.sequences))
            for key in self.in_flight | self.sequences
        }


class Residency(RuleBasedStateMachine):
    SERVERS: ClassVar[Sequence[Server]] = SEVERAL
    SPECS: ClassVar[dict[Unit, UnitSpec]] = {each.unit: each for each in FEW}
    histories: ClassVar[int] = 0
    events: ClassVar[int] = 0

    @initialize(chosen=limits, data=st.data())
    def start(self, chosen: Limits, data: st.DataObject) -> None:
        type(self).histories += 1
        self.now = 100.0
        unload_from = data.draw(st.sampled_from([0.0, 101.0, 110.0]))
        #: Routers of the Controller before, which have not come back and send by its table.
        self.away = data.draw(st.sampled_from([frozenset(), {"r0"}, {"r0", "r1"}, {"r1", "gone"}]))
        known = data.draw(st.sampled_from([self.away, self.away | {"dead"}, None]))
        self.engine = Engine(chosen, self.SERVERS, 0.0, unload_from, known)
        self.fleet = self.engine.fleet
        self.fleet.put = checked_put(self.fleet)  # type: ignore[method-assign]
        self.names = [server.id for server in self.SERVERS]
        self.specs = dict(self.SPECS)
        self.orders: list[Order] = []
        self.former: list[Order] = []
        self.waiting: set[int] = set()
        self.routers: dict[str, FakeRouter] = {}
        self.leases: dict[str, ReplicaKey] = {}
        self.waiter = 0
        self.hung: ReplicaKey | None = None
        self.refused: dict[int, ShoalError] = {}
        self.feed(ev.CatalogueChanged(frozenset(u.model for u in self.specs), (*FEW, *self.more())))
        for server in self.SERVERS:
            self.feed(ev.ServerFound(server, self.found_on(server, data)))

    def more(self) -> list[UnitSpec]:
        return []

    def found_on(self, server: Server, data: st.DataObject) -> frozenset[Unit]:
        return frozenset()

    def units(self) -> list[Unit]:
        return sorted(self.SPECS)

    # --- what an event brings about

    def feed(self, event: ev.Event) -> None:
        type(self).events += 1
        before = self.published()
        leased = self.unstarted(event)
        out = self.engine.handle(event, self.now)
        assert self.engine.check() == []
        told: set[str] = set()
        told_servers: set[str] = set()
        for instruction in out:
            match instruction:
                case ev.Load():
                    self.orders.append(instruction)
                    self.check_load(instruction)
                case ev.Unload():
                    self.orders.append(instruction)
                    self.check_unload(instruction)
                case ev.Settle():
                    self.orders.append(instruction)
                case ev.Granted():
                    self.waiting.remove(instruction.waiter)
                    self.check_grant(instruction)
                case ev.Refused():
                    self.waiting.remove(instruction.waiter)
                    self.refused[instruction.waiter] = instruction.error
                case ev.Evicted():
                    self.waiting.remove(instruction.waiter)
                case ev.Record(kind=ev.Kind.EVICTING, for_unit=Unit()):
                    self.check_victim(instruction, leased)
                case ev.Publish():
                    told |= instruction.models
                    told_servers |= instruction.servers
                case _:
                    pass
        for key in before ^ self.published():
            assert key.unit.model in told or key.server in told_servers, f"{key} is not published"
        for name in list(self.routers):
            if name not in self.fleet.withdrawals.routers:
                del self.routers[name]
        self.check_followers()

    def published(self) -> set[ReplicaKey]:
        return {
            replica.key
            for here in self.fleet.replicas.values()
            for replica in here.values()
            if replica.state is State.READY and replica.unit in self.fleet.known.specs
        }

    def unstarted(self, event: ev.Event) -> set[ReplicaKey]:
        """Replicas with a use lease that neither ran out nor starts with `event`."""
        started = event.use_lease if isinstance(event, ev.RouterStarted) else ""
        ends = {lease: at for at, lease in self.fleet.withdrawals.lease_ends}
        return {
            key
            for key, leases in self.fleet.withdrawals.use_leases.items()
            if any(ends[lease] > self.now for lease in leases if lease != started)
        }

    def check_load(self, order: ev.Load) -> None:
        server = self.fleet.servers[order.key.server]
        here, account = self.fleet.replicas[server.id], self.fleet.accounts[server.id]
        new = self.fleet.known.specs[order.key.unit]
        assert server.accepting
        assert all(here[part].state is State.READY for part in new.requires)
        occupied = [r for r in here.values() if r.state in OCCUPYING]
        assert memory.fits(memory.total(r.reserved for r in occupied), server.budget)
        assert not server.max_models or sum(r.slots for r in occupied) <= server.max_models
        assert account.loads <= self.fleet.limits.loads_per_server
        assert self.loads_on_host(server) <= self.fleet.limits.loads_per_host
        same = [r for r in occupied if r.unit.model == order.key.unit.model]
        digests = {
            self.fleet.known.specs[r.unit].config_digest
            for r in same
            if r.unit in self.fleet.known.specs
        }
        assert len(digests) == 1
        held = {r.unit for r in occupied}
        assert all(unit <= part for part in new.unversioned for unit in held if unit[0] == part[0])
        for user in held & self.specs.keys() & self.fleet.known.specs.keys():
            parts = self.fleet.known.specs[user].unversioned
            assert all(new.unit <= part for part in parts if new.unit.model == part.model)
        assert order.key.unit.version in order.versions
        assert self.about(order.key) == [order], "one change of a model at a time on a server"
        if not new.size_known:
            assert account.loads == 1, "what is of unknown size loads alone"

    def loads_on_host(self, server: Server) -> int:
        return sum(
            self.fleet.accounts[other.id].loads
            for other in self.fleet.servers.values()
            if (other.host or other.id) == (server.host or server.id)
        )

    def about(self, key: ReplicaKey) -> list[Order]:
        """What the server is told to do about the model now."""
        return [
            order
            for order in self.orders
            if order.key.server == key.server and order.key.unit.model == key.unit.model
        ]

    def check_unload(self, order: ev.Unload) -> None:
        assert order.key.unit.version not in order.versions
        assert order.key not in self.fleet.withdrawals.use_leases
        if order.key == self.hung:  # it never was READY
            return
        assert not self.users_on(order.key)
        for name, router in self.routers.items():
            if name in self.fleet.withdrawals.routers:
                assert order.key not in router.in_flight, f"{name} still has it in flight"
                assert order.key not in router.table, f"{name} may still send to it"
        self.check_followers()
        if self.now < self.fleet.withdrawals.unload_from:
            assert not self.away, "they may still send to it, by an earlier table"

    def check_followers(self) -> None:
        """The next Controller hears of every Router that may send by an earlier table."""
        found = self.fleet.withdrawals.followers(self.now)
        if found is not None:
            alive = {name for name in self.routers if name in self.fleet.withdrawals.routers}
            lost = self.now >= self.fleet.withdrawals.unload_from
            assert found >= (alive if lost else alive | self.away)

    def check_grant(self, grant: ev.Granted) -> None:
        replica = self.replica(grant.key)
        assert grant.key.unit in self.specs
        assert grant.revision <= self.fleet.revision
        if grant.use_lease:
            assert replica.state is State.READY
            self.leases[grant.use_lease] = grant.key

    def check_victim(self, evicting: ev.Record, leased: set[ReplicaKey]) -> None:
        """What is pinned, kept, leased or used by a sequence does not leave for another."""
        assert evicting.unit is not None
        key = ReplicaKey(evicting.server, evicting.unit)
        assert key.unit not in self.fleet.known.pinned
        assert not self.fleet.use(key).sequences
        assert key not in leased
        if key.unit in self.fleet.known.specs:
            assert len(self.fleet.ready(key.unit)) >= self.fleet.known.specs[key.unit].min_copies
        assert all(user.state is not State.READY for user in self.users_on(key))

    def users_on(self, key: ReplicaKey) -> list[Replica]:
        """What is on the same server and requires it."""
        return [
            replica
            for unit, replica in self.fleet.replicas[key.server].items()
            if unit in self.fleet.known.specs and key.unit in self.fleet.known.specs[unit].requires
        ]

    def replica(self, key: ReplicaKey) -> Replica:
        found = self.fleet.replica(key)
        assert found is not None
        return found

    # --- callers

    @rule(
        data=st.data(),
        seconds=st.sampled_from([0.5, 5.0, 60.0]),
        router=st.sampled_from([None, "r0", "r1"]),
        waited=st.sampled_from([0.0, 0.0, 3.0, 30.0]),
    )
    def ask(self, data: st.DataObject, seconds: float, router: str | None, waited: float) -> None:
        chosen = data.draw(st.sampled_from(self.units()))
        known = router if router in self.fleet.withdrawals.routers else None
        until = self.now + seconds
        self.wait_for(ev.ResidentWanted(self.waiter, chosen, until, known, waited=waited))

    def wait_for(self, event: ev.ResidentWanted | ev.EvictionWanted) -> None:
        self.waiting.add(self.waiter)
        self.waiter += 1
        self.feed(event)

    @rule(data=st.data())
    def evict(self, data: st.DataObject) -> None:
        self.wait_for(ev.EvictionWanted(self.waiter, (data.draw(st.sampled_from(self.units())),)))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        waiter = data.draw(st.sampled_from(sorted(self.waiting)))
        self.waiting.remove(waiter)
        self.feed(ev.WaiterGone(waiter))

    # --- the catalogue

    @rule(
        data=st.data(),
        asks=st.fixed_dictionaries(
            {},
            optional={
                "pinned": st.just(True),
                "min_copies": st.sampled_from([1, 2]),
                "max_copies": st.sampled_from([1, 2]),
                "priority": st.sampled_from([-1, 3]),
                "required_labels": st.just({"zone": "z"}),
                "fingerprint": st.sampled_from(["1", "2"]),
                "preload": st.just(True),
                "idle_ttl": st.sampled_from([0.0, 1.0]),
            },
        ),
    )
    def configure(self, data: st.DataObject, asks: dict[str, Any]) -> None:
        chosen = data.draw(st.sampled_from(self.units()))
        self.specs[chosen] = replace(self.SPECS[chosen], **asks)
        self.tell_of(chosen.model)

    @rule(
        user=st.sampled_from(["bls", "e", "top"]),
        parts=st.sets(st.sampled_from(["a", "c", "d", "g"]), min_size=1, max_size=3),
    )
    def rewire(self, user: str, parts: set[str]) -> None:
        """Parts are named in the config, so it has another digest too."""
        chosen, requires = unit(user), tuple(map(unit, sorted(parts)))
        digest = " ".join(sorted(parts))
        self.specs[chosen] = replace(
            self.SPECS[chosen],
            requires=requires,
            config_digest=digest,
            unversioned=frozenset(requires) if user == "bls" else frozenset(),
        )
        self.tell_of(chosen.model)

    @rule(data=st.data())
    def unregister(self, data: st.DataObject) -> None:
        chosen = data.draw(st.sampled_from(self.units()))
        self.specs.pop(chosen, None)
        self.tell_of(chosen.model)

    def tell_of(self, model: str) -> None:
        of_model = tuple(each for each in self.specs.values() if each.unit.model == model)
        self.feed(ev.CatalogueChanged(frozenset({model}), of_model))

    # --- servers

    @precondition(lambda self: self.orders)
    @rule(data=st.data(), kind=KINDS)
    def finish(self, data: st.DataObject, kind: str) -> None:
        order = data.draw(st.sampled_from(self.orders))
        self.former.append(order)
        if kind == "late":
            self.feed(outcome(data.draw(st.sampled_from(self.former)), -1))
            return
        self.orders.remove(order)
        loads = is_load(order)
        if kind == "failed" and loads:
            undone = data.draw(st.booleans())
            self.feed(ev.LoadFailedOnServer(order.key, order.attempt, "broken", undone))
        elif kind == "hung" and loads:
            self.hung = order.key
            self.feed(ev.LoadHung(order.key, order.attempt, "it hangs"))
            self.hung = None
        elif kind == "hung":
            self.feed(ev.UnloadHung(order.key, order.attempt, "it hangs"))
        else:
            self.feed(outcome(order))

    @rule(data=st.data(), usable=st.booleans())
    def crash(self, data: st.DataObject, usable: bool) -> None:
        self.lose(data.draw(st.sampled_from(self.names)), usable)

    def lose(self, server: str, usable: bool = True) -> None:
        for name, router in self.routers.items():
            broke = [key for key in router.in_flight if key.server == server]
            router.in_flight = {key for key in router.in_flight if key.server != server}
            router.sequences = {key for key in router.sequences if key.server != server}
            for key in broke:
                if name in self.fleet.withdrawals.routers:
                    self.feed(ev.RouterBroke(name, key))
        self.orders = [order for order in self.orders if order.key.server != server]
        self.feed(ev.ServerLost(server, "killed", usable))

    @rule(data=st.data(), first=st.booleans())
    def recover(self, data: st.DataObject, first: bool) -> None:
        """Another process may have loaded and unloaded there meanwhile."""
        server = data.draw(st.sampled_from(self.names))
        if self.fleet.servers[server].health.name == "HEALTHY":
            return
        there = data.draw(st.sets(st.sampled_from([*self.units(), STRANGER]), max_size=4))
        states: list[set[Unit]] = [set(), set(), set()]
        for each in sorted(there) if first else ():
            states[data.draw(st.integers(0, 2))].add(each)
        resident, loading, unloading = map(frozenset, states)
        outdated = frozenset(each for each in resident | loading if data.draw(st.booleans()))
        idle = dict.fromkeys(sorted(resident)[:2], 30.0)
        known = self.fleet.servers[server]
        self.feed(ev.ServerFound(known, resident, loading, unloading, outdated, idle))

    @rule(data=st.data(), reason=st.sampled_from(["", "maintenance"]), restart=st.booleans())
    def drain(self, data: st.DataObject, reason: str, restart: bool) -> None:
        self.feed(ev.DrainWanted(data.draw(st.sampled_from(self.names)), reason, restart))

    @rule(data=st.data(), age=st.sampled_from([0.0, 0.1]))
    def see_index(self, data: st.DataObject, age: float) -> None:
        server = data.draw(st.sampled_from(self.names))
        here = self.fleet.replicas[server]
        index = {u for u, r in here.items() if r.state in (State.READY, State.DRAINING)}
        other = data.draw(st.sampled_from([*self.units(), STRANGER]))
        index ^= {other} if other not in here or other in index else set()
        vanished = {ReplicaKey(server, u) for u in here.keys() - index}
        for router in self.routers.values():
            router.in_flight -= vanished
            router.sequences -= vanished
        self.feed(ev.IndexSeen(server, frozenset(index), self.now - age))

    @rule(data=st.data())
    def break_replica(self, data: st.DataObject) -> None:
        ready = sorted(self.published())
        if ready:
            self.feed(ev.ReplicaBroken(data.draw(st.sampled_from(ready)), "it does not answer"))

    @rule(data=st.data(), percent=st.sampled_from([50, 90, 110, 150]), leak=st.sampled_from([0, 1]))
    def measure(self, data: st.DataObject, percent: int, leak: int) -> None:
        server = data.draw(st.sampled_from(self.names))
        sizes = {
            unit: memory.scaled(replica.reserved, percent / 100)
            for unit, replica in self.fleet.replicas[server].items()
            if replica.state in OCCUPYING and data.draw(st.booleans())
        }
        everything = memory.plus(memory.total(sizes.values()), {"ram": leak << 30})
        self.feed(ev.Measured(server, sizes, everything))

    @rule(data=st.data(), seconds=st.sampled_from([0.0, 1.0]))
    def see_queues(self, data: st.DataObject, seconds: float) -> None:
        server = data.draw(st.sampled_from(self.names))
        self.feed(ev.QueuesSeen(server, dict.fromkeys(self.fleet.replicas[server], seconds)))

    # --- Routers

    @rule(router=st.sampled_from(["r0", "r1"]))
    def join(self, router: str) -> None:
        fake = self.routers.setdefault(router, FakeRouter())
        self.away = self.away - {router}
        self.feed(ev.RouterJoined(router, frozenset(fake.in_flight | fake.sequences)))
        self.apply_table(router)

    def apply_table(self, router: str) -> None:
        fake = self.routers[router]
        fake.table = self.published()
        revision = self.fleet.revision
        self.feed(ev.RouterAcked(router, revision))
        for key in list(self.fleet.withdrawals.drains):
            if key not in fake.in_flight | fake.sequences and key not in fake.table:
                self.feed(ev.RouterDrained(router, key, revision))

    @precondition(lambda self: self.routers)
    @rule(data=st.data(), lost=st.booleans())
    def hear(self, data: st.DataObject, lost: bool) -> None:
        """It applies the newest table; its words of what is drained may be lost on the way."""
        router = data.draw(st.sampled_from(sorted(self.routers)))
        if lost:
            self.routers[router].table &= self.published()
            self.feed(ev.RouterAcked(router, self.fleet.revision))
        else:
            self.apply_table(router)

    @precondition(lambda self: self.routers)
    @rule(data=st.data())
    def beat(self, data: st.DataObject) -> None:
        router = data.draw(st.sampled_from(sorted(self.routers)))
        self.feed(ev.RouterUsed(router, self.routers[router].usage()))

    @precondition(lambda self: any(fake.table for fake in self.routers.values()))
    @rule(data=st.data(), sequence=st.booleans())
    def send(self, data: st.DataObject, sequence: bool) -> None:
        fakes = [fake for _, fake in sorted(self.routers.items()) if fake.table]
        fake = data.draw(st.sampled_from(fakes))
        key = data.draw(st.sampled_from(sorted(fake.table)))
        (fake.sequences if sequence else fake.in_flight).add(key)

    @precondition(lambda self: self.routers)
    @rule(data=st.data())
    def finish_requests(self, data: st.DataObject) -> None:
        router = self.routers[data.draw(st.sampled_from(sorted(self.routers)))]
        router.in_flight.clear()
        router.sequences.clear()

    @precondition(lambda self: self.leases and self.routers)
    @rule(data=st.data())
    def begin_leased(self, data: st.DataObject) -> None:
        router = data.draw(st.sampled_from(sorted(self.routers)))
        lease = data.draw(st.sampled_from(sorted(self.leases)))
        key = self.leases.pop(lease)
        if lease in self.fleet.withdrawals.use_leases.get(key, ()):
            self.routers[router].in_flight.add(key)
            self.feed(ev.RouterUsed(router, self.routers[router].usage()))
            self.feed(ev.RouterStarted(router, lease))

    @precondition(lambda self: self.routers)
    @rule(data=st.data())
    def break_off(self, data: st.DataObject) -> None:
        """A request that had broken off elsewhere before."""
        router = data.draw(st.sampled_from(sorted(self.routers)))
        servers = data.draw(st.permutations([*self.names, "elsewhere"]))
        chosen = data.draw(st.sampled_from(self.units()))
        first, second = (ReplicaKey(server, chosen) for server in servers[:2])
        self.feed(ev.RouterBroke(router, second, first))

    @rule(
        router=st.sampled_from(["r0", "r1"]),
        data=st.data(),
        kind=st.sampled_from(["request", "sequence", "not started"]),
    )
    def visit(self, router: str, data: st.DataObject, kind: str) -> None:
        """A cold request from its beginning to when it is in flight."""
        if router not in self.routers:
            self.join(router)
        known = set(self.leases)
        chosen = data.draw(st.sampled_from(self.units()))
        self.wait_for(ev.ResidentWanted(self.waiter, chosen, self.now + 30.0, router))
        self.go_on()
        fake = self.routers[router]
        for lease in self.leases.keys() - known if kind != "not started" else ():
            (fake.sequences if kind == "sequence" else fake.in_flight).add(self.leases[lease])
            self.feed(ev.RouterUsed(router, fake.usage()))
            self.feed(ev.RouterStarted(router, lease))

    @rule(ticks=st.integers(1, 12), done=st.booleans())
    def live(self, ticks: int, done: bool) -> None:
        """Everybody does what is to be done, for a while."""
        for _ in range(ticks):
            self.go_on()
            for name in sorted(self.routers):
                self.feed(ev.RouterUsed(name, self.routers[name].usage()))
                self.apply_table(name)
            self.pass_time(0.5)
        for router in self.routers.values() if done else ():
            router.in_flight.clear()
            router.sequences.clear()

    def go_on(self) -> None:
        while self.orders:
            self.feed(outcome(self.orders.pop(0)))

    @rule(seconds=st.sampled_from([0.1, 0.1, 0.5, 1.0, 3.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.feed(ev.Tick(1.7e9 + self.now))

    @rule()
    def wake(self) -> None:
        """The time comes that the engine asked to be woken at; what is due then is done."""
        when = self.engine.next_wake()
        if when is not None and when - self.now < 5:
            self.now = max(self.now, when)
            self.feed(ev.Due())
            again = self.engine.next_wake()
            assert again is None or again > when

    def teardown(self) -> None:
        """Once everything works again, nobody is left waiting and all that is asked for comes."""
        if not hasattr(self, "engine"):
            return
        self.specs = dict(self.SPECS)
        for model in {u.model for u in self.SPECS}:
            self.tell_of(model)
        self.until_settled(lambda: not self.waiting)
        self.pass_time(25.0)
        self.pass_time(0.1)
        for chosen in self.units():
            self.grant_at_last(chosen)

    def grant_at_last(self, chosen: Unit) -> None:
        self.waiter += 1
        self.waiting.add(self.waiter)
        waiter = self.waiter
        self.feed(ev.ResidentWanted(waiter, chosen, self.now + 60.0))
        self.until_settled(lambda: waiter not in self.waiting)
        error = self.refused.get(waiter)
        if error is not None:  # it may have been seen to grow too large
            assert isinstance(error, NeverFits) or "its own parts" in error.message, error

    def until_settled(self, over: Any) -> None:
        for _ in range(200):
            for server in self.fleet.servers.values():
                if server.restart_wanted or any(
                    r.broken and r.state is State.UNLOADING
                    for r in self.fleet.replicas[server.id].values()
                ):
                    self.lose(server.id)
                if server.draining:
                    self.feed(ev.DrainWanted(server.id, ""))
                if self.fleet.servers[server.id].health.name != "HEALTHY":
                    self.feed(ev.ServerFound(self.fleet.servers[server.id], frozenset()))
            for name, fake in list(self.routers.items()):
                fake.in_flight.clear()
                fake.sequences.clear()
                self.apply_table(name)
                self.feed(ev.RouterUsed(name, {}))
            self.go_on()
            if over():
                return
            self.pass_time(0.5)
        raise AssertionError("it does not settle")


def is_load(order: Order) -> bool:
    return isinstance(order, ev.Load) or (isinstance(order, ev.Settle) and order.loading)


def outcome(order: Order, late: int = 0) -> ev.Event:
    attempt = order.attempt + late
    if is_load(order):
        return ev.Loaded(order.key, attempt, 0.1)
    return ev.Unloaded(order.key, attempt)


def checked_put(fleet: Fleet) -> Any:
    """`put`, which makes sure that a replica moves by the table."""
    put = fleet.put

    def checked(replica: Replica) -> None:
        before = fleet.replica(replica.key)
        was = before.state if before is not None else State.ABSENT
        moves = {to for (state, _), to in TRANSITIONS.items() if state is was}
        assert replica.state in moves | ({was} - {State.ABSENT}), (was, replica)
        put(replica)

    return checked


class NarrowResidency(Residency):
    """One server, where nearly every newcomer needs a victim."""

    SERVERS: ClassVar[Sequence[Server]] = (Server("t0", "h:1", {"ram": 300 * MIB}),)


class WideResidency(Residency):
    """More servers than are looked at one by one, nearly full of what nobody uses."""

    SERVERS: ClassVar[Sequence[Server]] = tuple(
        Server(f"t{i:02}", f"h:{i}", {"ram": (200 + 100 * (i % 3)) * MIB}, host=f"x{i // 2}")
        for i in range(40)
    )
    MORE: ClassVar[list[UnitSpec]] = [spec(f"m{i:02}", 50 + 50 * (i % 3)) for i in range(60)]
    SPECS: ClassVar[dict[Unit, UnitSpec]] = {each.unit: each for each in [*FEW, *MORE]}

    def more(self) -> list[UnitSpec]:
        return self.MORE

    def found_on(self, server: Server, data: st.DataObject) -> frozenset[Unit]:
        first = data.draw(st.integers(0, 56))
        return frozenset(each.unit for each in self.MORE[first : first + int(server.id[1:]) % 4])


def few(examples: int, steps: int) -> settings:
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


TestResidency = Residency.TestCase
TestResidency.settings = few(30, 50)
TestNarrowResidency = NarrowResidency.TestCase
TestNarrowResidency.settings = few(25, 50)
TestWideResidency = WideResidency.TestCase
TestWideResidency.settings = few(8, 40)


@pytest.mark.soak
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("machine", [Residency, NarrowResidency, WideResidency])
def test_residency_for_long(machine: type[Residency]) -> None:
    histories = 1000 if machine is WideResidency else 5000
    machine.histories = machine.events = 0
    run_state_machine_as_test(machine, settings=few(histories, 80))
    record(
        f"The residency engine over random histories, {len(machine.SERVERS)} servers",
        {"histories": machine.histories, "events": machine.events, "violations": 0},
    )
