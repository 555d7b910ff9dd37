"""Where a unit goes: which servers come into question, and which of them is picked."""

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from services.controller.core import memory, order, placement
from services.controller.core.entities import (
    Health,
    UnitSpec,
)
from services.controller.core.fleet import Fleet
from services.controller.core.placement import Closed, Never, Place, place, reason, room_score
from services.controller.core.sizing import reservation
from services.controller.core.states import State
from services.controller.core.victims import Blocked, Terms, Wait
from tests.support.placement_views import (
    KEPT,
    LEASED,
    LEAVING,
    LIMITS,
    NOW,
    PINNED,
    SEQUENCE,
    A,
    B,
    C,
    Case,
    There,
    View,
    crowded,
    decide,
    fleet_of,
    placed,
    server,
    spec,
    victims,
    view,
)
from tests.support.residency_world import unit

# --- filter ---------------------------------------------------------------------------------------


def test_an_empty_server_takes_it_as_it_is() -> None:
    chosen = placed(decide(A, view(server(100))))
    assert (chosen.server, chosen.units, chosen.victims) == ("t0", (A,), ())
    assert reason(chosen, {"ram": 3 << 20}) == "ram 3 MiB on t0, which has room"


def test_a_reason_names_what_leaves() -> None:
    chosen = placed(decide(C, view(server(20), There(A, 1), There(B, 2)), more=[A, B]))
    assert reason(chosen, {"ram": 3 << 20}) == "ram 3 MiB on t0, after evicting a:1"


def test_what_no_empty_server_could_hold_never_fits() -> None:
    big = spec("big", 3 << 30)
    decision = decide(
        big, view(server(1 << 30)), view(server(2 << 30, id="t1", health=Health.UNREACHABLE))
    )
    assert isinstance(decision, Never)
    assert decision.reason == (
        "t0 has ram 1.00 GiB but it needs ram 3.00 GiB; "
        "t1 has ram 2.00 GiB but it needs ram 3.00 GiB"
    )


def test_more_parts_than_a_server_may_hold_never_fit() -> None:
    parts = [spec(name, 1) for name in "xyz"]
    decision = decide(spec("e", 0, "x", "y", "z"), view(server(models=2)), more=parts)
    assert isinstance(decision, Never)
    assert decision.reason == "t0 holds 2 models at a time but it is made of 3"


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
    present = [There(replace(each, declared={"ram": 25}), 1) for each in parts[:there]]
    above = spec("e", 0, *"uvwxyz")
    decision = decide(above, view(server(100), *present, There(A, 9)), more=[*parts, A])
    assert victims(decision) == ["a"], "for what may take all the rest everything else leaves"
    assert len(placed(decision).units) == 7 - there


def test_a_size_that_is_known_is_not_cut_with_the_guesses() -> None:
    grown, declared, guessed = spec("x", 60), spec("y", 30), spec("z")
    here = view(server(100), There(replace(grown, declared={"ram": 80}), 1))
    decision = decide(spec("e", 0, "x", "y", "z"), here, more=[grown, declared, guessed])
    assert isinstance(decision, Blocked)
    assert (
        decision.reason == "the room on t0 is taken by its own parts, which are too large together"
    )


def test_one_server_that_could_hold_it_is_enough() -> None:
    big = spec("big", 50)
    chosen = placed(decide(big, view(server(40)), view(server(60, id="t1"))))
    assert chosen.server == "t1"


def test_without_a_server() -> None:
    decision = decide(A)
    assert isinstance(decision, Closed)
    assert decision.reason == "no server is configured"


def test_without_a_healthy_server() -> None:
    decision = decide(
        A,
        view(server(100, health=Health.UNKNOWN)),
        view(server(100, id="t1", health=Health.UNREACHABLE, reason="it does not answer")),
    )
    assert isinstance(decision, Closed)
    assert decision.reason == "t0: not inventoried yet, t1: it does not answer"


def test_only_servers_that_could_hold_it_are_named() -> None:
    big = spec("big", 50)
    decision = decide(big, view(server(40)), view(server(60, id="t1", health=Health.UNREACHABLE)))
    assert isinstance(decision, Closed)
    assert decision.reason == "t1: unreachable"


def test_a_drained_server_is_given_nothing() -> None:
    drained = view(server(100, id="t1", draining="maintenance"))
    assert placed(decide(A, view(server(100)), drained)).server == "t0"
    decision = decide(A, drained)
    assert isinstance(decision, Closed)
    assert decision.reason == "t1: maintenance"


# --- wait, or blocked -----------------------------------------------------------------------------


def test_only_pinned_replicas_in_the_way_block() -> None:
    decision = decide(C, view(server(15), There(A, 1), protected={"a": PINNED}), more=[A])
    assert isinstance(decision, Blocked)
    assert decision.reason == "the room on t0 is taken by what is kept there: a:1"


def test_the_minimum_of_copies_blocks_too() -> None:
    decision = decide(C, view(server(15), There(A, 1), protected={"a": KEPT}), more=[A])
    assert isinstance(decision, Blocked)


@pytest.mark.parametrize("models", [0, 1])
@pytest.mark.parametrize("why", [LEASED, SEQUENCE])
def test_a_use_in_the_way_ends_by_itself(models: int, why: str) -> None:
    here = view(server(None if models else 15, models), There(A, 1), protected={"a": why})
    assert isinstance(decide(C, here, more=[A]), Wait)


@pytest.mark.parametrize("state", [State.QUEUED, State.LOADING])
def test_a_load_in_the_way_is_waited_for(state: State) -> None:
    assert isinstance(decide(C, view(server(15), There(A, 1, state)), more=[A]), Wait)


@pytest.mark.parametrize("state", LEAVING)
def test_what_is_on_its_way_out_makes_room_already(state: State) -> None:
    """Its memory is waited for before the load, and no second victim is asked."""
    here = view(server(25), There(A, 1, state), There(B, 0))
    assert victims(decide(C, here, more=[A, B])) == []


@pytest.mark.parametrize("state", LEAVING)
def test_a_unit_comes_back_only_when_it_is_gone(state: State) -> None:
    decision = decide(A, view(server(100), There(A, 1, state)))
    assert isinstance(decision, Wait)
    assert decision.reason == "a:1 is still on its way out of t0"


def test_another_server_is_better_than_waiting() -> None:
    blocked = view(server(15), There(A, 1), protected={"a": PINNED})
    waiting = view(server(15, id="t1"), There(B, 1), protected={"b": LEASED})
    free = view(server(15, id="t2"))
    assert placed(decide(C, blocked, waiting, free, more=[A, B])).server == "t2"
    assert isinstance(decide(C, blocked, waiting, more=[A, B]), Wait)


# --- score and pick -------------------------------------------------------------------------------


def test_the_weights_add_up_to_one() -> None:
    assert sum(weight for weight, _ in placement.SCORES) == pytest.approx(1)


@pytest.mark.parametrize("policy", ["lru", "gdsf"])
@given(case=crowded(ensembles=True), now=st.floats(-100, 1e9))
def test_every_score_is_between_0_and_1(policy: str, case: Case, now: float) -> None:
    newcomer, here, listed = case
    fleet = fleet_of([here], [newcomer, *listed], replace(LIMITS, policy=policy))
    decision = place(fleet, newcomer, Terms(), now)
    assume(isinstance(decision, Place))
    chosen = placed(decision)
    for _, measure in placement.SCORES:
        assert 0 <= measure(fleet, "t0", newcomer.unit) <= 1
    assert 0 <= chosen.score <= 1 + 1e-9
    if chosen.victims:
        takes_room = [each for each in chosen.victims if fleet.replicas["t0"][each].slots]
        dearest = max(fleet.uses.on["t0"][each].rank for each in takes_room)
        assert chosen.cost == dearest
        assert chosen.score == pytest.approx(order.score(fleet, dearest, now))
        assert chosen.score <= 0.5, "room comes first"
    else:
        score = room_score(fleet, "t0", newcomer.unit)
        assert chosen.score == pytest.approx(0.5 + score / 2)


def test_a_server_with_room_is_better_than_one_with_a_victim() -> None:
    full = view(server(10, id="t9"), There(A, 0))
    assert placed(decide(C, full, view(server(10)), more=[A])).server == "t0"


def test_an_idle_victim_is_better_than_a_busy_one() -> None:
    idle = view(server(10), There(A, NOW - 500))
    busy = view(server(10, id="t1"), There(A, NOW - 1))
    assert placed(decide(C, idle, busy, more=[A])).server == "t0"
    assert placed(decide(C, busy, idle, more=[A])).server == "t0"


def test_more_free_memory_is_better() -> None:
    fuller = view(server(100, id="t1"), There(spec("a", 80), 1))
    emptier = view(server(100), There(A, 1))
    assert placed(decide(C, fuller, emptier, more=[A])).server == "t0"


def test_a_server_that_loads_nothing_else_is_better() -> None:
    loading = view(server(100, id="t1"), There(A, 1, State.LOADING))
    quiet = view(server(100), There(A, 1))
    assert placed(decide(C, loading, quiet, more=[A])).server == "t0"


def test_equals_are_picked_by_name_not_by_order() -> None:
    views = [view(server(100, id=name)) for name in ("t0", "t1", "t2")]
    assert {placed(decide(C, *order)).server for order in (views, views[::-1])} == {"t2"}


# --- labels, zones, rooms, claims ----------------------------------------------------------------


GPU = spec("gpu", 10, required_labels={"gpu": "h200"})


def test_only_servers_with_the_labels_are_asked() -> None:
    plain = view(server(100, id="t9"))
    other = view(server(100, id="t8", labels={"gpu": "t4"}))
    right = view(server(10, labels={"gpu": "h200", "zone": "a"}), There(A, 1))
    assert placed(decide(GPU, plain, other, right, more=[A])).server == "t0"


def test_without_the_labels_it_never_fits() -> None:
    decision = decide(GPU, view(server(100)), view(server(100, id="t1", labels={"gpu": "t4"})))
    assert isinstance(decision, Never)
    assert decision.reason == (
        "t0 has gpu=nothing but it requires gpu=h200; t1 has gpu=t4 but it requires gpu=h200"
    )


def test_the_labels_that_a_part_requires_count() -> None:
    above = spec("e", 0, "gpu")
    chosen = decide(
        above, view(server(100, id="t9")), view(server(100, labels={"gpu": "h200"})), more=[GPU]
    )
    assert placed(chosen).server == "t0"


def test_copies_go_to_another_zone_then_to_another_host() -> None:
    def at(name: str, host: str, zone: str, *there: There) -> View:
        return view(server(100, id=name, host=host, labels={"zone": zone}), *there)

    first = at("t0", "x", "a", There(C, 1))
    same_host, same_zone, elsewhere = at("t3", "x", "a"), at("t2", "y", "a"), at("t1", "z", "b")
    assert placed(decide(C, first, same_host, same_zone, elsewhere)).server == "t1"
    assert placed(decide(C, first, same_host, same_zone)).server == "t2"
    assert placed(decide(C, first, same_host)).server == "t3"
    assert isinstance(decide(C, first), Wait)


def test_room_comes_before_any_score() -> None:
    """Though the full server is idle for ages and the one with room is nearly full and busy."""
    idle = view(server(10, id="t1"), There(A, -1e9))
    loads = [There(spec(f"l{i}", 1), 1, State.LOADING) for i in range(8)]
    busy = view(server(20), There(B, 1), *loads[:2])
    full, room = fleet_of([idle, busy], [A, B, spec("n", 8)]), spec("n", 8)
    assert placed(place(full, room, Terms(), NOW)).server == "t0"
    scores = {name: placement.on_server(full, (room,), name, Terms(), NOW) for name in ("t0", "t1")}
    assert all(isinstance(outcome, Place) for outcome in scores.values())


def test_a_claimed_server_is_for_its_claimant_alone() -> None:
    fleet = fleet_of([view(server(100))], [A, B])
    fleet.wants.claims["t0"] = A.unit
    decision = place(fleet, B, Terms(), NOW)
    assert isinstance(decision, Wait)
    assert decision.reason == "t0 is kept for a:1, which has waited longer"
    assert isinstance(place(fleet, A, Terms(), NOW), Place)


def test_what_does_not_answer_is_not_counted_on() -> None:
    fleet = fleet_of([view(server(100), There(A, 1))], [A])
    broken = fleet.replicas["t0"][A.unit]
    fleet.put(broken._replace(broken=True))
    assert isinstance(place(fleet, A, Terms(), NOW), Wait)


# --- groups and reservations ----------------------------------------------------------------------


def catalogue(*specs: UnitSpec) -> Fleet:
    return fleet_of([], specs)


def names_of_group(fleet: Fleet, name: str) -> list[str]:
    return [each.unit.model for each in fleet.known.group(fleet.known.specs[unit(name)])]


def test_a_group_is_each_part_once_parts_first() -> None:
    fleet = catalogue(
        spec("top", 0, "left", "right"),
        spec("left", 0, "base"),
        spec("right", 0, "base"),
        spec("base", 1),
    )
    assert names_of_group(fleet, "top") == ["base", "left", "right", "top"]


def test_a_part_that_is_unknown_is_left_out() -> None:
    assert names_of_group(catalogue(spec("top", 0, "gone", "base"), spec("base", 1)), "top") == [
        "base",
        "top",
    ]


@pytest.mark.parametrize("start", ["a", "b", "c"])
def test_parts_that_lead_in_a_circle_end(start: str) -> None:
    found = names_of_group(
        catalogue(spec("a", 1, "b"), spec("b", 1, "a"), spec("c", 1, "a")), start
    )
    assert found[-1] == start
    assert sorted(found) == sorted({start, "a", "b"})


def test_holders_are_those_above_directly_or_not() -> None:
    top, mid, base, other = spec("top", 0, "mid"), spec("mid", 0, "base"), spec("base", 1), A
    all_there = fleet_of([view(server(), *(There(s, 0) for s in (top, mid, base, other)))])
    assert all_there.holders(unit("base"), "t0") == {unit("mid"), unit("top")}
    assert all_there.holders(unit("top"), "t0") == set()
    without = fleet_of([view(server(), *(There(s, 0) for s in (top, base, other)))], [mid])
    assert without.holders(unit("base"), "t0") == set(), "only what is there holds"


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
