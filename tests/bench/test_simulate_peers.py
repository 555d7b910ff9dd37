"""Other eviction policies in one pool: against textbook values, brute force and the bound."""

from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.simulate import peers
from bench.simulate.peers import NEVER, POLICIES
from services.simulator.costs import Costs
from services.simulator.requests import Requests
from services.simulator.tally import Tally

MODELS = 5
asked = st.lists(st.integers(0, MODELS - 1), min_size=1, max_size=14)
sizes = st.lists(st.integers(1, 5), min_size=MODELS, max_size=MODELS)
seconds = st.lists(st.integers(1, 9), min_size=MODELS, max_size=MODELS)


def trace(models: Sequence[int], gap: float = 100.0) -> Requests:
    """So slow that every load is over before the next request."""
    return Requests(gap * np.arange(1.0, len(models) + 1), np.array(models, np.int64))


def costs(sizes: Sequence[int], seconds: Sequence[float]) -> Costs:
    names = [str(number) for number in range(len(sizes))]
    return Costs(names, np.array(sizes), np.array(seconds, np.float64), np.zeros(len(sizes)))


EQUAL = costs([1] * MODELS, [1.0] * MODELS)


def run(name: str, models: Sequence[int], table: Costs, budget: int) -> Tally:
    requests = trace(models)
    return peers.pooled(POLICIES[name](requests, table), requests, table, budget)


def fewest_misses(models: Sequence[int], room: int) -> int:
    """Of models of one size that have to be loaded when they are missed, by trying everything."""

    @cache
    def least(at: int, held: frozenset[int]) -> int:
        if at == len(models):
            return 0
        model = models[at]
        if model in held:
            return least(at + 1, held)
        if len(held) < room:
            return 1 + least(at + 1, held | {model})
        return 1 + min(least(at + 1, held - {gone} | {model}) for gone in held)

    return least(0, frozenset())


@given(asked, st.integers(1, MODELS))
def test_belady_is_the_optimum_for_one_size_and_lru_never_beats_it(
    models: list[int], room: int
) -> None:
    belady = run("belady", models, EQUAL, room)
    assert belady.cold_starts == fewest_misses(models, room)
    assert belady.hits == len(models) - belady.cold_starts
    for name in POLICIES:
        assert run(name, models, EQUAL, room).cold_starts >= belady.cold_starts


def by_hand(models: Sequence[int], sizes: Sequence[int], budget: int) -> tuple[int, int]:
    """LRU as a list: misses and evictions."""
    held: list[int] = []
    misses = evictions = 0
    for model in models:
        if model in held:
            held.remove(model)
        else:
            misses += 1
            while sum(sizes[m] for m in held) + sizes[model] > budget:
                held.pop(0)
                evictions += 1
        held.append(model)
    return misses, evictions


@given(asked, sizes)
def test_lru_is_that_of_a_textbook(models: list[int], sizes: list[int]) -> None:
    found = run("lru", models, costs(sizes, [1.0] * MODELS), 7)
    assert (found.cold_starts, found.evictions) == by_hand(models, sizes, 7)
    missed = found.bytes_requested - found.bytes_hit
    assert found.bytes_requested == sum(sizes[m] for m in models)
    assert missed >= max(sizes[m] for m in models)


@settings(max_examples=200)
@given(asked, sizes, seconds, st.integers(5, 12), st.integers(0, 5))
def test_no_policy_beats_the_bound(
    models: list[int], sizes: list[int], seconds: list[int], budget: int, warm: int
) -> None:
    table, requests = costs(sizes, seconds), trace(models)
    bound = peers.bound(requests, table, budget, warm)
    for name in POLICIES:
        policy = POLICIES[name](requests, table)
        found = peers.pooled(policy, requests, table, budget, warm)
        assert found.requests == bound.requests
        assert found.hits <= bound.hits
        assert found.bytes_hit <= bound.bytes_hit
        assert found.cold_starts >= bound.cold_starts
        assert found.load_seconds >= bound.load_seconds - 1e-6


def test_the_bound_is_reached_where_everything_fits() -> None:
    models = [0, 1, 2, 0, 1, 2]
    bound = peers.bound(trace(models), EQUAL, 3)
    assert bound.hits == run("lru", models, EQUAL, 3).hits == 3
    assert bound.load_seconds == 3.0


def test_gdsf_keeps_what_is_small_and_dear() -> None:
    """0 is asked for again and again; 1 is large and cheap to load, and leaves in its stead."""
    models = [0, 1, 2, 0, 1, 2, 0]
    table = costs([1, 3, 1, 1, 1], [9.0, 1.0, 1.0, 1.0, 1.0])
    assert run("gdsf", models, table, 4).load_seconds < run("lru", models, table, 4).load_seconds
    # All worth the same: the age that those which left give the others lets old fame fade.
    famous = [0] * 5 + [1, 2, 3, 4] * 6
    assert run("gdsf", famous, EQUAL, 4).hits > 5


def test_belady_cost_looks_at_what_a_load_costs() -> None:
    """When 2 comes, 0 is needed sooner, but 1 takes a hundred times as long to load again."""
    models = [0, 1, 2, 0, 1]
    table = costs([1] * MODELS, [1.0, 100.0, 1.0, 1.0, 1.0])
    assert run("belady", models, table, 2).load_seconds == 202.0
    assert run("belady-cost", models, table, 2).load_seconds == 103.0


def test_who_comes_while_a_model_loads_waits_for_the_rest() -> None:
    table = costs([1] * MODELS, [2.0] * MODELS)
    requests = Requests(np.array([0.0, 0.5, 2.0]), np.array([0, 0, 0]))
    found = peers.pooled(peers.Lru(), requests, table, 1)
    assert (found.hits, found.cold_starts, found.load_seconds) == (1, 1, 2.0)
    assert found.waited_seconds == 3.5


def test_what_fits_nowhere_is_refused() -> None:
    found = run("lru", [0, 1], costs([9, 1, 1, 1, 1], [1.0] * MODELS), 5)
    assert (found.refused, found.cold_starts) == (1, 1)


@pytest.mark.parametrize(
    ("models", "expected"), [([], []), ([3], [NEVER]), ([1, 2, 1, 1], [2, NEVER, 3, NEVER])]
)
def test_following(models: list[int], expected: list[int]) -> None:
    assert peers.following(np.array(models, np.int64)).tolist() == expected
