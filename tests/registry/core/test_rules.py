"""Traffic policies, names and numbers in requests, pages, the lease, footprints."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common import paging
from services.common.errors import (
    InvalidField,
    InvalidName,
    InvalidVersion,
    NoApprovedVersion,
    VersionNotFound,
)
from services.registry.core import validation
from services.registry.core.catalogue import Arm, Entry, Model, Target, Version, VersionState
from services.registry.core.errors import IllegalState, LeaseHeld
from services.registry.core.footprint import Footprint, merged
from services.registry.core.lease import Lease, held
from services.registry.core.traffic import check_arms, check_targets, parse_target
from shoal.names import ModelVersionName

SECOND = 1_000_000


@pytest.mark.parametrize("target", [Target("m"), Target("m", version=7), Target("m", alias="a")])
def test_a_target_is_spelled_as_it_is_read(target: Target) -> None:
    assert parse_target(str(target)) == target


@pytest.mark.parametrize(
    ("arms", "field"),
    [
        ([], "traffic_policy.arms"),
        ([("models/m", 0)], "traffic_policy.arms"),
        ([("models/m", 1)] * 2, "traffic_policy.arms"),
        ([("models/m", 1)] * 101, "traffic_policy.arms"),
        ([("models/m", -1)], "traffic_policy.arms[0].weight"),
        ([("models/m", 1), ("models/n", 10_001)], "traffic_policy.arms[1].weight"),
        ([("m", 1)], "traffic_policy.arms[0].target"),
        ([("models/m/versions/0", 1)], "traffic_policy.arms[0].target"),
        ([("models/../versions/1", 1)], "traffic_policy.arms[0].target"),
    ],
)
def test_a_policy_that_says_nothing_is_refused(arms: list[tuple[str, int]], field: str) -> None:
    with pytest.raises(InvalidField) as caught:
        check_arms(arms)
    assert caught.value.metadata["field"] == field


def test_an_arm_must_be_able_to_answer() -> None:
    def version(number: int, verdict: VersionState) -> Version:
        return Version(model="m", number=number, verdict=verdict, source="/s")

    approved, pending = VersionState.APPROVED, VersionState.PENDING
    known = Entry(
        Model(name="m", aliases={"live": 1, "next": 2}),
        {1: version(1, approved), 2: version(2, pending)},
    )
    entries = {"m": known, "n": Entry(Model(name="n"))}
    check_targets([Arm(Target("m"), 1), Arm(Target("m", alias="live"), 0)], entries)
    for target, error in (
        (Target("m", version=3), VersionNotFound),
        (Target("m", alias="nix"), VersionNotFound),
        (Target("m", version=2), IllegalState),
        (Target("m", alias="next"), IllegalState),
        (Target("n"), NoApprovedVersion),
    ):
        with pytest.raises(error):
            check_targets([Arm(target, 1)], entries)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("models/m/versions/0", InvalidVersion),
        ("models/m/versions/01", InvalidVersion),
        ("models/m/versions/-3", InvalidVersion),
        ("models/m/versions/latest", InvalidVersion),
        ("models/../versions/1", InvalidName),
        ("models/m", InvalidName),
        ("m:1", InvalidName),
    ],
)
def test_names_of_versions(text: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        validation.version_name("name", text)
    assert validation.version_name("name", "models/m.x/versions/12") == ("m.x", 12)


def test_masks() -> None:
    allowed = ("description", "labels")
    assert validation.update_mask(["labels"], allowed) == {"labels"}
    assert validation.update_mask(["*"], allowed) == set(allowed)
    for paths in ([], ["nix"], ["labels.key"], ["*", "nix"]):
        with pytest.raises(InvalidField):
            validation.update_mask(paths, allowed)


@pytest.mark.parametrize(
    "memory", [{"ram": -1}, {"disk": 1}, {"gpu": 1}, {"gpu:01": 1}, {"gpu:-1": 1}]
)
def test_memory_is_of_known_resources(memory: dict[str, int]) -> None:
    with pytest.raises(InvalidField):
        validation.memory("memory", memory)
    assert validation.memory("memory", {"ram": 0, "gpu:1": 2}) == {"gpu:1": 2, "ram": 0}


@pytest.mark.parametrize(
    "labels",
    [{"": "v"}, {"-a": "v"}, {"a b": "v"}, {"k": "v" * 1025}, {f"k{n}": "" for n in range(65)}],
)
def test_labels_have_limits(labels: dict[str, str]) -> None:
    with pytest.raises(InvalidField):
        validation.labels(labels)


def test_required_models_in_a_parameter() -> None:
    assert list(validation.requirements(" a, b:2 ,,c.d:10")) == [("a", 0), ("b", 2), ("c.d", 10)]
    for text in ("a b", "a:", "a:0", "a:01", "../a", "a:b"):
        with pytest.raises(InvalidField):
            list(validation.requirements(text))


@given(st.text(max_size=8), st.text(max_size=8), st.integers(0, 2**63 - 1))
def test_a_page_goes_on_where_the_token_says(scope: str, name: str, number: int) -> None:
    token = paging.token(scope, (name, number))
    assert paging.page(scope, 7, token) == paging.Page(7, (name, number))
    with pytest.raises(InvalidField):
        paging.page(f"{scope}x", 7, token)


@pytest.mark.parametrize("token", ["nonsense", "AAAA", "e30=", "ä", "WyJtb2RlbHMiXQ=="])
def test_a_token_of_nobody_is_refused(token: str) -> None:
    with pytest.raises(InvalidField, match="page_token"):
        paging.page("models", 0, token)


@pytest.mark.parametrize("size", [-1, 1001])
def test_page_sizes_have_limits(size: int) -> None:
    with pytest.raises(InvalidField, match="page_size"):
        paging.page("models", size, "")
    assert paging.page("models", 0, "").size == paging.DEFAULT_SIZE


def test_a_holder_keeps_its_epoch_and_others_wait() -> None:
    first = held(Lease(), "a", "1", 10 * SECOND, 0)
    assert first == Lease(1, "a", "1", 10 * SECOND, 10 * SECOND)
    again = held(first, "a", "1", 10 * SECOND, 9 * SECOND)
    assert (again.epoch, again.expires_us) == (1, 19 * SECOND)
    with pytest.raises(LeaseHeld) as caught:
        held(again, "b", "1", 10 * SECOND, 12 * SECOND)
    assert caught.value.retry_after == 7.0
    assert held(again, "b", "1", 10 * SECOND, 19 * SECOND).epoch == 2
    assert held(again, "a", "1", 10 * SECOND, 19 * SECOND).epoch == 2


def test_a_new_incarnation_takes_over_at_once() -> None:
    first = held(Lease(), "a", "1", 10 * SECOND, 0)
    assert held(first, "a", "2", 10 * SECOND, 1).epoch == 2


def test_a_clock_set_back_lengthens_a_lease_to_its_ttl_at_most() -> None:
    first = held(Lease(), "a", "1", 10 * SECOND, 1000 * SECOND)
    with pytest.raises(LeaseHeld) as caught:
        held(first, "b", "1", 10 * SECOND, 0)
    assert caught.value.retry_after == 10.0


@given(
    st.lists(
        st.tuples(
            st.sampled_from("ab"), st.sampled_from("12"), st.integers(0, 20), st.integers(1, 10)
        )
    )
)
def test_two_holders_never_share_an_epoch(asks: list[tuple[str, str, int, int]]) -> None:
    lease, now = Lease(), 0
    holders: dict[int, tuple[str, str]] = {}
    for holder, incarnation, passed, ttl in asks:
        now += passed
        try:
            lease = held(lease, holder, incarnation, ttl, now)
        except LeaseHeld:
            assert now < lease.expires_us
        else:
            who = (holder, incarnation)
            assert holders.setdefault(lease.epoch, who) == who
            assert lease.epoch == max(holders)


def test_high_water_marks_never_fall_for_one_config() -> None:
    name = ModelVersionName("m", 1)
    known = Footprint(name, "digest", {"ram": 10, "gpu:0": 1}, 5)
    lower = Footprint(name, "digest", {"ram": 3, "gpu:0": 2}, 0)
    assert merged(known, lower) == Footprint(name, "digest", {"gpu:0": 2, "ram": 10}, 5)
    other = replace(lower, config_digest="other")
    assert merged(known, other) == other
    assert merged(None, lower) == lower
