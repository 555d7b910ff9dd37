"""What leaves for a newcomer, against every set of victims that there could be."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from services.controller.core.entities import (
    Unit,
)
from services.controller.core.placement import Place
from services.controller.core.states import State
from services.controller.core.victims import Blocked, Terms, Wait
from tests.support.placement_views import (
    KEPT,
    LEASED,
    LEAVING,
    LIMITS,
    NOW,
    PINNED,
    A,
    B,
    C,
    Case,
    There,
    crowded,
    decide,
    enough,
    every_choice,
    fleet_of,
    known,
    placed,
    server,
    spec,
    victims,
    view,
)

# --- versions whose configs differ ----------------------------------------------------------------

OTHER = spec("m:2", 10, config_digest="other")


@pytest.mark.parametrize("name", ["m:1", "m:3"])
def test_a_version_with_another_config_leaves_even_where_there_is_room(name: str) -> None:
    resident = spec(name, 10)
    assert victims(decide(OTHER, view(server(100), There(resident, 1)), more=[resident])) == ["m"]


def test_a_version_with_the_same_config_stays() -> None:
    resident = spec("m:1", 10, config_digest="other")
    assert victims(decide(OTHER, view(server(100), There(resident, 1)), more=[resident])) == []


def test_a_pinned_version_with_another_config_blocks() -> None:
    resident = spec("m:1", 10)
    here = view(server(100), There(resident, 1), protected={"m": PINNED})
    decision = decide(OTHER, here, more=[resident])
    assert isinstance(decision, Blocked)
    assert decision.reason == "m:1 is kept on t0 (pinned) and has a different config"


@pytest.mark.parametrize(
    ("state", "protected"),
    [(State.READY, {"m": LEASED}), (State.LOADING, {}), (State.QUEUED, {})],
)
def test_a_version_with_another_config_that_is_busy_is_waited_for(
    state: State, protected: dict[str, str]
) -> None:
    resident = spec("m:1", 10)
    here = view(server(100), There(resident, 1, state), protected=protected)
    assert isinstance(decide(OTHER, here, more=[resident]), Wait)


@pytest.mark.parametrize("state", LEAVING)
def test_a_version_with_another_config_that_leaves_is_no_victim(state: State) -> None:
    resident = spec("m:1", 10)
    assert (
        victims(decide(OTHER, view(server(100), There(resident, 1, state)), more=[resident])) == []
    )


def test_another_copy_does_not_take_the_place_of_a_version_in_use() -> None:
    resident = spec("m:1", 10)
    here = view(server(100), There(resident, NOW - 5))
    assert isinstance(decide(OTHER, here, more=[resident], terms=Terms(idle_since=NOW - 60)), Wait)
    idle = view(server(100), There(resident, NOW - 70))
    assert victims(decide(OTHER, idle, more=[resident], terms=Terms(idle_since=NOW - 60))) == ["m"]


def test_a_pin_above_a_lease_blocks_whichever_is_seen_first() -> None:
    part, above = spec("m:1", 10), [spec(f"e{i}", 0, "m:1") for i in range(6)]
    replicas = [There(each, 1) for each in (part, *above)]
    for pinned in above:
        protected = {each.unit.model: LEASED for each in above} | {pinned.unit.model: PINNED}
        here = view(server(100), *replicas, protected=protected)
        assert isinstance(decide(OTHER, here, more=[part, *above]), Blocked)


def test_an_ensemble_leaves_with_its_part_of_another_config() -> None:
    part, above = spec("m:1", 10), spec("e", 0, "m:1")
    here = view(server(100), There(part, 1), There(above, 1))
    assert victims(decide(OTHER, here, more=[part, above])) == ["e", "m"], "ensembles first"


# --- victims --------------------------------------------------------------------------------------


def test_the_least_recently_used_leaves() -> None:
    here = view(server(30), There(A, 3), There(B, 1), There(C, 2))
    assert victims(decide(spec("n", 10), here, more=[A, B, C])) == ["b"]


def test_a_small_old_one_stays_when_a_larger_younger_one_has_to_leave() -> None:
    small, large = spec("small", 5), spec("large", 50)
    here = view(server(60), There(small, 1), There(large, 2))
    assert victims(decide(spec("n", 50), here, more=[small, large])) == ["large"]


def test_of_those_that_are_left_over_the_younger_stay() -> None:
    listed = [spec("old", 30), spec("young", 30), spec("large", 50)]
    here = view(server(110), *(There(each, used) for used, each in enumerate(listed)))
    assert set(victims(decide(spec("n", 80), here, more=listed))) == {"old", "large"}


def test_of_an_ensembles_parts_only_what_is_needed_leaves() -> None:
    parts = [spec("x", 5), spec("y", 50)]
    above = spec("e", 0, "x", "y")
    here = view(server(60), There(parts[0], 1), There(parts[1], 2), There(above, 1))
    chosen = victims(decide(spec("n", 50), here, more=[*parts, above]))
    assert chosen == ["e", "y"], "x can stay"


def test_a_part_of_a_protected_ensemble_stays() -> None:
    part, above = spec("x", 10), spec("e", 0, "x")
    here = view(server(20), There(part, 1), There(above, 1), There(B, 9), protected={"e": LEASED})
    assert victims(decide(C, here, more=[part, above, B])) == ["b"]


def test_the_parts_that_the_newcomer_needs_are_no_victims() -> None:
    parts = [spec("x", 10), spec("y", 10)]
    here = view(server(20), There(parts[0], 1), There(B, 9))
    decision = placed(decide(spec("e", 0, "x", "y"), here, more=[*parts, B]))
    assert [each.model for each in decision.victims] == ["b"]
    assert [each.unit.model for each in decision.units] == ["y", "e"]


@pytest.mark.parametrize("policy", ["lru", "gdsf"])
@settings(max_examples=2 * settings().max_examples)
@given(case=crowded(ensembles=True))
def test_victims_are_never_more_than_needed(policy: str, case: Case) -> None:
    newcomer, here, listed = case
    specs = known(*listed)
    choices = [each for each in every_choice(here, specs) if enough(each, newcomer, here, specs)]
    decision = decide(newcomer, here, more=listed, limits=replace(LIMITS, policy=policy))
    if not choices:
        assert isinstance(decision, Wait | Blocked)
        return
    chosen = placed(decision).victims
    assert len(chosen) == len(set(chosen))
    assert set(chosen) in choices
    assert not any(other < set(chosen) for other in choices), "a part of them would be enough"
    fleet = fleet_of([here], listed)
    for index, part in enumerate(chosen):
        assert fleet.holders(part, "t0") <= set(chosen[:index]), "ensembles first"


@settings(max_examples=2 * settings().max_examples)
@given(crowded(ensembles=False))
def test_the_most_recently_used_stay_where_they_can(case: Case) -> None:
    """Of two choices that are enough the better one spares the most recently used that differs."""
    newcomer, here, listed = case
    specs = known(*listed)

    def cost(gone: Iterable[Unit]) -> list[tuple[float, Unit]]:
        return sorted(((here.last_used[each], each) for each in gone), reverse=True)

    choices = [each for each in every_choice(here, specs) if enough(each, newcomer, here, specs)]
    assume(choices)
    assert cost(placed(decide(newcomer, here, more=listed)).victims) == min(map(cost, choices))


@settings(max_examples=2 * settings().max_examples)
@given(crowded(ensembles=False))
def test_lru_takes_the_least_recently_used_but_those_that_need_not_leave(case: Case) -> None:
    newcomer, here, listed = case
    specs = known(*listed)
    decision = decide(newcomer, here, more=listed)
    assume(isinstance(decision, Place))
    prefix: list[Unit] = []
    for candidate in sorted(here.last_used, key=lambda each: (here.last_used[each], each)):
        if enough(prefix, newcomer, here, specs):
            break
        if any(candidate in choice for choice in every_choice(here, specs)):
            prefix.append(candidate)
    for candidate in reversed(prefix.copy()):  # the most recently used is spared first
        rest = [each for each in prefix if each != candidate]
        if enough(rest, newcomer, here, specs):
            prefix = rest
    assert set(placed(decision).victims) == set(prefix)


@given(crowded(ensembles=True))
def test_blocked_means_that_waiting_cannot_help(case: Case) -> None:
    newcomer, here, listed = case
    decision = decide(newcomer, here, more=listed)
    assume(isinstance(decision, Wait | Blocked))
    firm = [name for name, why in here.protected.items() if why in (PINNED, KEPT)]
    fleet = fleet_of([here], listed)
    stay = {
        unit
        for unit in here.last_used
        if any(member.model in firm for member in fleet.family(unit, "t0"))
    }
    settled = [replace(each, state=State.READY) for each in here.there if each.spec.unit in stay]
    room = enough((), newcomer, replace(here, there=tuple(settled)), known(*listed))
    assert isinstance(decision, Wait if room else Blocked)


@given(crowded(ensembles=True), st.randoms())
def test_the_order_in_which_things_are_listed_does_not_matter(case: Case, random: Any) -> None:
    newcomer, here, listed = case
    shuffled = list(here.there)
    random.shuffle(shuffled)
    other = replace(here, there=tuple(shuffled))
    assert decide(newcomer, other, more=listed) == decide(newcomer, here, more=listed)


@given(crowded(ensembles=True))
def test_what_may_evict_nothing_gets_a_place_only_where_there_is_room(case: Case) -> None:
    newcomer, here, listed = case
    decision = decide(newcomer, here, more=listed, terms=Terms(evict=False))
    if enough((), newcomer, here, known(*listed)):
        assert placed(decision).victims == ()
    else:
        assert isinstance(decision, Wait)
