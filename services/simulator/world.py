"""The real residency engine in virtual time: nothing sleeps, nothing is served.

This is the only module that knows the engine. It does for it what the Controller's loop, a Router
and the servers do: it carries instructions out, in the time that the cost table gives, and keeps
the Router's table of what is READY where. A request is in flight for `REQUEST_SECONDS` once its
model is READY, and a replica that is withdrawn has drained when the last one is over. Simplified:
demand never calls for copies, messages take no time, and no load fails.
"""

import heapq
import itertools
import math
import time
import tracemalloc
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from services.controller.core import events as ev
from services.controller.core.entities import ReplicaKey, Server, Unit, UnitSpec
from services.controller.core.limits import Limits
from services.controller.core.ranking import POLICIES
from services.controller.core.residency import Engine
from services.simulator.costs import Costs
from services.simulator.requests import Requests
from services.simulator.tally import Tally

HEARTBEAT_SECONDS: Final = 0.25
TICK_SECONDS: Final = 0.5
IDLE_SECONDS: Final = 1.0  # between ticks while nobody waits, heartbeats while nothing is used
HISTORY_HEARTBEATS: Final = 400  # that tell of the use of what is resident when it begins
DEADLINE_SECONDS: Final = 120.0  # of every request
REQUEST_SECONDS: Final = 0.1  # that each is in flight on its replica
ROUTER: Final = "router"
ENGINE_POLICIES: Final = tuple(POLICIES)

_TICK: Final = "tick"
_HEARTBEAT: Final = "heartbeat"
_WAKE: Final = "wake"


@dataclass(frozen=True, slots=True)
class Hardware:
    """`budget`: bytes for models on each of the `servers`."""

    servers: int
    budget: int


@dataclass(slots=True)
class Spent:
    """Engine time on one kind of event."""

    events: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class Figures:
    """What was counted, and engine time by kind of event."""

    tally: Tally = field(default_factory=Tally)
    spent: dict[str, Spent] = field(default_factory=dict)


class World:
    """Servers, one Router and the engine. `policy`: of eviction. `resident`: models that the
    servers hold when it begins, as many as find room, the one that was used last first."""

    def __init__(
        self, hardware: Hardware, costs: Costs, policy: str, resident: Sequence[int] = ()
    ) -> None:
        if policy not in POLICIES:
            raise ValueError(f"the engine's policies are {', '.join(POLICIES)}, not {policy!r}")
        self.figures = Figures()
        self._sizes: list[int] = costs.bytes.tolist()
        self._load_seconds: list[float] = costs.load_seconds.tolist()
        self._unload_seconds: list[float] = costs.unload_seconds.tolist()
        self._total = costs.bytes
        self._units = [Unit(name, 1) for name in costs.names]
        self._number = {unit: number for number, unit in enumerate(self._units)}
        self._where: list[tuple[ReplicaKey, ...]] = [()] * len(self._units)
        self._waiters: dict[int, tuple[int, float]] = {}  # model and when it came
        self._waiting: Counter[int] = Counter()  # waiters by model
        self._numbers = itertools.count(1)
        self._order = itertools.count()
        # What a heartbeat tells: requests for each model since the last, and when the last one was.
        self._uses: Counter[int] = Counter()
        self._last: dict[int, float] = {}
        self._served: dict[int, float] = {}  # when the last request for each model began
        self._missed: list[int] = []
        self._now = 0.0
        self._models: list[int] = []
        self._times: list[float] = []
        self._noted = 0
        self._come = 0  # requests of `_models` that have come
        self._due: list[tuple[float, int, ev.Event | str]] = []
        self._wakes_at = math.inf  # when the engine is woken next

        servers = _servers(hardware)
        self._engine = Engine(Limits(policy=policy), servers, 0.0, 0.0)
        _register(self._engine, specs(costs))
        held = _spread(resident, self._sizes, hardware)
        for server, models in zip(servers, held, strict=True):
            self._feed(ev.ServerFound(server, frozenset(self._units[model] for model in models)))
        self._feed(ev.RouterJoined(ROUTER, frozenset()))
        self._remember(resident)
        self._began = self._now  # what the engine's clock says when that of the trace begins
        self._at(self._began + TICK_SECONDS, _TICK)
        self._at(self._began + HEARTBEAT_SECONDS, _HEARTBEAT)
        self.reset()

    def reset(self) -> None:
        """Count from here."""
        self.figures = Figures()

    def serve(self, requests: Requests) -> None:
        """Let the requests come, each at its time."""
        tally = self.figures.tally
        tally.requests += len(requests.models)
        self._models = requests.models.tolist()
        self._times = (requests.times + self._began).tolist()
        self._noted = self._come = 0
        where, due = self._where, self._due
        misses, missed_bytes = 0, 0
        for at, model in enumerate(self._models):
            now = self._times[at]
            if now >= due[0][0]:
                self._pass(now, at)
            if not where[model]:
                misses += 1
                missed_bytes += self._sizes[model]
                self._come = at
                self._miss(model, now)
        self._note(len(self._models))
        asked = int(self._total[requests.models].sum())
        tally.bytes_requested += asked
        tally.bytes_hit += asked - missed_bytes
        tally.hits += len(self._models) - misses

    def finish(self) -> None:
        """Let time pass until nobody waits."""
        while self._waiters:
            self._pass(self._due[0][0], self._noted)

    def _remember(self, resident: Sequence[int]) -> None:
        """Tell the engine that they were used, the first of them last."""
        if not resident:
            return
        size = math.ceil(len(resident) / HISTORY_HEARTBEATS)
        for begin in range(len(resident), 0, -size):
            self._now += HEARTBEAT_SECONDS
            used = resident[max(0, begin - size) : begin]
            usage = {
                key: ev.Usage(HEARTBEAT_SECONDS * nth / len(used))
                for nth, model in enumerate(used)
                for key in self._where[model]
            }
            self._feed(ev.RouterUsed(ROUTER, usage))

    def _at(self, when: float, what: ev.Event | str) -> None:
        heapq.heappush(self._due, (when, next(self._order), what))

    def _pass(self, until: float, at: int) -> None:
        """Let happen what is due `until` then; the requests before number `at` have come."""
        self._come = at
        while self._due[0][0] <= until:
            self._now, _, what = heapq.heappop(self._due)
            if what is _HEARTBEAT:
                self._note(at)
                busy = self._heartbeat() or bool(self._waiters)
                pause = HEARTBEAT_SECONDS if busy else IDLE_SECONDS
                self._at(self._now + pause, _HEARTBEAT)
            elif what is _TICK:
                self._feed(ev.Tick(self._now))
                pause = TICK_SECONDS if self._waiters else IDLE_SECONDS
                self._at(self._now + pause, _TICK)
            elif what is _WAKE:
                if self._now == self._wakes_at:  # else it was woken by an earlier one
                    self._wakes_at = math.inf
                    self._feed(ev.Due())
            else:
                assert not isinstance(what, str)
                self._feed(what)

    def _miss(self, model: int, now: float) -> None:
        self._now = now
        waiter = next(self._numbers)
        self._waiters[waiter] = model, now
        self._waiting[model] += 1
        self._missed.append(model)
        label = "ResidentWanted" if self._waiting[model] == 1 else "ResidentWanted, joining"
        wanted = ev.ResidentWanted(waiter, self._units[model], now + DEADLINE_SECONDS, ROUTER)
        self._feed(wanted, label)

    def _note(self, upto: int) -> None:
        """Count the requests before number `upto` as uses."""
        if upto == self._noted:
            return
        models = self._models[self._noted : upto]
        self._uses.update(models)
        last = dict(zip(models, self._times[self._noted : upto], strict=True))
        self._last.update(last)
        self._served.update(last)
        self._noted = upto

    def _heartbeat(self) -> bool:
        """Tell what was used since the last time. Says whether anything was."""
        for model in self._missed:
            self._uses[model] -= 1  # they count when they are granted
        usage: dict[ReplicaKey, ev.Usage] = {}
        for model, count in self._uses.items():
            keys = self._where[model]
            if not keys or not count:
                continue
            share, rest = divmod(count, len(keys))
            for nth, key in enumerate(keys):
                if uses := share + (nth < rest):
                    usage[key] = ev.Usage(self._now - self._last[model], 0, uses)
        self._uses.clear()
        self._last.clear()
        self._missed.clear()
        self._feed(ev.RouterUsed(ROUTER, usage))
        return bool(usage)

    def _feed(self, event: ev.Event, label: str = "") -> None:
        """Have the engine handle it, and all that follows from that at once."""
        todo = deque([event])
        while todo:
            event = todo.popleft()
            began = time.thread_time()
            out = self._engine.handle(event, self._now)
            seconds = time.thread_time() - began
            name = label or type(event).__name__
            label = ""
            spent = self.figures.spent.get(name)
            if spent is None:
                spent = self.figures.spent[name] = Spent()
            spent.events += 1
            spent.seconds += seconds
            if out:
                self._carry_out(out, todo)
        wake = self._engine.next_wake()
        if wake is not None and wake < self._wakes_at:
            self._wakes_at = max(wake, self._now)
            self._at(self._wakes_at, _WAKE)

    def _carry_out(self, instructions: Sequence[ev.Instruction], todo: deque[ev.Event]) -> None:
        tally = self.figures.tally
        revision = 0
        withdrawn: list[ReplicaKey] = []
        for order in instructions:
            match order:
                case ev.Load():
                    seconds = self._load_seconds[self._number[order.key.unit]]
                    tally.cold_starts += 1
                    tally.load_seconds += seconds
                    self._at(self._now + seconds, ev.Loaded(order.key, order.attempt, seconds))
                case ev.Unload():
                    seconds = self._unload_seconds[self._number[order.key.unit]]
                    self._at(self._now + seconds, ev.Unloaded(order.key, order.attempt))
                case ev.Record(kind=ev.Kind.READY, unit=unit) if unit is not None:
                    self._where[self._number[unit]] += (ReplicaKey(order.server, unit),)
                case ev.Record(kind=ev.Kind.EVICTING, unit=unit) if unit is not None:
                    key = ReplicaKey(order.server, unit)
                    model = self._number[unit]
                    self._where[model] = tuple(k for k in self._where[model] if k != key)
                    withdrawn.append(key)
                    tally.evictions += 1
                case ev.Granted():
                    model = self._answered(order.waiter)
                    self._uses[model] += 1
                    self._last[model] = self._served[model] = self._now
                    todo.append(ev.RouterStarted(ROUTER, order.use_lease))
                case ev.Refused():
                    self._answered(order.waiter)
                    tally.refused += 1
                case ev.Publish():
                    revision = order.revision
                case _:
                    pass
        if revision:
            todo.append(ev.RouterAcked(ROUTER, revision))
            for key in withdrawn:
                self._drain(key, ev.RouterDrained(ROUTER, key, revision), todo)

    def _drain(self, key: ReplicaKey, drained: ev.RouterDrained, todo: deque[ev.Event]) -> None:
        """Tell that a replica has drained, once the last request there is over."""
        self._note(self._come)
        over = self._served.get(self._number[key.unit], -math.inf) + REQUEST_SECONDS
        if over > self._now:
            self._at(over, drained)
        else:
            todo.append(drained)

    def _answered(self, waiter: int) -> int:
        """The model that it waited for."""
        model, since = self._waiters.pop(waiter)
        self._waiting[model] -= 1
        if not self._waiting[model]:
            del self._waiting[model]
        self.figures.tally.waited(self._now - since)
        return model


def specs(costs: Costs) -> tuple[UnitSpec, ...]:
    """What the Registry would say of the models: sizes declared, load times learned."""
    return tuple(
        UnitSpec(
            Unit(name, 1),
            config_digest="digest",
            artifact_bytes=size,
            declared={"ram": size},
            load_seconds=seconds,
        )
        for name, size, seconds in zip(
            costs.names, costs.bytes.tolist(), costs.load_seconds.tolist(), strict=True
        )
    )


def bytes_per_model(hardware: Hardware, costs: Costs) -> float:
    """Bytes that the engine, and what it holds of the Registry's words, take for a registered model
    that is nowhere resident: as Python allocates them (tracemalloc), which excludes the
    allocator's own waste."""
    engine = Engine(Limits(), _servers(hardware), 0.0, 0.0)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        _register(engine, specs(costs))
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return (after - before) / len(costs.names)


def _register(engine: Engine, found: tuple[UnitSpec, ...]) -> None:
    engine.handle(ev.CatalogueChanged(frozenset(spec.unit.model for spec in found), found), 0.0)


def _servers(hardware: Hardware) -> list[Server]:
    width = len(str(hardware.servers - 1))
    return [
        Server(f"server-{n:0{width}}", f"host-{n}:8001", {"ram": hardware.budget}, host=f"host-{n}")
        for n in range(hardware.servers)
    ]


def _spread(models: Iterable[int], sizes: Sequence[int], hardware: Hardware) -> list[list[int]]:
    """Each model on the server with most room, while it has enough."""
    held: list[list[int]] = [[] for _ in range(hardware.servers)]
    room = [(-hardware.budget, server) for server in range(hardware.servers)]
    for model in models:
        free, server = room[0]
        if sizes[model] <= -free:
            held[server].append(model)
            heapq.heapreplace(room, (free + sizes[model], server))
    return held
