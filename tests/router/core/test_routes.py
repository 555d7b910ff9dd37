"""From what a request names to the version that answers it."""

import contextlib
import math
from collections import Counter

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from services.common.errors import (
    InvalidName,
    InvalidVersion,
    ModelNotFound,
    NoApprovedVersion,
    NotServable,
    ShoalError,
    VersionNotFound,
)
from services.router.core.errors import VersionNotANumber
from services.router.core.routing.routes import (
    Arm,
    Route,
    Target,
    VersionRoute,
    resolve,
    shares,
    why,
)

ALMOST_ONE = math.nextafter(1.0, 0.0)  # the largest draw there is


def route(
    *versions: int, default: int = 0, arms: tuple[Arm, ...] = (), **aliases: int
) -> dict[str, Route]:
    """One model named `m`."""
    entries = {version: VersionRoute(servers=("t0",)) for version in versions}
    return {"m": Route(default, aliases, entries, arms)}


def test_the_reason_names_what_decided() -> None:
    policy = (Arm("m", 1, 3), Arm("m", 2, 1))
    routes = route(1, 2, default=2, arms=policy, stable=1)
    assert why(routes, "m", "stable", Target("m", 1)) == "version 'stable' was asked for: m:1"
    drawn = "no version was asked for, the traffic policy gives 25% to m:2"
    assert why(routes, "m", "", Target("m", 2)) == drawn
    default = "no version was asked for, the default is 2"
    assert why(route(1, 2, default=2), "m", "", Target("m", 2)) == default


# --- a request that names a version ---------------------------------------------------------------


def test_a_number_is_that_version_whatever_the_policy_says() -> None:
    routes = route(1, 2, default=2, arms=(Arm("m", 2, 1),))
    assert resolve(routes, "m", "1", 0.5) == Target("m", 1)
    assert shares(routes, "m", "1") == [(Target("m", 1), 1.0)]


def test_an_alias_is_the_version_that_it_points_at() -> None:
    routes = route(1, 2, default=2, stable=1)
    assert resolve(routes, "m", "stable", 0.0) == Target("m", 1)
    assert shares(routes, "m", "stable") == [(Target("m", 1), 1.0)]


def test_a_version_that_may_not_answer_is_still_the_one_that_was_named() -> None:
    """Why it may not is for the Controller to say."""
    routes = {"m": Route(versions={3: VersionRoute(servable=False, reason="rejected")})}
    assert resolve(routes, "m", "3", 0.0) == Target("m", 3)


@pytest.mark.parametrize("version", ["9", str(2**63 - 1)])
def test_an_unknown_version_names_those_that_are_known(version: str) -> None:
    with pytest.raises(VersionNotFound) as caught:
        resolve(route(10, 2, 1), "m", version, 0.0)
    assert caught.value.metadata == {"model": "m", "version": version, "versions": "1, 2, 10"}


def test_an_alias_of_a_version_that_is_gone_is_not_found() -> None:
    with pytest.raises(VersionNotFound, match="Registered versions: 1"):
        resolve(route(1, old=7), "m", "old", 0.0)


def test_no_versions_are_called_none() -> None:
    with pytest.raises(VersionNotFound, match="Registered versions: none"):
        resolve(route(), "m", "1", 0.0)


@pytest.mark.parametrize("version", ["canary", "v1", "../2", "²", "é", "-", "."])
def test_what_is_no_number_for_triton_either_is_refused_in_its_words(version: str) -> None:
    for asked in (resolve, lambda *args: shares(*args[:3])):
        with pytest.raises(VersionNotANumber) as caught:
            asked(route(1, stable=1), "m", version, 0.0)
        assert caught.value.message.startswith(
            f"failed to get model version from specified version string '{version}' "
            "(details: stol), version should be an integral value > 0. "
        )


@pytest.mark.parametrize("version", ["0", "-1", "01", "1.5", " 1", str(2**63)])
def test_what_is_neither_version_nor_alias_is_invalid(version: str) -> None:
    for asked in (resolve, lambda *args: shares(*args[:3])):
        with pytest.raises(InvalidVersion):
            asked(route(1), "m", version, 0.0)


def test_a_long_version_is_not_repeated_in_full() -> None:
    with pytest.raises(VersionNotANumber) as caught:
        resolve(route(1), "m", "!" * 10_000, 0.0)
    assert caught.value.metadata["version"] == "!" * 64


# --- a request that names none --------------------------------------------------------------------


def test_without_a_policy_the_default_answers() -> None:
    routes = route(1, 2, default=1)
    assert resolve(routes, "m", "", ALMOST_ONE) == Target("m", 1)
    assert shares(routes, "m", "") == [(Target("m", 1), 1.0)]


def test_without_an_approved_version_there_is_no_default() -> None:
    with pytest.raises(NoApprovedVersion, match="Registered versions: 1, 2"):
        resolve(route(1, 2), "m", "", 0.0)


def test_a_model_that_cannot_be_served_says_why() -> None:
    broken = VersionRoute(servable=False, reason="invalid: no model.py", problem="no model.py")
    rejected = VersionRoute(servable=False, reason="rejected")
    routes = {"m": Route(versions={1: broken, 2: broken, 3: rejected})}
    with pytest.raises(NotServable) as caught:
        resolve(routes, "m", "", 0.0)
    assert caught.value.metadata == {"model": "m", "version": "2", "problem": "no model.py"}
    assert str(caught.value).startswith("Request for unknown model: 'm' version 2 is not found.")
    pending = {"m": Route(versions={1: broken, 2: VersionRoute()})}
    with pytest.raises(NoApprovedVersion):
        resolve(pending, "m", "", 0.0)


@pytest.mark.parametrize("name", ["nope", "m2", "M"])
def test_an_unknown_model(name: str) -> None:
    for version in ("", "1", "stable", "!"):
        with pytest.raises(ModelNotFound):
            resolve(route(1, default=1), name, version, 0.0)
    with pytest.raises(ModelNotFound):
        shares(route(1, default=1), name, "")


@pytest.mark.parametrize("name", ["", "../m", "a/b", ".m", "m m", "m\n", "x" * 256])
def test_a_name_that_no_model_can_have(name: str) -> None:
    with pytest.raises(InvalidName):
        resolve(route(1, default=1), name, "", 0.0)


# --- traffic policies -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("draw", "version"),
    [(0.0, 1), (0.2999999, 1), (0.3, 2), (0.9999999, 2), (ALMOST_ONE, 2)],
)
def test_draws_at_the_edges(draw: float, version: int) -> None:
    routes = route(1, 2, default=1, arms=(Arm("m", 1, 3), Arm("m", 2, 7)))
    assert resolve(routes, "m", "", draw) == Target("m", version)


@pytest.mark.parametrize("draw", [0.0, 0.5, ALMOST_ONE])
@pytest.mark.parametrize("weights", [(0, 1, 0), (0, 0, 5), (7, 0, 0)])
def test_an_arm_of_weight_zero_is_never_drawn(weights: tuple[int, ...], draw: float) -> None:
    arms = tuple(Arm("m", version, weight) for version, weight in enumerate(weights, 1))
    routes = route(1, 2, 3, default=1, arms=arms)
    only = weights.index(max(weights)) + 1
    assert resolve(routes, "m", "", draw) == Target("m", only)
    assert shares(routes, "m", "") == [(Target("m", only), 1.0)]


def test_a_hundred_evenly_spread_draws_are_split_by_weight() -> None:
    arms = (Arm("m", 1, 70), Arm("m", 2, 30))
    routes = route(1, 2, default=1, arms=arms)
    drawn = Counter(resolve(routes, "m", "", i / 100).version for i in range(100))
    assert drawn == {1: 70, 2: 30}


def test_an_arm_may_be_another_model_or_its_default() -> None:
    routes = {
        "front": Route(arms=(Arm("a", 4, 1), Arm("b", 0, 1))),
        "a": Route(versions={4: VersionRoute()}),
        "b": Route(default_version=9, versions={9: VersionRoute()}, arms=(Arm("a", 4, 1),)),
    }
    assert resolve(routes, "front", "", 0.0) == Target("a", 4)
    assert resolve(routes, "front", "", 0.5) == Target("b", 9), "its default, not its policy"
    assert shares(routes, "front", "") == [(Target("a", 4), 0.5), (Target("b", 9), 0.5)]


@pytest.mark.parametrize("version", [0, 3])
def test_an_arm_whose_model_is_gone_is_not_found(version: int) -> None:
    routes = route(1, default=1, arms=(Arm("gone", version, 1),))
    with pytest.raises(ModelNotFound, match="'gone'"):
        resolve(routes, "m", "", 0.0)


def test_an_arm_whose_model_has_no_approved_version() -> None:
    routes = {"m": Route(arms=(Arm("raw", 0, 1),)), "raw": Route(versions={1: VersionRoute()})}
    with pytest.raises(NoApprovedVersion, match="'raw'"):
        resolve(routes, "m", "", 0.0)


# --- over all tables ------------------------------------------------------------------------------

versions = {number: VersionRoute() for number in (1, 2, 3)}
weights = st.integers(0, 3) | st.integers(0, 10_000)
draws = st.floats(0, 1, exclude_max=True) | st.sampled_from([0.0, 0.25, 0.5, 0.75, ALMOST_ONE])


def arm_lists(models: str, numbers: st.SearchStrategy[int]) -> st.SearchStrategy[tuple[Arm, ...]]:
    return (
        st.lists(st.builds(Arm, st.sampled_from(models), numbers, weights), max_size=6)
        # The Registry refuses a policy of zeroes.
        .filter(lambda arms: not arms or any(arm.weight for arm in arms))
        .map(tuple)
    )


sound = st.fixed_dictionaries(
    {
        model: st.builds(
            Route,
            default_version=st.integers(1, 3),
            aliases=st.just({"stable": 2}),
            versions=st.just(versions),
            arms=arm_lists("mno", st.integers(0, 3)),
        )
        for model in "mno"
    }
)
# With what is missing while a change of several models is on its way.
holed = st.dictionaries(
    st.sampled_from("mno"),
    st.builds(
        Route,
        default_version=st.integers(0, 3),
        aliases=st.dictionaries(st.sampled_from(["stable", "canary"]), st.integers(0, 3)),
        versions=st.dictionaries(st.integers(1, 3), st.just(VersionRoute())),
        arms=arm_lists("mnox", st.integers(0, 3)),
    ),
)


@given(sound, st.sampled_from("mno"), st.sampled_from(["", "", "3", "stable"]), draws)
def test_every_draw_is_among_the_shares_and_they_sum_to_one(
    routes: dict[str, Route], model: str, version: str, draw: float
) -> None:
    found = shares(routes, model, version)
    assert math.isclose(sum(share for _, share in found), 1.0)
    assert all(share > 0 for _, share in found)
    assert resolve(routes, model, version, draw) in {target for target, _ in found}


@given(holed, st.sampled_from("mnox"), st.sampled_from(["", "1", "stable", "no such"]), draws)
def test_what_is_resolved_can_be_looked_up(
    routes: dict[str, Route], model: str, version: str, draw: float
) -> None:
    """Whatever comes out belongs to a model of the table, so its route can be read."""
    with contextlib.suppress(ShoalError):
        target = resolve(routes, model, version, draw)
        assert target.model in routes
        assert target.version >= 1


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=8), draws)
def test_a_draw_falls_where_the_weights_add_up_to(weights: list[int], draw: float) -> None:
    assume(any(weights))
    arms = tuple(Arm("m", version, weight) for version, weight in enumerate(weights, 1))
    chosen = resolve(route(default=1, arms=arms), "m", "", draw).version
    before, through = sum(weights[: chosen - 1]), sum(weights[:chosen])
    assert before <= draw * sum(weights) < through
