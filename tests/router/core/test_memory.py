"""Whether there is room for a request's bytes."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.core.admission.memory import RESERVE, SMALL, MemoryBudget
from services.router.settings import Settings

MIB = 1 << 20
LIMIT = 80 * MIB
LARGE = 35 * MIB


def test_large_requests_leave_room_for_small_ones() -> None:
    budget = MemoryBudget(LIMIT)
    assert budget.take(LARGE)
    assert budget.take(LARGE)
    assert not budget.take(2 * MIB)
    for _ in range(10):
        assert budget.take(SMALL)
    assert not budget.take(1)
    assert (budget.held, budget.refused) == (LIMIT, 2)
    budget.give(LARGE)
    assert budget.take(LARGE)


def test_small_requests_may_take_all_but_never_shut_the_large_ones_out() -> None:
    budget = MemoryBudget(LIMIT)
    for _ in range(80):
        assert budget.take(SMALL)
    assert not budget.take(SMALL)
    assert budget.take(LARGE), "the only one"
    assert not budget.take(LARGE)


def test_one_that_is_larger_than_the_limit_is_let_in_alone() -> None:
    budget = MemoryBudget(LIMIT)
    assert budget.take(3 * LIMIT)
    assert not budget.take(2 * MIB)
    assert budget.take(SMALL)
    budget.give(3 * LIMIT)
    assert budget.take(2 * MIB)


def test_one_that_comes_piece_by_piece_counts_as_large_once_it_is() -> None:
    budget = MemoryBudget(LIMIT)
    assert budget.take(2 * LARGE)
    size = 0
    while budget.grow(size, size + SMALL // 4):
        size += SMALL // 4
    assert size == SMALL
    assert budget.grow(size, 0)
    assert (budget.held, budget.large) == (2 * LARGE, 2 * LARGE)


@given(st.lists(st.integers(0, 2 * LIMIT) | st.integers(0, SMALL)), st.randoms())
def test_no_more_is_held_than_the_limit_and_one_large_request(
    sizes: list[int], order: random.Random
) -> None:
    budget, taken = MemoryBudget(LIMIT), []
    for size in sizes:
        if budget.take(size):
            taken.append(size)
        large = [one for one in taken if one > SMALL]
        assert budget.held == sum(taken)
        assert budget.large == sum(large)
        assert budget.held <= LIMIT + max(large, default=0) + LIMIT // RESERVE
        assert len(large) == 1 or sum(large) <= LIMIT - LIMIT // RESERVE
        if taken and order.random() < 0.3:
            budget.give(taken.pop(order.randrange(len(taken))))
    for size in taken:
        budget.give(size)
    assert (budget.held, budget.large) == (0, 0)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, 8 << 30),
        ({"max_message_bytes": 2 << 29, "workers": 2}, 4 << 30),
        ({"max_message_bytes": (1 << 31) - 1, "workers": 1}, 8 << 30),
        ({"max_held_bytes": 3 << 30, "workers": 3}, 1 << 30),
        ({"max_held_bytes": 1, "workers": 3}, 1),
    ],
)
def test_how_many_bytes_a_process_holds(fields: dict[str, int], expected: int) -> None:
    assert Settings(**fields).held_bytes(64 << 30) == expected  # type: ignore[arg-type]


def test_on_a_small_machine_there_is_room_for_some_of_the_largest() -> None:
    assert Settings().held_bytes(2 << 30) == 4 * 256 * MIB
