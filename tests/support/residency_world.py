"""An engine with a clock, and servers and Routers that do what the test says."""

from collections.abc import Iterable, Set
from typing import Any

from services.controller.core import events as ev
from services.controller.core.entities import Replica, ReplicaKey, Server, Unit, UnitSpec
from services.controller.core.limits import Limits
from services.controller.core.residency import Engine
from services.controller.core.states import State

MIB = 1 << 20
LIMITS = Limits(router_seconds=1.0, use_lease_seconds=0.5, server_patience_seconds=2.0)
ONE = (Server("t0", "h:1", {"ram": 300 * MIB}, 3),)
Order = ev.Load | ev.Unload | ev.Settle


def unit(name: str) -> Unit:
    """`m` or `m:2`."""
    model, _, version = name.partition(":")
    return Unit(model, int(version or 1))


def spec(name: str, size: int = 100, **more: Any) -> UnitSpec:
    """`size`: declared MiB, 0 for unknown."""
    declared = {"ram": size * MIB} if size else {}
    return UnitSpec(unit(name), **{"config_digest": "d", "declared": declared, **more})


ABCD = [spec(name) for name in "abcd"]


def ensemble(name: str, *parts: str, **more: Any) -> UnitSpec:
    return UnitSpec(unit(name), requires=tuple(map(unit, parts)), ensemble=True, **more)


def key(name: str, server: str = "t0") -> ReplicaKey:
    return ReplicaKey(server, unit(name))


def servers(count: int, ram: int = 300, models: int = 0, **more: Any) -> list[Server]:
    """Healthy once they are found; `ram` in MiB, 0 for no budget."""
    budget = {"ram": ram * MIB} if ram else {}
    return [Server(f"t{i}", f"h:{i}", budget, models, **more) for i in range(count)]


class World:
    """`pending`: what servers were told and have not done yet."""

    def __init__(
        self,
        specs: Iterable[UnitSpec],
        servers: Iterable[Server] = ONE,
        limits: Limits = LIMITS,
        unload_from: float = 0.0,
        followers: Set[str] | None = None,
    ) -> None:
        self.now = 10.0
        self.engine = Engine(limits, servers, 0.0, unload_from, followers)
        self.fleet = self.engine.fleet
        self.answers: dict[int, ev.Granted | ev.Refused | ev.Evicted] = {}
        self.records: list[ev.Record] = []
        self.pending: list[Order] = []
        self.learned: list[ev.Learned] = []
        self.failed: list[ev.Failed] = []
        self._waiter = 0
        self.register(*specs)
        for server in list(self.fleet.servers.values()):
            self.feed(ev.ServerFound(server, frozenset()))

    def feed(self, event: ev.Event) -> None:
        instructions = self.engine.handle(event, self.now)
        assert self.engine.check() == []
        for instruction in instructions:
            match instruction:
                case ev.Load() | ev.Unload() | ev.Settle():
                    self.pending.append(instruction)
                case ev.Granted() | ev.Refused() | ev.Evicted():
                    assert instruction.waiter not in self.answers, "answered twice"
                    self.answers[instruction.waiter] = instruction
                case ev.Record():
                    self.records.append(instruction)
                case ev.Learned():
                    self.learned.append(instruction)
                case ev.Failed():
                    self.failed.append(instruction)
                case ev.Publish():
                    pass

    def register(self, *specs: UnitSpec) -> None:
        self.feed(ev.CatalogueChanged(frozenset(s.unit.model for s in specs), specs))

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.feed(ev.Tick())

    def ask(
        self,
        name: str,
        deadline: float = 100.0,
        router: str | None = None,
        *,
        waited: float = 0.0,
    ) -> int:
        self._waiter += 1
        until = self.now + deadline
        self.feed(ev.ResidentWanted(self._waiter, unit(name), until, router, waited=waited))
        return self._waiter

    def evict(self, *names: str) -> int:
        self._waiter += 1
        self.feed(ev.EvictionWanted(self._waiter, tuple(map(unit, names))))
        return self._waiter

    def work(self, fail: Iterable[str] = (), seconds: float = 0.1) -> None:
        """Carry out all loads and unloads, and those that follow, `seconds` each."""
        broken = set(map(unit, fail))
        while self.pending:
            order = self.pending.pop(0)
            self.now += seconds
            if isinstance(order, ev.Unload) or (isinstance(order, ev.Settle) and not order.loading):
                self.feed(ev.Unloaded(order.key, order.attempt))
            elif order.key.unit in broken:
                self.feed(ev.LoadFailedOnServer(order.key, order.attempt, "no weights"))
            else:
                self.feed(ev.Loaded(order.key, order.attempt, seconds))

    def settle(self, seconds: float, step: float = 1.0) -> None:
        """Let `seconds` pass in steps, with all the work that comes up."""
        until = self.now + seconds
        while self.now < until:
            self.pass_time(step)
            self.work()

    def order(self, kind: type[Order], name: str) -> Any:
        """The pending order of `kind` about a unit."""
        (found,) = [o for o in self.pending if isinstance(o, kind) and o.key.unit == unit(name)]
        return found

    def take(self, kind: type[Order], name: str) -> Any:
        """The same, which nobody will carry out."""
        found = self.order(kind, name)
        self.pending.remove(found)
        return found

    def resident(self, name: str, router: str | None = None) -> ReplicaKey:
        """Ask, load, and be granted."""
        waiter = self.ask(name, router=router)
        self.work()
        return self.granted(waiter).key

    def use(self, name: str, server: str = "t0", router: str = "r", **usage: Any) -> None:
        """A heartbeat of a Router that joins for it."""
        if router not in self.fleet.withdrawals.routers:
            self.feed(ev.RouterJoined(router, frozenset()))
        used = {key(name, server): ev.Usage(**{"age": 0.0, **usage})}
        self.feed(ev.RouterUsed(router, used))

    def drained(self, router: str) -> None:
        """A Router applied the newest table and has nothing in flight on what it withdrew."""
        self.feed(ev.RouterAcked(router, self.fleet.revision))
        self.feed(ev.RouterUsed(router, {}))

    def granted(self, waiter: int) -> ev.Granted:
        answer = self.answers.get(waiter)
        assert isinstance(answer, ev.Granted), answer
        return answer

    def refusal(self, waiter: int) -> Any:
        answer = self.answers.get(waiter)
        assert isinstance(answer, ev.Refused), answer
        return answer.error

    def replica(self, name: str, server: str = "t0") -> Replica:
        found = self.fleet.replica(key(name, server))
        assert found is not None, f"{name} is not on {server}"
        return found

    def ready(self, server: str | None = None) -> set[str]:
        """The models, or `model:version` beyond version 1, that are READY."""
        return {
            unit.model if unit.version == 1 else str(unit)
            for name, here in self.fleet.replicas.items()
            for unit, replica in here.items()
            if replica.state is State.READY and server in (None, name)
        }

    def reasons(self, kind: ev.Kind) -> list[str]:
        return [record.reason for record in self.records if record.kind is kind]
