"""Memory vectors: what is not named is zero, what has no budget is unlimited."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.controller.core import memory
from services.controller.core.memory import GIB, NOTHING, Memory

MIB = 1 << 20
RESOURCES = ("ram", "gpu:0", "gpu:1")

vectors = st.dictionaries(st.sampled_from(RESOURCES), st.integers(0, 1 << 44))


def of(vector: Memory, resource: str) -> int:
    return vector.get(resource, 0)


@given(st.lists(vectors, max_size=5))
def test_a_total_adds_resource_by_resource(many: list[Memory]) -> None:
    total = memory.total(many)
    assert memory.plus(*many) == total
    assert total == memory.total(reversed(many))
    for resource in RESOURCES:
        assert of(total, resource) == sum(of(vector, resource) for vector in many)


def test_nothing_adds_up_to_nothing() -> None:
    assert memory.total(()) == memory.plus() == NOTHING


@given(vectors, vectors)
def test_the_highest_covers_both_and_no_more(a: Memory, b: Memory) -> None:
    top = memory.highest(a, b)
    for resource in RESOURCES:
        assert of(top, resource) == max(of(a, resource), of(b, resource))


@given(vectors, vectors)
def test_what_fits_has_no_excess_and_what_does_not_has(used: Memory, budget: Memory) -> None:
    over = memory.excess(used, budget)
    assert memory.fits(used, budget) == (over == {})
    for resource, amount in over.items():
        assert amount == used[resource] - budget[resource] > 0
    assert memory.fits({r: of(used, r) - of(over, r) for r in RESOURCES}, budget)


def test_a_budget_may_be_used_up_but_not_passed() -> None:
    assert memory.fits({"ram": 5}, {"ram": 5})
    assert not memory.fits({"ram": 6}, {"ram": 5})
    assert memory.excess({"ram": 6, "gpu:0": 1}, {"ram": 5, "gpu:0": 1}) == {"ram": 1}


def test_what_has_no_budget_is_unlimited_and_a_budget_of_zero_is_not() -> None:
    assert memory.fits({"gpu:0": 1 << 50}, {"ram": 1})
    assert memory.fits({"ram": 1 << 50}, {})
    assert not memory.fits({"gpu:0": 1}, {"gpu:0": 0})


@given(vectors, st.floats(0, 4))
def test_scaling_is_right_to_the_byte(vector: Memory, factor: float) -> None:
    scaled = memory.scaled(vector, factor)
    assert scaled.keys() == vector.keys()
    for resource, amount in scaled.items():
        assert isinstance(amount, int)
        assert abs(amount - vector[resource] * factor) <= 0.5


@given(vectors, vectors)
def test_arguments_are_left_as_they_are(a: Memory, b: Memory) -> None:
    before = (dict(a), dict(b))
    memory.plus(a, b)
    memory.highest(a, b)
    memory.excess(a, b)
    memory.scaled(a, 2)
    assert (a, b) == before


@pytest.mark.parametrize(
    ("vector", "text"),
    [
        ({}, "nothing"),
        ({"ram": 0}, "ram 0 MiB"),
        ({"ram": 300 * MIB}, "ram 300 MiB"),
        ({"ram": GIB + GIB // 2, "gpu:0": 300 * MIB}, "gpu:0 300 MiB, ram 1.50 GiB"),
    ],
)
def test_for_people(vector: Memory, text: str) -> None:
    assert memory.text(vector) == text
