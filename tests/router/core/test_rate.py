"""Token buckets, meters, and the retry budget."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.core.admission import tenants
from services.router.core.admission.priority import Priority
from services.router.core.admission.rate import Bucket, Meter, RetryBudget, full, take
from services.router.core.admission.tenants import OTHERS, TenantLimit, Tenants
from services.router.core.errors import RateLimited, TenantLimited

pauses = st.lists(st.floats(0.0, 5.0), max_size=60)
rates = st.floats(0.1, 1000.0)
bursts = st.floats(1.0, 100.0)


# --- token buckets --------------------------------------------------------------------------------


@given(pauses, rates, bursts)
def test_never_more_than_the_burst_and_what_came_since(
    waits: list[float], rate: float, burst: float
) -> None:
    bucket, now, taken = full(burst, 0.0), 0.0, 0
    for wait in waits:
        now += wait
        bucket, left = take(bucket, rate, burst, now)
        taken += not left
        assert -1e-9 <= bucket.tokens <= burst
    assert taken <= burst + rate * now + 1e-6


@given(st.floats(0.0, 0.999), rates, bursts)
def test_who_waits_as_long_as_told_gets_one_and_not_before(
    tokens: float, rate: float, burst: float
) -> None:
    bucket, wait = take(Bucket(tokens, 7.0), rate, burst, 7.0)
    assert wait == pytest.approx((1.0 - tokens) / rate)
    assert take(bucket, rate, burst, 7.0 + wait * 0.99)[1] > 0.0
    assert take(bucket, rate, burst, 7.0 + wait * 1.01)[1] == 0.0


def test_a_pause_fills_it_up_to_the_burst_and_no_further() -> None:
    bucket = full(3.0, 0.0)
    for _ in range(3):
        bucket, wait = take(bucket, 2.0, 3.0, 0.0)
        assert wait == 0.0
    assert take(bucket, 2.0, 3.0, 0.0)[1] == pytest.approx(0.5)
    assert bucket.filled(2.0, 3.0, 1.0) == pytest.approx(2.0)
    assert bucket.filled(2.0, 3.0, 1e6) == 3.0


# --- meters ---------------------------------------------------------------------------------------


@given(st.integers(1, 200), st.floats(0.5, 20.0))
def test_an_even_rate_is_what_is_read(rate: int, seconds: float) -> None:
    meter, now = Meter(span=0.5), 0.0
    while now < seconds:
        meter.add(now)
        now += 1.0 / rate
    if seconds >= 1.0:
        assert meter.rate(now) == pytest.approx(rate, rel=0.05, abs=2.1)


@given(st.lists(st.floats(0.0, 3.0), max_size=50), st.floats(0.0, 5.0))
def test_a_meter_never_says_more_than_two_spans_had(waits: list[float], after: float) -> None:
    meter, now, times = Meter(span=1.0), 100.0, []
    for wait in waits:
        now += wait
        meter.add(now)
        times.append(now)
    now += after
    assert 0.0 <= meter.count(now) <= sum(time > now - 2.0 - 1e-9 for time in times)


def test_what_is_long_ago_does_not_count() -> None:
    meter = Meter(span=1.0)
    meter.add(5.0, 100)
    assert meter.count(5.5) == 100
    assert meter.count(6.5) == pytest.approx(50)
    assert meter.count(7.5) == 0.0


# --- the retry budget -----------------------------------------------------------------------------


def test_a_fifth_of_the_requests_and_some() -> None:
    budget, now = RetryBudget(), 1000.0
    for number in range(10_000):
        budget.requests.add(now + number * 0.001)
    now += 10.0
    allowed = sum(budget.retry(now) for _ in range(10_000))
    assert allowed == pytest.approx(0.2 * 10_000 + 100, rel=0.02)
    assert (budget.retried, budget.refused) == (allowed, 10_000 - allowed)


def test_hedges_are_of_the_same_budget() -> None:
    budget = RetryBudget()
    allowed = [budget.hedge(0.0) if number % 2 else budget.retry(0.0) for number in range(200)]
    assert sum(allowed) == 100
    assert (budget.hedged, budget.retried, budget.refused) == (50, 50, 50)


def test_whoever_sends_few_may_repeat_them_all() -> None:
    budget = RetryBudget()
    budget.requests.add(0.0)
    assert budget.retry(0.0)


@given(st.floats(0.0, 1.0), st.integers(1, 40))
def test_a_failure_of_everything_is_not_doubled(share: float, rate: int) -> None:
    """Over any time, whatever the share of requests that fail."""
    budget, sent, repeated = RetryBudget(), 0, 0
    for number in range(rate * 100):
        now = number / rate
        budget.requests.add(now)
        sent += 1
        if math.fmod(number * 0.618, 1.0) < share:
            repeated += budget.retry(now)
    assert repeated <= 0.2 * sent * 1.1 + 10.0 * (now + 10.0)


# --- tenants --------------------------------------------------------------------------------------


def test_a_rate_is_each_tenants_own() -> None:
    limits = Tenants({"*": TenantLimit(rate=1.0, burst=2.0), "free": TenantLimit()})
    one, other, free = (limits.tenant(name, 0.0) for name in ("one", "other", "free"))
    for tenant in (one, one, other):
        limits.enter(tenant, 0.0, cold=False)
    with pytest.raises(RateLimited) as refused:
        limits.enter(one, 0.0, cold=False)
    assert refused.value.retry_after == pytest.approx(1.0)
    assert refused.value.metadata["tenant"] == "one"
    limits.enter(other, 0.0, cold=False)
    for _ in range(100):
        limits.enter(free, 0.0, cold=False)
    assert one.in_flight == 2, "one that is refused doesn't count"


@pytest.mark.parametrize(("cold", "name"), [(False, "in_flight"), (True, "cold")])
def test_a_number_at_the_same_time(cold: bool, name: str) -> None:
    about: dict[str, Any] = {name: 2}
    limits = Tenants({"*": TenantLimit(**about)})
    tenant = limits.tenant("one", 0.0)
    limits.enter(tenant, 0.0, cold=cold)
    limits.enter(tenant, 0.0, cold=cold)
    with pytest.raises(TenantLimited):
        limits.enter(tenant, 0.0, cold=cold)
    limits.leave(tenant, cold=cold)
    limits.enter(tenant, 0.0, cold=cold)


def test_limits_are_divided_among_workers_and_each_has_something() -> None:
    limits = Tenants({"*": TenantLimit(rate=8.0, burst=8.0, in_flight=2)})
    limits.workers = 4
    tenant = limits.tenant("one", 0.0)
    limits.enter(tenant, 0.0, cold=False)
    with pytest.raises(TenantLimited):
        limits.enter(tenant, 0.0, cold=False)
    limits.leave(tenant, cold=False)
    limits.enter(tenant, 0.0, cold=False)
    limits.leave(tenant, cold=False)
    with pytest.raises(RateLimited) as refused:
        limits.enter(tenant, 0.0, cold=False)
    assert refused.value.retry_after == pytest.approx(0.5)
    limits.workers = 1
    limits.enter(tenant, 1.0, cold=False)
    limits.enter(tenant, 1.0, cold=False)


def test_what_goes_on_with_a_sequence_is_counted_and_never_refused() -> None:
    limits = Tenants({"*": TenantLimit(in_flight=1)})
    tenant = limits.tenant("one", 0.0)
    limits.enter(tenant, 0.0, cold=False)
    limits.force(tenant, cold=False)
    assert tenant.in_flight == 2


def test_idle_tenants_are_forgotten_and_spent_buckets_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tenants, "MANY", 3)
    limits = Tenants({"*": TenantLimit(rate=1.0, burst=1.0)})
    busy, spent, idle = (limits.tenant(name, 0.0) for name in ("busy", "spent", "idle"))
    limits.enter(busy, 0.0, cold=False)
    limits.enter(spent, 99.5, cold=False)
    limits.leave(spent, cold=False)
    limits.tenant("fourth", 100.0)
    assert limits.tenant("busy", 100.0) is busy
    assert limits.tenant("spent", 100.0) is spent
    assert limits.tenant("idle", 100.0) is not idle


def test_metrics_tell_only_so_many_tenants_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenants, "LABELS", 2)
    limits = Tenants({"named": TenantLimit()})
    labels = [limits.tenant(name, 0.0).label for name in ("a", "b", "c", "named", "a")]
    assert labels == ["a", "b", OTHERS, "named", "a"]
    limits.tenant("c", 0.0).admitted[Priority.LOW] += 1
    limits.tenant("d", 0.0).admitted[Priority.LOW] += 1
    assert limits.admitted[OTHERS] == [0, 0, 2]
