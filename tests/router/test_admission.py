"""Tickets: who waits, who goes on, who is told what, and that nothing is left behind."""

import asyncio
import math
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from pydantic import ValidationError

from services.common.errors import DeadlineBeforeResident, InvalidField, ShoalError
from services.router.admission import admission as shell
from services.router.admission.admission import Admission, Ticket
from services.router.core.admission.gate import Bounds
from services.router.core.admission.priority import Priority
from services.router.core.admission.rate import RetryBudget
from services.router.core.admission.tenants import TenantLimit
from services.router.core.errors import Overloaded, RateLimited, ServerLost, TenantLimited
from services.router.core.routing.routes import Replica, Route, Target, VersionRoute
from services.router.core.routing.table import NONE, Change, Table
from services.router.settings import Settings, TenantSettings, tenant_limits
from services.router.telemetry.statistics import AdmissionMetrics
from tests.support.controllers import TARGET, in_time, routed, stub
from tests.support.triton_direct import DirectTriton
from tests.support.waiting import until

MODEL = Target("model", 1)
COLD = Target("cold", 1)
SOON = 5.0  # seconds
TAKES = 0.1  # seconds that the model takes, by all that is known of it


@asynccontextmanager
async def admitted(admission: Admission, **asked: Any) -> AsyncIterator[None]:
    """A request from its begin to its end, as the Router has it."""
    ticket = admission.enter("one", MODEL, **asked)
    if ticket.turn is not None:
        await admission.wait_turn(ticket)
    answered = False
    try:
        yield
        answered = True
    finally:
        admission.leave(ticket, answered=answered)


def table(copies: int = 1) -> Table:
    found = Table()
    place(found, copies)
    return found


def place(found: Table, copies: int) -> None:
    warm = Route(1, versions={1: VersionRoute(servers=tuple("abc"[:copies]))})
    cold = Route(1, versions={1: VersionRoute()})
    found.apply(Change(NONE, True, {MODEL.model: warm, COLD.model: cold}, {}))


def made(bounds: Bounds | None = None, **limits: TenantLimit) -> Admission:
    """One at a time may be sent to the model."""
    return Admission(table(), limits, bounds, {"*": 1})


def learn(admission: Admission) -> None:
    """As if many had been answered, each after the time it takes."""
    for _ in range(50):
        ticket = admission.enter("one", MODEL)
        ticket.began -= TAKES
        admission.leave(ticket, answered=True)


def queued(admission: Admission, **more: object) -> "asyncio.Task[Ticket]":
    """One that has to wait, waiting."""
    ticket = admission.enter("one", MODEL, **more)  # type: ignore[arg-type]
    assert ticket.turn is not None

    async def wait() -> Ticket:
        await admission.wait_turn(ticket)
        return ticket

    return asyncio.create_task(wait())


def all_is_as_before(admission: Admission) -> bool:
    return not admission._turns and all(
        not gate.in_flight and not gate.waiting for gate in admission.gates.values()
    )


@asynccontextmanager
async def clean(admission: Admission) -> AsyncIterator[None]:
    yield
    for _ in range(100):
        if all_is_as_before(admission):
            break
        await asyncio.sleep(0.01)
    assert all_is_as_before(admission)
    assert admission._bounds.used == 0
    assert {tenant.in_flight for tenant in admission.tenants._tenants.values()} <= {0}


# --- turns ----------------------------------------------------------------------------------------


async def test_one_after_the_other_by_priority() -> None:
    admission, order = made(), []

    async def request(name: str, said: str | None, parameter: int = 0) -> None:
        async with admitted(admission, priority_header=said, priority_parameter=parameter):
            order.append(name)
            await asyncio.sleep(0)

    async with clean(admission), asyncio.TaskGroup() as tasks:
        first = admission.enter("one", MODEL)
        assert first.turn is None
        for name, said, parameter in (
            ("low", "low", 0),
            ("normal", None, 0),
            ("low too", None, 7),
            ("high", "high", 0),
            ("high too", None, 1),
        ):
            tasks.create_task(request(name, said, parameter))
        await asyncio.sleep(0)
        assert admission.waiting(MODEL) == 5
        admission.leave(first, answered=True)
    assert order == ["high", "high too", "normal", "low", "low too"]


async def test_a_request_within_a_sequence_goes_ahead_of_all() -> None:
    admission = made(one=TenantLimit(rate=1.0, burst=1.0))
    async with clean(admission):
        first = admission.enter("one", MODEL)
        following = admission.enter("one", MODEL, continues=True)
        assert following.turn is None
        for ticket in (first, following):
            admission.leave(ticket, answered=True)


async def test_nobody_waits_at_a_version_that_has_room() -> None:
    admission = Admission(table())
    async with clean(admission):
        tickets = [admission.enter("one", MODEL) for _ in range(4)]
        assert [ticket.turn for ticket in tickets] == [None] * 4
        for ticket in tickets:
            admission.leave(ticket, answered=True)


async def test_a_new_copy_takes_those_that_wait() -> None:
    admission = made()
    async with clean(admission):
        first = admission.enter("one", MODEL)
        second, third = queued(admission), queued(admission)
        place(admission._table, copies=3)
        admission.leave(first, answered=True)
        for ticket in await asyncio.wait_for(asyncio.gather(second, third), SOON):
            admission.leave(ticket, answered=True)


async def test_workers_share_the_limits_and_may_come_and_go() -> None:
    admission = Admission(table(), {"*": TenantLimit(in_flight=8)}, None, {"*": 4})
    async with clean(admission):
        admission.workers = 4
        first = admission.enter("one", MODEL)
        waiting = queued(admission)
        with pytest.raises(TenantLimited, match="may have 2"):
            admission.enter("one", MODEL)
        admission.workers = 1
        further = admission.enter("other", MODEL)
        for ticket in (first, further, await asyncio.wait_for(waiting, SOON)):
            admission.leave(ticket, answered=True)


# --- refusals -------------------------------------------------------------------------------------


async def test_too_late_is_said_at_once_with_the_time_to_come_back() -> None:
    admission = made()
    async with clean(admission):
        learn(admission)
        first = admission.enter("one", MODEL)
        waiting = [queued(admission) for _ in range(10)]
        began = time.monotonic()
        with pytest.raises(Overloaded, match="10 wait before it") as refused:
            admission.enter("one", MODEL, deadline=began + 6 * TAKES)
        assert refused.value.metadata["priority"] == "normal"
        assert refused.value.retry_after is not None
        assert 9 * TAKES <= refused.value.retry_after <= 16 * TAKES
        urgent = queued(admission, priority_header="high", deadline=began + SOON)
        admission.leave(first, answered=True)
        for task in (urgent, *waiting):
            admission.leave(await asyncio.wait_for(task, SOON), answered=True)
    assert admission.refused == {("too_late", "normal", "one"): 1}


async def test_whoever_waited_in_vain_is_told_before_the_deadline() -> None:
    admission = made()
    async with clean(admission):
        learn(admission)
        first = admission.enter("one", MODEL)
        deadline = time.monotonic() + 4 * TAKES
        with pytest.raises(Overloaded, match=r"its turn did not come in 0\.[23]"):
            await queued(admission, deadline=deadline)
        assert time.monotonic() < deadline
        admission.leave(first, answered=True)
    assert admission.refused == {("expired", "normal", "one"): 1}


async def test_without_a_deadline_nobody_waits_for_ever() -> None:
    admission = made(Bounds(patience=0.05))
    async with clean(admission):
        first = admission.enter("one", MODEL)
        with pytest.raises(Overloaded):
            await asyncio.wait_for(queued(admission), SOON)
        admission.leave(first, answered=True)


async def test_the_least_urgent_yields_its_place() -> None:
    admission = made(Bounds(requests=1))
    async with clean(admission):
        first = admission.enter("one", MODEL)
        low = queued(admission, priority_header="low")
        with pytest.raises(Overloaded, match="1 wait already"):
            admission.enter("one", MODEL, priority_header="low")
        high = queued(admission, priority_header="high")
        with pytest.raises(Overloaded, match="gave its place to a more urgent one"):
            await low
        admission.leave(first, answered=True)
        admission.leave(await high, answered=True)


async def test_a_cold_version_lets_some_ask_and_the_rest_wait() -> None:
    admission = Admission(table())
    async with clean(admission):
        asking = [admission.enter("one", COLD) for _ in range(16)]
        assert {ticket.turn for ticket in asking} == {None}
        late = admission.enter("one", COLD, deadline=time.monotonic() + 0.1)
        with pytest.raises(DeadlineBeforeResident, match="others were to be answered first"):
            await admission.wait_turn(late)
        waiting = admission.enter("one", COLD)
        assert waiting.waiting is not None
        assert waiting.waiting.until == math.inf, "without a deadline, as long as it takes"
        admission.leave(asking.pop(), answered=False)
        await asyncio.wait_for(admission.wait_turn(waiting), SOON)
        for ticket in (waiting, *asking):
            admission.leave(ticket, answered=False)


async def test_tenants_have_their_own_limits() -> None:
    limits = {"slow": TenantLimit(rate=2.0, burst=1.0, priority=Priority.LOW)}
    admission = Admission(table(), {"*": TenantLimit(cold=1), **limits})
    async with clean(admission):
        slow = admission.enter("slow", MODEL, priority_header="high")
        assert slow.priority is Priority.LOW
        with pytest.raises(RateLimited) as refused:
            admission.enter("slow", MODEL)
        assert refused.value.retry_after is not None
        assert 0.4 <= refused.value.retry_after <= 0.8
        cold = admission.enter("one", COLD)
        with pytest.raises(TenantLimited, match="waiting until a model is resident"):
            admission.enter("one", COLD)
        warm = admission.enter("one", MODEL)
        for ticket in (slow, cold, warm):
            admission.leave(ticket, answered=False)


async def test_a_class_that_there_is_not_leaves_nothing_behind() -> None:
    admission = made()
    async with clean(admission):
        with pytest.raises(InvalidField):
            admission.enter("one", MODEL, priority_header="urgent")


# --- callers that go away -------------------------------------------------------------------------


async def test_whoever_leaves_the_queue_is_not_waited_for() -> None:
    admission = made()
    async with clean(admission):
        first = admission.enter("one", MODEL)
        gone, patient = queued(admission), queued(admission)
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        assert admission.waiting(MODEL) == 1
        admission.leave(first, answered=True)
        admission.leave(await asyncio.wait_for(patient, SOON), answered=True)


@pytest.mark.parametrize("first_gone", [True, False])
async def test_whoever_goes_as_its_turn_comes_passes_it_on(first_gone: bool) -> None:
    admission = made()
    async with clean(admission):
        first = admission.enter("one", MODEL)
        gone, patient = queued(admission), queued(admission)
        await asyncio.sleep(0)
        if first_gone:
            gone.cancel()
            admission.leave(first, answered=True)
        else:
            admission.leave(first, answered=True)
            gone.cancel()
        admission.leave(await asyncio.wait_for(patient, SOON), answered=True)
        assert gone.cancelled()


async def test_an_abandoned_request_keeps_its_place_as_long_as_it_takes() -> None:
    admission = made()
    async with clean(admission):
        learn(admission)
        first = admission.enter("one", MODEL)
        patient = queued(admission)
        began = time.monotonic()
        admission.leave(first, answered=False, abandoned=True)
        ticket = await asyncio.wait_for(patient, SOON)
        assert time.monotonic() - began >= 0.8 * TAKES
        admission.leave(ticket, answered=True)


async def test_a_failure_within_gives_the_place_back() -> None:
    admission = made()
    async with clean(admission):
        with pytest.raises(ZeroDivisionError):
            async with admitted(admission):
                raise ZeroDivisionError
        gate = admission.gates[MODEL]
        assert gate.latency == 0.0, "how long a failure took says nothing of the model"


async def test_gates_that_are_not_used_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell, "MANY", 3)
    admission = Admission(table())
    kept = admission.enter("one", MODEL)
    for number in range(2):
        admission.leave(admission.enter("one", Target("other", number)), answered=False)
    for gate in admission.gates.values():
        gate._last_seen = [-1e9] * len(Priority)
    admission.leave(admission.enter("one", Target("newest", 1)), answered=False)
    assert set(admission.gates) == {MODEL, Target("newest", 1)}
    admission.leave(kept, answered=True)


# --- retries --------------------------------------------------------------------------------------


@pytest.mark.triton
async def test_nothing_is_sent_again_when_the_budget_is_spent(
    servers: dict[str, DirectTriton],
) -> None:
    async with routed(servers) as (router, acting):
        os.kill(stub(servers["a"]), signal.SIGSTOP)
        while router.forwarder.budget.retry(time.monotonic()):
            pass
        asking = asyncio.create_task(router.infer())
        await until(lambda: router.watch.in_use.count(Replica("a", TARGET)))
        servers["a"].process.kill()
        with pytest.raises(ServerLost):
            await in_time(asking)
        assert acting.asked == [], "elsewhere it would have been answered"


# --- settings and metrics -------------------------------------------------------------------------


def test_limits_are_read_from_one_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tenant_limits(Settings().tenant_limits) == {}, "there are none unless they are set"
    monkeypatch.setenv(
        "SHOAL_ROUTER_TENANT_LIMITS",
        '{"*": {"rate": 100, "burst": 200, "in_flight": 64}, '
        '"batch": {"in_flight": 8, "priority": "low"}, "fast": {"rate": 5}}',
    )
    monkeypatch.setenv("SHOAL_ROUTER_IN_FLIGHT_LIMITS", '{"resnet": 2}')
    monkeypatch.setenv("SHOAL_ROUTER_QUEUE_REQUESTS", "7")
    settings = Settings()
    assert tenant_limits(settings.tenant_limits) == {
        "*": TenantLimit(100.0, 200.0, 64),
        "batch": TenantLimit(100.0, 200.0, 8, priority=Priority.LOW),
        "fast": TenantLimit(5.0, None, 64),
    }
    assert settings.bounds.requests == 7
    assert settings.in_flight_limits == {"resnet": 2}


@pytest.mark.parametrize(
    "wrong", [{"burst": 3}, {"rate": 0}, {"in_flight": 0}, {"priority": "urgent"}, {"rates": 1}]
)
def test_limits_that_mean_nothing_are_refused_at_the_start(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TenantSettings.model_validate(wrong)


async def test_metrics_say_what_waits_and_what_was_refused() -> None:
    admission, budget, registry = made(Bounds(requests=1)), RetryBudget(), CollectorRegistry()
    registry.register(AdmissionMetrics(admission, budget))
    assert budget.retry(0.0)
    assert budget.hedge(0.0)
    first = admission.enter("one", MODEL)
    low = queued(admission, priority_header="low")
    with pytest.raises(ShoalError):
        admission.enter("one", MODEL, priority_header="low")
    text = generate_latest(registry).decode().splitlines()
    labels = 'model="model",version="1"'
    for line in (
        'shoal_router_queue_requests{model="model",priority="low",version="1"} 1.0',
        f"shoal_router_in_flight_limit{{{labels}}} 1.0",
        f"shoal_router_in_flight{{{labels}}} 1.0",
        'shoal_router_admitted_total{priority="normal",tenant="one"} 1.0',
        'shoal_router_refused_total{priority="low",reason="queue_full",tenant="one"} 1.0',
        'shoal_router_queued_total{priority="low"} 1.0',
        'shoal_router_retries_total{outcome="sent"} 1.0',
        "shoal_router_hedges_total 1.0",
    ):
        assert line in text
    admission.leave(first, answered=True)
    admission.leave(await low, answered=True)
