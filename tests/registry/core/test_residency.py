"""The residency settings that a model may have."""

from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import InvalidField
from services.registry.core import residency
from services.registry.core.residency import PATHS, Residency, checked, idle_ttl_us, merged

SECOND_NS = 1_000_000_000

FULL = Residency(
    min_copies=1,
    max_copies=3,
    idle_ttl_us=5,
    preload=True,
    priority=2,
    required_labels={"gpu": "a100"},
)


@pytest.mark.parametrize(
    "asked",
    [
        Residency(),
        FULL,
        Residency(min_copies=0, max_copies=1000, priority=-10, preload=False, idle_ttl_us=0),
        Residency(min_copies=1000, max_copies=1000, priority=10),
        Residency(required_labels={"k" * 63: "v" * 63, "a_b.c/d-e": "9"}),
    ],
)
def test_what_is_allowed_stays_as_it_is(asked: Residency) -> None:
    assert checked(asked) == asked


@pytest.mark.parametrize(
    ("asked", "field", "said"),
    [
        ({"min_copies": -1}, "min_copies", "-1 is not between 0 and 1000"),
        ({"min_copies": 1001}, "min_copies", "1001 is not between 0 and 1000"),
        ({"max_copies": 0}, "max_copies", "0 is not between 1 and 1000"),
        ({"max_copies": 1001}, "max_copies", "1001 is not between 1 and 1000"),
        ({"priority": 11}, "priority", "11 is not between -10 and 10"),
        ({"priority": -11}, "priority", "-11 is not between -10 and 10"),
        ({"min_copies": 3, "max_copies": 2}, "max_copies", "2 are fewer than the min_copies of 3"),
        ({"required_labels": {"": "v"}}, "required_labels", "the key, '', is not 1 to 63"),
        ({"required_labels": {"k": ""}}, "required_labels", "the value of k, '', is not"),
        ({"required_labels": {"k" * 64: "v"}}, "required_labels", "is not 1 to 63 letters"),
        ({"required_labels": {"k": "v" * 64}}, "required_labels", "is not 1 to 63 letters"),
        ({"required_labels": {"k": "a b"}}, "required_labels", "the value of k, 'a b', is not"),
        ({"required_labels": {"k\n": "v"}}, "required_labels", "is not 1 to 63 letters"),
        ({"required_labels": {"ä": "v"}}, "required_labels", "the key, 'ä', is not"),
        (
            {"required_labels": {f"k{n}": "v" for n in range(65)}},
            "required_labels",
            "65 are more than the 64 allowed",
        ),
    ],
)
def test_what_is_not_allowed_says_what_is(asked: dict[str, Any], field: str, said: str) -> None:
    with pytest.raises(InvalidField) as caught:
        checked(replace(Residency(), **asked))
    assert caught.value.metadata["field"] == f"model.residency.{field}"
    assert said in caught.value.metadata["problem"]


def test_a_time_to_live_is_none_or_some() -> None:
    assert [idle_ttl_us(ns) for ns in (0, 1_000_000, 600 * SECOND_NS)] == [0, 1000, 600_000_000]
    for nanoseconds in (-1, -SECOND_NS, 1, 999_999, residency.LONGEST_TTL_NS + 1):
        with pytest.raises(InvalidField, match="s and ten years") as caught:
            idle_ttl_us(nanoseconds)
        assert caught.value.metadata["field"] == "model.residency.idle_ttl"


def test_every_field_can_be_updated_alone() -> None:
    names = ("min_copies", "max_copies", "idle_ttl", "preload", "priority", "required_labels")
    assert list(PATHS) == ["residency", *(f"residency.{name}" for name in names)]
    for path, field in zip(PATHS[1:], fields(Residency), strict=True):
        default = getattr(Residency(), field.name)
        one = merged(Residency(), FULL, [path])
        assert one == replace(Residency(), **{field.name: getattr(FULL, field.name)}) != Residency()
        assert merged(FULL, Residency(), [path]) == replace(FULL, **{field.name: default})


@given(st.sets(st.sampled_from([*PATHS, "labels"])))
def test_an_update_leaves_what_its_mask_does_not_name(paths: set[str]) -> None:
    found = merged(FULL, Residency(), paths)
    if "residency" in paths:
        assert found == Residency()
        return
    for path, field in zip(PATHS[1:], fields(Residency), strict=True):
        kept = Residency() if path in paths else FULL
        assert getattr(found, field.name) == getattr(kept, field.name)


def test_what_is_allowed_alone_may_not_go_with_what_is_there() -> None:
    known = Residency(max_copies=2)
    with pytest.raises(InvalidField, match="2 are fewer than the min_copies of 3"):
        merged(known, Residency(min_copies=3), ["residency.min_copies"])
    both = Residency(min_copies=3, max_copies=4)
    assert merged(known, both, ["residency.min_copies", "residency.max_copies"]) == both
    assert merged(known, Residency(min_copies=3), ["labels"]) == known
