"""Where a unit goes and what leaves for it, against every set of victims that there could be."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from services.controller.core import memory, placement
from services.controller.core.entities import (
    Health,
    Limits,
    Replica,
    ReplicaKey,
    Server,
    Unit,
    UnitSpec,
    reservation,
)
from services.controller.core.placement import Never, NoServer, Place, place, score
from services.controller.core.residents import PINNED, ServerView, group, holders
from services.controller.core.states import State
from services.controller.core.victims import Blocked, Wait

LIMITS = Limits()
NOW = 1000.0
LEASED = "about to be used"
LEAVING = (State.DRAINING, State.UNLOADING)


def unit(name: str) -> Unit:
    """`m` or `m:2`."""
    model, _, version = name.partition(":")
    return Unit(model, int(version or 1))


def spec(name: str, ram: int = 0, *parts: str, **more: Any) -> UnitSpec:
    """`ram`: declared bytes, 0 for unknown. With parts it is an ensemble."""
    return UnitSpec(
        unit(name),
        **{
            "config_digest": "d",
            "declared": {"ram": ram} if ram else {},
            "requires": tuple(map(unit, parts)),
            "ensemble": bool(parts),
            **more,
        },
    )


def known(*specs: UnitSpec) -> dict[Unit, UnitSpec]:
    return {each.unit: each for each in specs}


def server(ram: int | None = None, models: int = 0, **more: Any) -> Server:
    """Healthy, with `ram` bytes (None: no budget) and room for `models` (0: any number)."""
    budget = {} if ram is None else {"ram": ram}
    return Server(more.pop("id", "t0"), "h:1", budget, models, **{"health": Health.HEALTHY, **more})


def replica(each: UnitSpec, used: float, state: State = State.READY, on: str = "t0") -> Replica:
    """`used`: when it was last used."""
    return Replica(ReplicaKey(on, each.unit), state, each.declared, 0.0, "", used)


def view(on: Server, *replicas: Replica, protected: Mapping[str, str] | None = None) -> ServerView:
    return ServerView(
        on,
        {each.unit: each for each in replicas},
        {unit(name): why for name, why in (protected or {}).items()},
    )


def decide(
    wanted: UnitSpec, *views: ServerView, more: Iterable[UnitSpec] = ()
) -> placement.Decision:
    return place(wanted, views, known(wanted, *more), LIMITS, NOW)


def placed(decision: placement.Decision) -> Place:
    assert isinstance(decision, Place), decision
    return decision


def victims(decision: placement.Decision) -> list[str]:
    return [each.model for each in placed(decision).victims]


A, B, C = spec("a", 10), spec("b", 10), spec("c", 10)


# --- filter ---------------------------------------------------------------------------------------


def test_an_empty_server_takes_it_as_it_is() -> None:
    chosen = placed(decide(A, view(server(100))))
    assert (chosen.server, chosen.units, chosen.victims) == ("t0", (A,), ())
    assert chosen.reason == "ram 0 MiB on t0, which has room"


def test_what_no_empty_server_could_hold_never_fits() -> None:
    big = spec("big", 3 << 30)
    decision = decide(
        big, view(server(1 << 30)), view(server(2 << 30, id="t1", health=Health.UNREACHABLE))
    )
    assert isinstance(decision, Never)
    assert decision.reason == (
        "t0 has ram 1.00 GiB, it needs ram 3.00 GiB; t1 has ram 2.00 GiB, it needs ram 3.00 GiB"
    )


def test_more_parts_than_a_server_may_hold_never_fit() -> None:
    parts = [spec(name, 1) for name in "xyz"]
    decision = decide(spec("e", 0, "x", "y", "z"), view(server(models=2)), more=parts)
    assert isinstance(decision, Never)
    assert decision.reason == "t0 holds 2 models at a time, it is made of 3"


def test_an_ensemble_takes_no_place_itself() -> None:
    parts = [spec(name, 1) for name in "xy"]
    chosen = placed(decide(spec("e", 0, "x", "y"), view(server(models=2)), more=parts))
    assert [each.unit.model for each in chosen.units] == ["x", "y", "e"], "parts first"


def test_a_guess_rules_nothing_out_but_what_lies_on_disk_does() -> None:
    assert isinstance(decide(spec("m", artifact_bytes=90), view(server(100))), Place)
    assert isinstance(decide(spec("m", artifact_bytes=101), view(server(100))), Never)


@pytest.mark.parametrize("there", [0, 1, 4])
def test_guesses_that_add_up_to_too_much_rule_nothing_out_either(there: int) -> None:
    """Six times a quarter; they are loaded one by one and turn out smaller."""
    parts = [spec(name) for name in "uvwxyz"]
    present = [replica(replace(each, declared={"ram": 25}), 1) for each in parts[:there]]
    above = spec("e", 0, *"uvwxyz")
    decision = decide(above, view(server(100), *present, replica(A, 9)), more=[*parts, A])
    assert victims(decision) == ["a"], "for what may take all the rest everything else leaves"
    assert len(placed(decision).units) == 7 - there


def test_a_size_that_is_known_is_not_cut_with_the_guesses() -> None:
    grown, declared, guessed = spec("x", 60), spec("y", 30), spec("z")
    here = view(server(100), replica(replace(grown, declared={"ram": 80}), 1))
    decision = decide(spec("e", 0, "x", "y", "z"), here, more=[grown, declared, guessed])
    assert isinstance(decision, Blocked)
    assert decision.reason == "on t0 the room is taken by its own parts, larger than expected"


def test_one_server_that_could_hold_it_is_enough() -> None:
    big = spec("big", 50)
    chosen = placed(decide(big, view(server(40)), view(server(60, id="t1"))))
    assert chosen.server == "t1"


def test_without_a_server() -> None:
    decision = decide(A)
    assert isinstance(decision, NoServer)
    assert decision.reason == "no server is configured"


def test_without_a_healthy_server() -> None:
    decision = decide(
        A,
        view(server(100, health=Health.UNKNOWN)),
        view(server(100, id="t1", health=Health.UNREACHABLE, reason="it does not answer")),
    )
    assert isinstance(decision, NoServer)
    assert decision.reason == "t0 is not inventoried yet, t1 is it does not answer"


def test_a_server_that_could_hold_it_is_waited_for() -> None:
    big = spec("big", 50)
    decision = decide(big, view(server(40)), view(server(60, id="t1", health=Health.UNREACHABLE)))
    assert isinstance(decision, Wait)
    assert "not healthy" in decision.reason


# --- wait, or blocked -----------------------------------------------------------------------------


def test_only_pinned_replicas_in_the_way_block() -> None:
    decision = decide(C, view(server(15), replica(A, 1), protected={"a": PINNED}), more=[A])
    assert isinstance(decision, Blocked)
    assert decision.reason == "on t0 the room is taken by what is pinned: a:1"


@pytest.mark.parametrize("models", [0, 1])
def test_a_use_lease_in_the_way_ends_by_itself(models: int) -> None:
    here = view(server(None if models else 15, models), replica(A, 1), protected={"a": LEASED})
    assert isinstance(decide(C, here, more=[A]), Wait)


@pytest.mark.parametrize("state", [State.QUEUED, State.LOADING])
def test_a_load_in_the_way_is_waited_for(state: State) -> None:
    assert isinstance(decide(C, view(server(15), replica(A, 1, state)), more=[A]), Wait)


@pytest.mark.parametrize("state", LEAVING)
def test_what_is_on_its_way_out_makes_room_already(state: State) -> None:
    """Its memory is waited for before the load, and no second victim is asked."""
    here = view(server(25), replica(A, 1, state), replica(B, 0))
    assert victims(decide(C, here, more=[A, B])) == []


@pytest.mark.parametrize("state", LEAVING)
def test_a_unit_comes_back_only_when_it_is_gone(state: State) -> None:
    decision = decide(A, view(server(100), replica(A, 1, state)))
    assert isinstance(decision, Wait)
    assert decision.reason == "a:1 is still on its way out of t0"


def test_another_server_is_better_than_waiting() -> None:
    blocked = view(server(15), replica(A, 1), protected={"a": PINNED})
    waiting = view(server(15, id="t1"), replica(A, 1, on="t1"), protected={"a": LEASED})
    free = view(server(15, id="t2"))
    assert placed(decide(C, blocked, waiting, free, more=[A])).server == "t2"
    assert isinstance(decide(C, blocked, waiting, more=[A]), Wait)


# --- versions whose configs differ ----------------------------------------------------------------

OTHER = spec("m:2", 10, config_digest="other")


@pytest.mark.parametrize("name", ["m:1", "m:3"])
def test_a_version_with_another_config_leaves_even_where_there_is_room(name: str) -> None:
    resident = spec(name, 10)
    assert victims(decide(OTHER, view(server(100), replica(resident, 1)), more=[resident])) == ["m"]


def test_a_version_with_the_same_config_stays() -> None:
    resident = spec("m:1", 10, config_digest="other")
    assert victims(decide(OTHER, view(server(100), replica(resident, 1)), more=[resident])) == []


def test_a_pinned_version_with_another_config_blocks() -> None:
    resident = spec("m:1", 10)
    here = view(server(100), replica(resident, 1), protected={"m": PINNED})
    decision = decide(OTHER, here, more=[resident])
    assert isinstance(decision, Blocked)
    assert "m:1 is pinned on t0 and has another config" in decision.reason


@pytest.mark.parametrize(
    ("state", "protected"),
    [(State.READY, {"m": LEASED}), (State.LOADING, {}), (State.QUEUED, {}), (State.DRAINING, {})],
)
def test_a_version_with_another_config_that_is_busy_is_waited_for(
    state: State, protected: dict[str, str]
) -> None:
    resident = spec("m:1", 10)
    here = view(server(100), replica(resident, 1, state), protected=protected)
    assert isinstance(decide(OTHER, here, more=[resident]), Wait)


def test_a_pin_above_a_lease_blocks_whichever_is_seen_first() -> None:
    part, above = spec("m:1", 10), [spec(f"e{i}", 0, "m:1") for i in range(6)]
    replicas = [replica(each, 1) for each in (part, *above)]
    for pinned in above:
        protected = {each.unit.model: LEASED for each in above} | {pinned.unit.model: PINNED}
        here = view(server(100), *replicas, protected=protected)
        assert isinstance(decide(OTHER, here, more=[part, *above]), Blocked)


def test_an_ensemble_leaves_with_its_part_of_another_config() -> None:
    part, above = spec("m:1", 10), spec("e", 0, "m:1")
    here = view(server(100), replica(part, 1), replica(above, 1))
    assert victims(decide(OTHER, here, more=[part, above])) == ["e", "m"], "ensembles first"


# --- victims --------------------------------------------------------------------------------------


def test_the_least_recently_used_leaves() -> None:
    here = view(server(30), replica(A, 3), replica(B, 1), replica(C, 2))
    assert victims(decide(spec("n", 10), here, more=[A, B, C])) == ["b"]


def test_a_small_old_one_stays_when_a_larger_younger_one_has_to_leave() -> None:
    small, large = spec("small", 5), spec("large", 50)
    here = view(server(60), replica(small, 1), replica(large, 2))
    assert victims(decide(spec("n", 50), here, more=[small, large])) == ["large"]


def test_of_those_that_are_left_over_the_younger_stay() -> None:
    listed = [spec("old", 30), spec("young", 30), spec("large", 50)]
    here = view(server(110), *(replica(each, used) for used, each in enumerate(listed)))
    assert set(victims(decide(spec("n", 80), here, more=listed))) == {"old", "large"}


def test_of_an_ensembles_parts_only_what_is_needed_leaves() -> None:
    parts = [spec("x", 5), spec("y", 50)]
    above = spec("e", 0, "x", "y")
    here = view(server(60), replica(parts[0], 1), replica(parts[1], 2), replica(above, 1))
    chosen = victims(decide(spec("n", 50), here, more=[*parts, above]))
    assert chosen == ["e", "y"], "x can stay"


def test_a_part_of_a_protected_ensemble_stays() -> None:
    part, above = spec("x", 10), spec("e", 0, "x")
    here = view(
        server(20), replica(part, 1), replica(above, 1), replica(B, 9), protected={"e": LEASED}
    )
    assert victims(decide(C, here, more=[part, above, B])) == ["b"]


def test_the_parts_that_the_newcomer_needs_are_no_victims() -> None:
    parts = [spec("x", 10), spec("y", 10)]
    here = view(server(20), replica(parts[0], 1), replica(B, 9))
    decision = placed(decide(spec("e", 0, "x", "y"), here, more=[*parts, B]))
    assert [each.model for each in decision.victims] == ["b"]
    assert [each.unit.model for each in decision.units] == ["y", "e"]


NAMES = "abcdef"
states = st.sampled_from([State.READY] * 6 + [State.QUEUED, State.LOADING, *LEAVING])
amounts = st.sampled_from([10, 20, 30, 50])
protections = st.sampled_from([None] * 6 + [LEASED, PINNED])


@st.composite
def crowded(draw: st.DrawFn, *, ensembles: bool) -> tuple[UnitSpec, ServerView, list[UnitSpec]]:
    """A newcomer that an empty server would hold, a server, and the specs of what is on it."""
    specs: list[UnitSpec] = []
    for name in NAMES[: draw(st.integers(1, len(NAMES)))]:
        parts = draw(st.sets(st.sampled_from([s.unit.model for s in specs]))) if specs else ()
        if ensembles and parts and draw(st.booleans()):
            specs.append(spec(name, 0, *sorted(parts)))
        else:
            specs.append(spec(name, draw(amounts)))
    budget = draw(st.integers(2, 20)) * 10
    replicas = [replica(each, draw(st.integers(0, 5)), draw(states)) for each in specs]
    protected = {each.unit.model: draw(protections) for each in specs}
    on = server(budget, draw(st.sampled_from([0, 0, 1, 2, 3])))
    here = view(on, *replicas, protected={name: why for name, why in protected.items() if why})
    return spec("newcomer", draw(st.integers(1, budget // 10)) * 10), here, specs


def enough(gone: Iterable[Unit], newcomer: UnitSpec, here: ServerView, specs: Any) -> bool:
    stay = [
        each
        for each in here.replicas.values()
        if each.unit not in set(gone) and each.state not in LEAVING
    ]
    room = here.server.max_models or len(NAMES) + 1
    return (
        sum(each.reserved.get("ram", 0) for each in stay) + newcomer.declared["ram"]
        <= here.server.budget["ram"]
    ) and sum(not specs[each.unit].ensemble for each in stay) + 1 <= room


def every_choice(here: ServerView, specs: Any) -> Iterator[frozenset[Unit]]:
    """All sets that may leave: READY, not protected, and with all that needs them."""
    free = [
        each.unit
        for each in here.replicas.values()
        if each.state is State.READY and each.unit not in here.protected
    ]
    for size in range(len(free) + 1):
        for chosen in map(frozenset, combinations(free, size)):
            if not any(
                chosen.intersection(specs[other].requires)
                for other in here.replicas
                if other not in chosen
            ):
                yield chosen


@settings(max_examples=200)
@given(crowded(ensembles=True))
def test_victims_are_never_more_than_needed(
    case: tuple[UnitSpec, ServerView, list[UnitSpec]],
) -> None:
    newcomer, here, listed = case
    specs = known(*listed)
    choices = [each for each in every_choice(here, specs) if enough(each, newcomer, here, specs)]
    decision = decide(newcomer, here, more=listed)
    if not choices:
        assert isinstance(decision, Wait | Blocked)
        return
    chosen = placed(decision).victims
    assert len(chosen) == len(set(chosen))
    assert set(chosen) in choices
    assert not any(other < set(chosen) for other in choices), "a part of them would be enough"
    for index, part in enumerate(chosen):
        assert holders(part, here.replicas, specs) <= set(chosen[:index]), "ensembles first"


@settings(max_examples=200)
@given(crowded(ensembles=False))
def test_the_most_recently_used_stay_where_they_can(
    case: tuple[UnitSpec, ServerView, list[UnitSpec]],
) -> None:
    """Of two choices that are enough the better one spares the most recently used that differs."""
    newcomer, here, listed = case
    specs = known(*listed)

    def cost(gone: Iterable[Unit]) -> list[tuple[float, Unit]]:
        return sorted(((here.replicas[each].last_used, each) for each in gone), reverse=True)

    choices = [each for each in every_choice(here, specs) if enough(each, newcomer, here, specs)]
    assume(choices)
    assert cost(placed(decide(newcomer, here, more=listed)).victims) == min(map(cost, choices))


@settings(max_examples=100)
@given(crowded(ensembles=True))
def test_blocked_means_that_waiting_cannot_help(
    case: tuple[UnitSpec, ServerView, list[UnitSpec]],
) -> None:
    newcomer, here, listed = case
    decision = decide(newcomer, here, more=listed)
    assume(isinstance(decision, Wait | Blocked))
    pins = [each for each in here.replicas if here.protected.get(each) == PINNED]
    settled = {each: replace(here.replicas[each], state=State.READY) for each in pins}
    room = enough((), newcomer, replace(here, replicas=settled), known(*listed))
    assert isinstance(decision, Wait if room else Blocked)


@given(crowded(ensembles=True), st.randoms())
def test_the_order_in_which_things_are_listed_does_not_matter(
    case: tuple[UnitSpec, ServerView, list[UnitSpec]], random: Any
) -> None:
    newcomer, here, listed = case
    shuffled = list(here.replicas.items())
    random.shuffle(shuffled)
    other = replace(here, replicas=dict(shuffled))
    assert decide(newcomer, other, more=listed) == decide(newcomer, here, more=listed)


# --- score and pick -------------------------------------------------------------------------------


def test_the_weights_add_up_to_one() -> None:
    assert sum(weight for weight, _ in placement.SCORES) == pytest.approx(1)


@given(crowded(ensembles=True), st.floats(-100, 1e9))
def test_every_score_is_between_0_and_1(
    case: tuple[UnitSpec, ServerView, list[UnitSpec]], now: float
) -> None:
    newcomer, here, listed = case
    decision = decide(newcomer, here, more=listed)
    assume(isinstance(decision, Place))
    for _, measure in placement.SCORES:
        assert 0 <= measure(placed(decision), here, LIMITS, now) <= 1
    assert 0 <= score(placed(decision), here, LIMITS, now) <= 1


def test_a_server_with_room_is_better_than_one_with_a_victim() -> None:
    full = view(server(10, id="t9"), replica(A, 0, on="t9"))
    assert placed(decide(C, full, view(server(10)), more=[A])).server == "t0"


def test_an_idle_victim_is_better_than_a_busy_one() -> None:
    idle = view(server(10), replica(A, NOW - 500))
    busy = view(server(10, id="t1"), replica(A, NOW - 1, on="t1"))
    assert placed(decide(C, idle, busy, more=[A])).server == "t0"
    assert placed(decide(C, busy, idle, more=[A])).server == "t0"


def test_more_free_memory_is_better() -> None:
    fuller = view(server(100, id="t1"), replica(spec("a", 80), 1, on="t1"))
    emptier = view(server(100), replica(A, 1))
    assert placed(decide(C, fuller, emptier, more=[A])).server == "t0"


def test_a_server_that_loads_nothing_else_is_better() -> None:
    loading = view(server(100, id="t1"), replica(A, 1, State.LOADING, on="t1"))
    quiet = view(server(100), replica(A, 1))
    assert placed(decide(C, loading, quiet, more=[A])).server == "t0"


def test_equals_are_picked_by_name_not_by_order() -> None:
    views = [view(server(100, id=name)) for name in ("t0", "t1", "t2")]
    assert {placed(decide(C, *order)).server for order in (views, views[::-1])} == {"t2"}


# --- groups and reservations ----------------------------------------------------------------------


def test_a_group_is_each_part_once_parts_first() -> None:
    specs = known(
        spec("top", 0, "left", "right"),
        spec("left", 0, "base"),
        spec("right", 0, "base"),
        spec("base", 1),
    )
    found = [each.unit.model for each in group(specs[unit("top")], specs)]
    assert found == ["base", "left", "right", "top"]


def test_a_part_that_is_unknown_is_left_out() -> None:
    top = spec("top", 0, "gone", "base")
    found = group(top, known(top, spec("base", 1)))
    assert [each.unit.model for each in found] == ["base", "top"]


@pytest.mark.parametrize("start", ["a", "b", "c"])
def test_parts_that_lead_in_a_circle_end(start: str) -> None:
    specs = known(spec("a", 1, "b"), spec("b", 1, "a"), spec("c", 1, "a"))
    found = [each.unit.model for each in group(specs[unit(start)], specs)]
    assert found[-1] == start
    assert sorted(found) == sorted({start, "a", "b"})


def test_holders_are_those_above_directly_or_not() -> None:
    specs = known(spec("top", 0, "mid"), spec("mid", 0, "base"), spec("base", 1), spec("x", 1))
    replicas = {each: replica(specs[each], 0) for each in specs}
    assert holders(unit("base"), replicas, specs) == {unit("mid"), unit("top")}
    assert holders(unit("top"), replicas, specs) == frozenset()
    del replicas[unit("mid")]
    assert holders(unit("base"), replicas, specs) == frozenset(), "only what is there holds"


sizes = st.integers(0, 1 << 40)


@given(sizes, sizes, sizes, sizes)
def test_a_reservation_covers_what_is_known(
    artifact: int, declared: int, learned: int, budget: int
) -> None:
    limits = {"ram": budget}
    guessed = reservation(spec("m", artifact_bytes=artifact), limits, LIMITS)
    assert guessed["ram"] >= artifact
    assert guessed["ram"] >= round(LIMITS.unknown_share * budget)
    assert artifact > budget or guessed["ram"] <= budget, "a guess fits an empty server"
    both = spec("m", declared={"ram": declared}, learned={"ram": learned})
    assert memory.fits({"ram": max(declared, learned)}, reservation(both, limits, LIMITS))
    measured = spec("m", learned={"ram": learned})
    assert reservation(measured, limits, LIMITS)["ram"] >= learned
    assert reservation(spec("e", 0, "m"), limits, LIMITS) == {}
