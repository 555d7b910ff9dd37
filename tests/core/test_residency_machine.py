"""The residency engine over random histories: its invariants hold after every event."""

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from services.controller.core import events as ev
from services.controller.core import memory, residents
from services.controller.core.entities import Limits, ReplicaKey, Server, Unit, UnitSpec
from services.controller.core.residency import Engine
from services.controller.core.states import OCCUPYING, State
from tests.results import record

MIB = 1 << 20
LIMITS = Limits(
    router_seconds=2.0, use_lease_seconds=1.0, backoff_seconds=1.0, max_backoff_seconds=4.0
)
SERVERS = (
    Server("t0", "h:1", {"ram": 300 * MIB}, 3),
    Server("t1", "h:2", {"ram": 500 * MIB}, 0),
)
UNITS = [Unit(name, 1) for name in "abcdef"] + [Unit("a", 2), Unit("b", 2)]
SPECS = {
    unit: UnitSpec(
        unit, "other" if unit == Unit("b", 2) else "d", declared={"ram": (i % 3 + 1) * 70 * MIB}
    )
    for i, unit in enumerate(UNITS)
}
ENSEMBLE = UnitSpec(Unit("e2e", 1), "d", requires=(Unit("a", 1), Unit("c", 1)), ensemble=True)
SPECS[ENSEMBLE.unit] = ENSEMBLE
ALL = sorted(SPECS)

units = st.sampled_from(ALL)
routers = st.sampled_from(["r0", "r1"])
servers = st.sampled_from([server.id for server in SERVERS])


class FakeRouter:
    """What a Router knows: the table it applied last, and what it has in flight."""

    def __init__(self) -> None:
        self.table: set[ReplicaKey] = set()
        self.in_flight: set[ReplicaKey] = set()


class Residency(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.now = 100.0
        self.engine = Engine(LIMITS, SERVERS, 0.0, 0.0)
        self.fleet = self.engine.fleet
        self.orders: list[ev.Load | ev.Unload] = []
        self.waiting: set[int] = set()
        self.routers: dict[str, FakeRouter] = {}
        self.leases: dict[str, ReplicaKey] = {}
        self.waiter = 0
        self.feed(ev.CatalogChanged(frozenset(u.model for u in SPECS), tuple(SPECS.values())))
        for server in SERVERS:
            self.feed(ev.ServerFound(server, frozenset()))

    def feed(self, event: ev.Event) -> None:
        for instruction in self.engine.handle(event, self.now):
            match instruction:
                case ev.Load():
                    self.orders.append(instruction)
                    self.check_load(instruction)
                case ev.Unload():
                    self.orders.append(instruction)
                    self.check_unload(instruction)
                case ev.Granted():
                    self.waiting.remove(instruction.waiter)
                    replica = self.fleet.replica(instruction.key)
                    assert replica is not None
                    if instruction.use_lease:
                        assert replica.state is State.READY
                        self.leases[instruction.use_lease] = instruction.key
                case ev.Refused() | ev.Evicted():
                    self.waiting.remove(instruction.waiter)
                case _:
                    pass

    def check_load(self, order: ev.Load) -> None:
        here = self.fleet.replicas[order.key.server]
        spec = SPECS[order.key.unit]
        assert all(here[part].state is State.READY for part in spec.requires)
        occupied = [r for r in here.values() if r.state in OCCUPYING]
        server = self.fleet.servers[order.key.server]
        assert memory.fits(residents.reserved(occupied), server.budget)
        assert not server.max_models or residents.slots_used(occupied, SPECS) <= server.max_models
        digests = {
            SPECS[r.unit].config_digest for r in occupied if r.unit.model == order.key.unit.model
        }
        assert len(digests) == 1
        same = [
            o
            for o in self.orders
            if o.key.server == order.key.server and o.key.unit.model == order.key.unit.model
        ]
        assert same == [order], "one change of a model at a time on a server"

    def check_unload(self, order: ev.Unload) -> None:
        for name, router in self.routers.items():
            if name in self.fleet.routers:
                assert order.key not in router.in_flight, f"{name} still has it in flight"
                assert order.key not in router.table, f"{name} may still send to it"
        assert order.key not in self.leases.values() or self.lease_over(order.key)
        here = self.fleet.replicas[order.key.server]
        assert not residents.holders(order.key.unit, here, SPECS)

    def lease_over(self, key: ReplicaKey) -> bool:
        return key not in self.fleet.use_leases

    # --- callers

    @rule(unit=units, seconds=st.sampled_from([0.5, 5.0, 60.0]), router=st.none() | routers)
    def ask(self, unit: Unit, seconds: float, router: str | None) -> None:
        self.waiter += 1
        self.waiting.add(self.waiter)
        known = router if router in self.fleet.routers else None
        self.feed(ev.ResidentWanted(self.waiter, unit, self.now + seconds, known))

    @rule(unit=units)
    def evict(self, unit: Unit) -> None:
        self.waiter += 1
        self.waiting.add(self.waiter)
        self.feed(ev.EvictionWanted(self.waiter, (unit,)))

    @rule(unit=units, pinned=st.booleans())
    def pin(self, unit: Unit, pinned: bool) -> None:
        models = frozenset({unit.model})
        specs = tuple(
            UnitSpec(
                spec.unit,
                spec.config_digest,
                declared=spec.declared,
                requires=spec.requires,
                ensemble=spec.ensemble,
                pinned=pinned and spec.unit == unit,
            )
            for spec in SPECS.values()
            if spec.unit.model == unit.model
        )
        self.feed(ev.CatalogChanged(models, specs))

    # --- servers

    @rule(data=st.data(), fails=st.sampled_from([False, False, False, True]))
    def finish(self, data: st.DataObject, fails: bool) -> None:
        if not self.orders:
            return
        order = data.draw(st.sampled_from(self.orders))
        self.orders.remove(order)
        if isinstance(order, ev.Unload):
            self.feed(ev.Unloaded(order.key, order.attempt))
        elif fails:
            self.feed(ev.LoadFailedOnServer(order.key, order.attempt, "broken"))
        else:
            self.feed(ev.Loaded(order.key, order.attempt, 0.5))

    @rule(server=servers)
    def crash(self, server: str) -> None:
        self.feed(ev.ServerLost(server, "killed"))
        self.orders = [order for order in self.orders if order.key.server != server]

    @rule(server=servers)
    def recover(self, server: str) -> None:
        found = self.fleet.servers[server]
        if found.health.name != "HEALTHY":
            self.feed(ev.ServerFound(found, frozenset()))

    # --- Routers

    @rule(router=routers)
    def join(self, router: str) -> None:
        fake = self.routers.setdefault(router, FakeRouter())
        self.feed(ev.RouterJoined(router, frozenset(fake.in_flight)))
        self.apply_table(router)

    def apply_table(self, router: str) -> None:
        fake = self.routers[router]
        fake.table = {
            replica.key
            for here in self.fleet.replicas.values()
            for replica in here.values()
            if replica.state is State.READY
        }
        revision = self.fleet.revision
        self.feed(ev.RouterAcked(router, revision))
        for key in list(self.fleet.drains):
            if key not in fake.in_flight and key not in fake.table:
                self.feed(ev.RouterDrained(router, key, revision))

    @rule(router=routers, lost=st.booleans())
    def hear(self, router: str, lost: bool) -> None:
        """It applies the newest table; its words of what is drained may be lost on the way."""
        if router not in self.fleet.routers:
            return
        if lost:
            fake = self.routers[router]
            fake.table = {
                k for k in fake.table if (r := self.fleet.replica(k)) and r.state is State.READY
            }
            self.feed(ev.RouterAcked(router, self.fleet.revision))
        else:
            self.apply_table(router)

    @rule(router=routers)
    def beat(self, router: str) -> None:
        if router in self.fleet.routers:
            used = dict.fromkeys(self.routers[router].in_flight, (0.0, 1))
            self.feed(ev.RouterUsed(router, used))

    @rule(router=routers, data=st.data())
    def send(self, router: str, data: st.DataObject) -> None:
        fake = self.routers.get(router)
        if fake is not None and fake.table and router in self.fleet.routers:
            fake.in_flight.add(data.draw(st.sampled_from(sorted(fake.table))))

    @rule(router=routers)
    def finish_requests(self, router: str) -> None:
        if router in self.routers:
            self.routers[router].in_flight.clear()

    @rule(router=routers)
    def begin_leased(self, router: str) -> None:
        if router in self.fleet.routers:
            for lease, key in list(self.leases.items()):
                if self.lease_over(key):
                    del self.leases[lease]
                    continue
                self.routers[router].in_flight.add(key)
                self.feed(
                    ev.RouterUsed(router, dict.fromkeys(self.routers[router].in_flight, (0.0, 1)))
                )
                self.feed(ev.RouterStarted(router, lease))
                del self.leases[lease]

    @rule(seconds=st.sampled_from([0.1, 1.0, 3.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.feed(ev.Tick())
        for name in list(self.routers):
            if name not in self.fleet.routers:
                del self.routers[name]

    # --- what always holds

    @invariant()
    def plans_fit(self) -> None:
        for server in self.fleet.servers.values():
            replicas = self.fleet.replicas[server.id].values()
            occupied = [r for r in replicas if r.state in OCCUPYING]
            assert memory.fits(residents.reserved(occupied), server.budget)
            assert (
                not server.max_models or residents.slots_used(occupied, SPECS) <= server.max_models
            )

    @invariant()
    def drains_are_draining(self) -> None:
        draining = {
            replica.key
            for here in self.fleet.replicas.values()
            for replica in here.values()
            if replica.state is State.DRAINING
        }
        assert set(self.fleet.drains) == draining

    def teardown(self) -> None:
        """Once everything works again and time passes, nobody is left waiting."""
        for server in self.fleet.servers.values():
            self.recover(server.id)
        for _ in range(400):
            if not self.waiting and not self.orders:
                break
            for fake in self.routers.values():
                fake.in_flight.clear()
            while self.orders:
                order = self.orders.pop(0)
                if isinstance(order, ev.Unload):
                    self.feed(ev.Unloaded(order.key, order.attempt))
                else:
                    self.feed(ev.Loaded(order.key, order.attempt, 0.1))
            self.pass_time(0.5)
        assert not self.waiting


Residency.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestResidency = Residency.TestCase


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_residency_for_long() -> None:
    histories, steps = 1000, 80
    chosen = settings(max_examples=histories, stateful_step_count=steps, deadline=None)
    run_state_machine_as_test(Residency, settings=chosen)
    record(
        "The residency engine over random histories",
        {"histories": histories, "steps in each, at most": steps, "violations": 0},
    )
