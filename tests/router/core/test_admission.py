"""Who begins, who waits and who is refused: rules that hold whatever happens, and what comes of
them at a model in virtual time."""

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)
from tritonclient.grpc import service_pb2

from services.common.errors import InvalidField
from services.router.core.admission import gate as admission
from services.router.core.admission import limit
from services.router.core.admission.gate import CAPACITY_SECONDS, Bounds, Gate, Refusal
from services.router.core.admission.limit import (
    FIRST,
    MOST,
    Limit,
    Window,
    after_window,
    prompt_limit,
    without_trial,
)
from services.router.core.admission.priority import Priority, priority_of
from services.router.core.admission.queues import AGING_TURNS, Queue, QueuedRequest
from services.router.core.wire.request import head
from tests.support.admission_world import Model, Open, World, quantile

HIGH, NORMAL, LOW = Priority


def waiting(
    tenant: str = "one", priority: Priority = NORMAL, *, size: int = 1, at: float = 0.0
) -> QueuedRequest:
    return QueuedRequest(tenant, priority, size, at, math.inf)


def taken(queue: Queue) -> list[QueuedRequest]:
    return [queue.take() for _ in range(len(queue))]


# --- priority -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "parameter", "highest", "expected"),
    [
        (None, 0, HIGH, NORMAL),
        (None, 1, HIGH, HIGH),
        (None, 2, HIGH, NORMAL),
        (None, 2**64 - 1, HIGH, LOW),
        ("low", 1, HIGH, LOW),
        (b" High ", 3, HIGH, HIGH),
        ("high", 0, LOW, LOW),
        (None, 0, LOW, LOW),
        ("low", 0, NORMAL, LOW),
    ],
)
def test_the_class_of_a_request(
    said: str | bytes | None, parameter: int, highest: Priority, expected: Priority
) -> None:
    assert priority_of(said, parameter, highest) is expected


def test_a_class_that_there_is_not_is_refused() -> None:
    with pytest.raises(InvalidField, match="'urgent' is none of high, normal, low"):
        priority_of("urgent", 0, HIGH)


@pytest.mark.parametrize(
    ("choice", "value", "expected"),
    [
        ("uint64_param", 1, 1),
        ("int64_param", 3, 3),
        ("string_param", "1", 0),
        ("bool_param", True, 1),
    ],
)
def test_the_parameter_is_read_from_the_request(choice: str, value: object, expected: int) -> None:
    request = service_pb2.ModelInferRequest(model_name="model")
    assert head(request.SerializeToString()).priority == 0
    setattr(request.parameters["priority"], choice, value)
    request.parameters["low_priority"].int64_param = 9
    assert head(request.SerializeToString()).priority == expected
    request.parameters["sequence_id"].int64_param = 7
    found = head(request.SerializeToString())
    assert found.priority == expected
    assert found.sequence is not None
    assert found.sequence.id == 7


# --- the queue ------------------------------------------------------------------------------------


def test_by_class_then_in_turns_by_tenant_then_as_they_came() -> None:
    queue = Queue()
    line = [
        *(waiting("greedy", LOW) for _ in range(2)),
        *(waiting("greedy") for _ in range(3)),
        waiting("modest"),
        waiting("modest", HIGH),
    ]
    for one in line:
        queue.put(one)
    low, (first, second, third), modest, urgent = line[:2], line[2:5], line[5], line[6]
    assert taken(queue) == [urgent, first, modest, second, third, *low]
    with pytest.raises(IndexError):
        queue.take()


def test_one_of_sixteen_is_whoever_waits_longest() -> None:
    queue, old = Queue(), waiting("old", LOW, at=1.0)
    queue.put(old)
    for number in range(2 * AGING_TURNS):
        queue.put(waiting(priority=HIGH, at=2.0 + number))
    assert taken(queue).index(old) == AGING_TURNS - 1


def test_whoever_takes_more_than_others_yields_first() -> None:
    queue = Queue()
    assert queue.to_displace(NORMAL, "new") is None
    mine = [waiting("one") for _ in range(3)]
    for one in mine:
        queue.put(one)
    assert queue.to_displace(NORMAL, "one") is None, "nobody yields to oneself"
    assert queue.to_displace(LOW, "new") is None, "nobody yields to the less urgent"
    assert queue.to_displace(NORMAL, "new") is mine[-1]
    assert queue.to_displace(HIGH, "one") is mine[-1]
    low = waiting("other", LOW)
    queue.put(low)
    assert queue.to_displace(NORMAL, "one") is low


places = st.lists(st.tuples(st.sampled_from(Priority), st.sampled_from("abc")), max_size=40)


@given(places, st.sampled_from(Priority), st.sampled_from("abc"))
def test_as_many_are_before_one_as_it_is_told(
    line: list[tuple[Priority, str]], priority: Priority, tenant: str
) -> None:
    queue, mine = Queue(), waiting(tenant, priority)
    for other, name in line:
        queue.put(waiting(name, other))
    ahead = queue.ahead(priority, tenant)
    queue.put(mine)
    # But for whose turn it is among three, and for turns by age.
    assert abs(taken(queue).index(mine) - ahead) <= 2 + len(line) // AGING_TURNS


# --- what always holds ----------------------------------------------------------------------------


class Gatekeeper(RuleBasedStateMachine):
    """Requests come, wait, run, leave and give up in any order."""

    queued = Bundle("queued")

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.running = 0
        self.ended: Counter[QueuedRequest] = Counter()
        self.waiting: dict[QueuedRequest, float] = {}
        self.reckoned: dict[tuple[Priority, int], list[tuple[float, int]]] = {}

    @initialize(
        requests=st.integers(1, 6),
        size=st.integers(10, 60),
        fixed=st.none() | st.integers(1, 5),
        replicas=st.integers(0, 2),
    )
    def begin(self, requests: int, size: int, fixed: int | None, replicas: int) -> None:
        self.bounds = Bounds(requests=requests, size=size, patience=5.0)
        self.gate = Gate(self.bounds, fixed)
        self.replicas = replicas

    @rule(
        target=queued,
        priority=st.sampled_from(Priority),
        tenant=st.sampled_from("ab"),
        size=st.integers(0, 30),
        patience=st.floats(0.01, 3.0),
    )
    def arrive(self, priority: Priority, tenant: str, size: int, patience: float) -> object:
        more_urgent = self.gate.queue.any_up_to(priority)
        reckoned = self.reckoned.setdefault((priority, self.replicas), [])
        reckoned.append((self.now, self.capacity(priority)))
        enters = self.gate.enter(priority, self.replicas, self.now)
        reckoned.append((self.now, self.capacity(priority)))
        if enters:
            assert not more_urgent, "it overtook one that is as urgent"
            since = self.now - CAPACITY_SECONDS
            assert self.running < max(capacity for at, capacity in reckoned if at >= since)
            self.running += 1
            return multiple()
        one = QueuedRequest(tenant, priority, size, self.now, 0.0)
        refused, displaced = self.gate.offer(one, self.now + patience, self.replicas, self.now)
        if refused is not None:
            assert refused.retry_after > 0.0
            assert displaced is None
            return multiple()
        if displaced is not None:
            assert displaced.priority >= priority
            self.end(displaced)
        self.waiting[one] = one.until
        self.release()
        return one

    @rule(seconds=st.none() | st.floats(0.001, 1.0))
    def leave(self, seconds: float | None) -> None:
        if self.running:
            self.running -= 1
            self.gate.leave(seconds)
            self.release()

    @rule(one=consumes(queued))
    def give_up(self, one: QueuedRequest) -> None:
        if one in self.waiting:
            self.gate.remove(one)
            self.end(one)

    @rule(seconds=st.floats(0.0, 4.0))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        for one, until in list(self.waiting.items()):
            if until < self.now:
                self.gate.remove(one)
                self.end(one)

    @rule(number=st.integers(0, 3))
    def place(self, number: int) -> None:
        self.replicas = number
        self.release()

    @rule(number=st.integers(1, 4))
    def workers(self, number: int) -> None:
        self.bounds.workers = number
        self.gate.divide()
        self.reckoned.clear()
        self.release()

    def capacity(self, priority: Priority) -> int:
        return self.gate.capacity(priority, self.replicas, self.now)

    def release(self) -> None:
        for one, refused in self.gate.release(self.replicas, self.now):
            urgent = [other for other in self.waiting if other.priority < one.priority]
            if urgent:
                assert any(one.arrived <= other.arrived for other in urgent), "it waited longest"
            self.end(one)
            if refused is None:
                assert self.running < self.capacity(HIGH if urgent else one.priority)
                self.running += 1
            else:
                assert refused.refusal is Refusal.EXPIRED

    def end(self, one: QueuedRequest) -> None:
        del self.waiting[one]
        self.ended[one] += 1

    @invariant()
    def what_is_counted_is_so(self) -> None:
        if not hasattr(self, "gate"):
            return
        assert self.gate.in_flight == self.running
        assert self.gate.waiting == len(self.gate.queue) == len(self.waiting)
        assert self.bounds.used == self.gate.queue.size == sum(one.size for one in self.waiting)
        assert all(one in self.gate.queue for one in self.waiting)
        assert not self.ended or max(self.ended.values()) == 1

    @invariant()
    def nobody_waits_for_nothing(self) -> None:
        if hasattr(self, "gate") and self.waiting and self.replicas:
            assert self.running >= self.gate.limit.value * self.replicas

    @invariant()
    def it_is_bounded(self) -> None:
        if hasattr(self, "gate") and self.bounds.workers == 1:
            assert len(self.waiting) <= self.bounds.requests
            assert self.bounds.used <= self.bounds.size


TestGatekeeper = Gatekeeper.TestCase
TestGatekeeper.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


# --- shedding -------------------------------------------------------------------------------------


def busy(latency: float = 0.1, bounds: Bounds | None = None) -> Gate:
    """One in flight on one replica, and one is what it may have; each takes `latency`."""
    gate = Gate(bounds or Bounds(), fixed=1)
    for _ in range(50):
        assert gate.enter(NORMAL, 1, 0.0)
        gate.leave(latency)
    assert gate.enter(NORMAL, 1, 0.0)
    return gate


def test_whoever_cannot_make_it_is_refused_at_once() -> None:
    gate = busy()
    for number in range(5):
        deadline = 1.0 + number
        assert gate.offer(waiting(), deadline, 1, 0.0) == (None, None)
    refused, _ = gate.offer(waiting(), 0.65, 1, 0.0)
    assert refused is not None
    assert refused.refusal is Refusal.LATE
    assert refused.retry_after == pytest.approx(0.5), "five before it, 0.1 s each"
    assert gate.offer(waiting(priority=HIGH), 0.65, 1, 0.0) == (None, None), "it is the first"


def test_a_full_queue_lets_the_more_urgent_in_and_the_least_urgent_go() -> None:
    gate = busy(bounds=Bounds(requests=2))
    low, newer, urgent = waiting(priority=LOW), waiting(priority=LOW), waiting(priority=HIGH)
    for one in (low, newer):
        assert gate.offer(one, 60.0, 1, 0.0) == (None, None)
    refused, _ = gate.offer(waiting(priority=LOW), 60.0, 1, 0.0)
    assert refused is not None
    assert refused.refusal is Refusal.FULL
    assert gate.offer(urgent, 60.0, 1, 0.0) == (None, newer)
    gate.leave(0.1)
    assert list(gate.release(1, 0.1)) == [(urgent, None)]


def test_bytes_are_bounded_over_all_gates() -> None:
    bounds = Bounds(size=100)
    one, other = busy(bounds=bounds), busy(bounds=bounds)
    assert one.offer(waiting(size=60), 60.0, 1, 0.0) == (None, None)
    refused, _ = other.offer(waiting(size=60), 60.0, 1, 0.0)
    assert refused is not None
    assert refused.refusal is Refusal.FULL
    assert other.offer(waiting(size=40), 60.0, 1, 0.0) == (None, None)


def test_what_cannot_be_answered_in_time_any_more_is_not_begun() -> None:
    gate, late = busy(), waiting()
    assert gate.offer(late, 0.5, 1, 0.0) == (None, None)
    assert late.until == pytest.approx(0.5 - admission.CAUTION * 0.1)
    gate.leave(0.45)
    ((found, refused),) = gate.release(1, 0.45)
    assert found is late
    assert refused is not None
    assert refused.refusal is Refusal.EXPIRED


def test_nobody_is_refused_before_anything_is_known() -> None:
    gate = Gate(Bounds(), fixed=1)
    assert gate.enter(NORMAL, 1, 0.0)
    for _ in range(100):
        assert gate.offer(waiting(), 0.01, 1, 0.0) == (None, None)


def test_a_cold_version_has_some_ask_and_the_others_wait() -> None:
    gate = Gate(Bounds())
    for _ in range(admission.COLD_AT_ONCE):
        assert gate.enter(NORMAL, 0, 0.0)
    assert not gate.enter(HIGH, 0, 0.0)
    patient = waiting()
    assert gate.offer(patient, 0.3, 0, 0.0) == (None, None), "how long it takes nobody knows"
    assert patient.until == pytest.approx(0.3 - admission.COLD_MARGIN)
    gate.leave(None)
    assert list(gate.release(0, 0.1)) == [(patient, None)]


def test_another_copy_is_made_use_of_at_once() -> None:
    gate, line = busy(), [waiting() for _ in range(5)]
    for one in line:
        gate.offer(one, 60.0, 1, 0.0)
    assert list(gate.release(1, 0.0)) == []
    assert [one for one, _ in gate.release(4, 0.0)] == line[:3]


def test_workers_divide_what_is_fixed_and_keep_one_each() -> None:
    bounds = Bounds(requests=10)
    gate = Gate(bounds, fixed=8)
    assert gate.capacity(NORMAL, 2, 0.0) == 16
    for workers, capacity in ((4, 4), (16, 2)):
        bounds.workers = workers
        gate.divide()
        assert gate.capacity(NORMAL, 2, 0.0) == capacity
    assert bounds.share(bounds.requests) == 1


# --- the limit ------------------------------------------------------------------------------------

windows = st.builds(
    Window,
    rate=st.floats(0.1, 1e5),
    latency=st.floats(1e-4, 60.0),
    least=st.floats(1e-4, 60.0),
    noise=st.floats(0.0, 1.0),
    floor=st.integers(1, 100),
)


@given(st.lists(windows, max_size=60), st.integers(1, 8))
def test_whatever_is_measured_the_limit_is_one(found: list[Window], workers: int) -> None:
    now = Limit()
    for window in found:
        now = after_window(now, window, workers)
        assert 1 <= now.value <= MOST
        assert now.value >= window.floor
        assert not now.fallback or now.value != now.fallback
        assert without_trial(now).fallback == 0


@given(st.floats(1.0, 5e4))
def test_a_queue_that_is_prompt_is_left_to_the_server(rate: float) -> None:
    now = after_window(Limit(), Window(rate, 1.0, 0.1, floor=prompt_limit(rate)))
    assert now.value >= rate * limit.PROMPT_SECONDS - 1


def test_it_doubles_as_long_as_nothing_queues() -> None:
    now = after_window(Limit(), Window(rate=4.0, latency=1.0, least=1.0))
    assert now.value == 2 * FIRST


# --- a model in virtual time ----------------------------------------------------------------------

MODELS = {
    "four at a time": Model(0.02, instances=4),
    "one at a time": Model(0.01),
    "batches": Model(0.005, each=0.00055, batch=64),
    "slow batches": Model(0.05, each=0.001, batch=32),
    "many at a time, of any length": Model(1.0, instances=64, spread=0.5),
    "as it comes": Model(0.01, instances=2, spread=1.0),
}


@pytest.mark.parametrize("name", MODELS)
def test_throughput_is_what_it_would_be_without_a_gate(name: str) -> None:
    model = MODELS[name]
    slow = model.seconds >= 0.05
    begin, length = (30.0, 30.0) if slow else (3.0, 5.0)
    counts = []
    for gate in (Gate(Bounds()), Open()):
        world = World(model, gates=[gate])
        world.closed(4 * model.instances * model.batch)
        world.run(begin + length)
        counts.append(len(world.latencies(begin)))
    gated, free = counts
    assert gated >= 0.93 * free


@pytest.mark.parametrize(
    ("name", "times"), [("four at a time", 1.5), ("one at a time", 1.6), ("as it comes", 2.0)]
)
def test_three_times_the_capacity(name: str, times: float) -> None:
    """`times`: its latency alone, that a high priority may take. Nothing interrupts a request that
    was begun, so the fewer at a time and the more they differ, the longer is the wait for it."""
    model = MODELS[name]
    alone, mixed = World(model), World(model)
    for world in (alone, mixed):
        world.open(0.6 * model.capacity, 20.0, priority=HIGH)
    mixed.open(2.4 * model.capacity, 20.0, priority=LOW)
    for world in (alone, mixed):
        world.run(20.0)
    assert mixed.goodput(2.0) >= 0.88 * model.capacity
    for share in (0.5, 0.9):
        unloaded = quantile(alone.latencies(2.0, HIGH), share)
        assert quantile(mixed.latencies(2.0, HIGH), share) <= times * unloaded
    refusals = mixed.refusals()
    assert sum(n for (priority, _), n in refusals.items() if priority is HIGH) == 0
    late, expired = refusals[LOW, Refusal.LATE], refusals[LOW, Refusal.EXPIRED]
    assert expired <= 0.15 * late, "it is said at once, not after a wait in vain"
    assert max(mixed.latencies(2.0, LOW)) <= 1.1


def test_without_a_gate_three_times_the_capacity_is_nothing_at_all() -> None:
    """So the tests above could fail."""
    world = World(MODELS["four at a time"], gates=[Open()])
    world.open(600.0, 20.0)
    world.run(20.0)
    assert world.goodput(5.0) == 0.0


def test_a_fast_model_has_no_queue_here() -> None:
    world = World(Model(0.0002, each=0.00001, batch=64))
    world.closed(64)
    world.run(0.5)
    (gate,) = world.gates
    world.after = lambda gate, request: None
    world.run(1.0)
    world.closed(64)
    queued = 0

    def count(gate: Gate, request: object) -> None:
        nonlocal queued
        queued += gate.waiting
        world._again(gate)

    world.after = count
    world.run(2.0)
    assert queued == 0
    assert gate.limit.value >= 1


def test_two_routers_do_not_outbid_each_other() -> None:
    model = MODELS["one at a time"]
    world = World(model, gates=[Gate(Bounds(workers=2)) for _ in range(2)])
    world.closed(40, gate=0)
    world.closed(40, gate=1)
    world.after = lambda gate, request: world._again(gate)
    world.run(60.0)
    assert len(world.latencies(10.0)) >= 0.9 * model.capacity * 50.0
    assert sum(gate.limit.value for gate in world.gates) <= 16


def test_the_least_urgent_gets_something_when_the_urgent_take_all() -> None:
    model = MODELS["four at a time"]
    world = World(model)
    world.open(1.5 * model.capacity, 20.0, priority=HIGH)
    world.open(0.5 * model.capacity, 20.0, priority=LOW, deadline=5.0)
    world.run(20.0)
    low = len(world.latencies(5.0, LOW)) / 15.0
    assert 0.5 / AGING_TURNS <= low / model.capacity <= 2.0 / AGING_TURNS


def test_one_tenant_cannot_take_the_others_turns() -> None:
    model = MODELS["four at a time"]
    world = World(model)
    world.open(5.0 * model.capacity, 10.0, tenant="greedy")
    world.open(0.3 * model.capacity, 10.0, tenant="modest")
    world.run(10.0)
    refused = Counter(request.tenant for _, request, _ in world.refused)
    modest = [answer for answer in world.answers if answer.request.tenant == "modest"]
    assert refused["modest"] <= 0.02 * len(modest)
    assert quantile(sorted(answer.latency for answer in modest), 0.9) <= 0.25
