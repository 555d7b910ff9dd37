"""Where a unit goes and what leaves for it, against every set of victims that there could be."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from services.controller.core import events as ev
from services.controller.core import memory, placement, reconcile
from services.controller.core.entities import (
    Health,
    Replica,
    ReplicaKey,
    Server,
    Unit,
    UnitSpec,
    Use,
)
from services.controller.core.fleet import Fleet
from services.controller.core.limits import Limits
from services.controller.core.placement import Never, NoServer, Place, place, reason, score
from services.controller.core.routers import UseLease
from services.controller.core.sizing import reservation
from services.controller.core.states import State
from services.controller.core.victims import Blocked, Terms, Wait, front
from tests.core.residency_world import World, unit

LIMITS = Limits()
NOW = 1000.0
LEASED = "about to be used"
SEQUENCE = "in use by a sequence"
PINNED = "pinned"
KEPT = "its minimum of copies"
LEAVING = (State.DRAINING, State.UNLOADING)


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


@dataclass(frozen=True)
class There:
    """A unit on a server, and when it was used last."""

    spec: UnitSpec
    used: float
    state: State = State.READY


@dataclass(frozen=True)
class View:
    """A server, what is on it, and why some of that may not be evicted, by model."""

    server: Server
    there: tuple[There, ...]
    protected: Mapping[str, str]

    @property
    def last_used(self) -> dict[Unit, float]:
        return {each.spec.unit: each.used for each in self.there}


def view(on: Server, *there: There, protected: Mapping[str, str] | None = None) -> View:
    return View(on, there, protected or {})


def fleet_of(
    views: Iterable[View], specs: Iterable[UnitSpec] = (), limits: Limits = LIMITS
) -> Fleet:
    fleet = Fleet(limits, NOW, 0.0)
    for each in specs:
        reconcile.put_spec(fleet, each, NOW)
    for each in views:
        fleet.add_server(each.server)
        for there in each.there:
            put(fleet, ReplicaKey(each.server.id, there.spec.unit), there, each.protected)
    return fleet


def put(fleet: Fleet, key: ReplicaKey, there: There, protected: Mapping[str, str]) -> None:
    why = protected.get(key.unit.model)
    if key.unit not in fleet.specs or why in (PINNED, KEPT):
        kept = int(why == KEPT)
        reconcile.put_spec(fleet, replace(there.spec, pinned=why == PINNED, min_copies=kept), NOW)
    replica = Replica(
        key, there.state, there.spec.declared, 0.0, "", slots=there.spec.slots
    )
    rank = fleet.rank(there.used, 1.0, fleet.reload_seconds(key.unit), fleet.share(replica), 0.0)
    fleet.uses[key.server][key.unit] = Use(there.used, 1.0, rank, 0, int(why == SEQUENCE))
    fleet.put(replica)
    if why == LEASED:
        fleet.use_leases[key] = {"l": UseLease("r", NOW + 1)}


def decide(
    wanted: UnitSpec,
    *views: View,
    more: Iterable[UnitSpec] = (),
    terms: Terms = Terms(),  # noqa: B008 (frozen)
    limits: Limits = LIMITS,
) -> placement.Decision:
    return place(fleet_of(views, (wanted, *more), limits), wanted, terms, NOW)


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
    assert reason(chosen, {"ram": 3 << 20}) == "ram 3 MiB on t0, which has room"


def test_a_reason_names_what_leaves() -> None:
    chosen = placed(decide(C, view(server(20), There(A, 1), There(B, 2)), more=[A, B]))
    assert reason(chosen, {"ram": 3 << 20}) == "ram 3 MiB on t0, after a:1"


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
    assert decision.reason == "on t0 the room is taken by its own parts, too large together"


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
    assert decision.reason == "t0: not inventoried yet, t1: it does not answer"


def test_only_servers_that_could_hold_it_are_named() -> None:
    big = spec("big", 50)
    decision = decide(big, view(server(40)), view(server(60, id="t1", health=Health.UNREACHABLE)))
    assert isinstance(decision, NoServer)
    assert decision.reason == "t1: unreachable"


def test_a_drained_server_is_given_nothing() -> None:
    drained = view(server(100, id="t1", draining="maintenance"))
    assert placed(decide(A, view(server(100)), drained)).server == "t0"
    decision = decide(A, drained)
    assert isinstance(decision, NoServer)
    assert decision.reason == "t1: maintenance"


# --- wait, or blocked -----------------------------------------------------------------------------


def test_only_pinned_replicas_in_the_way_block() -> None:
    decision = decide(C, view(server(15), There(A, 1), protected={"a": PINNED}), more=[A])
    assert isinstance(decision, Blocked)
    assert decision.reason == "on t0 the room is taken by what is kept there: a:1"


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
    assert decision.reason == "m:1 is kept on t0 (pinned) and has another config"


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
    assert victims(decide(OTHER, view(server(100), There(resident, 1, state)), more=[resident])) == []


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
    here = view(
        server(20), There(part, 1), There(above, 1), There(B, 9), protected={"e": LEASED}
    )
    assert victims(decide(C, here, more=[part, above, B])) == ["b"]


def test_the_parts_that_the_newcomer_needs_are_no_victims() -> None:
    parts = [spec("x", 10), spec("y", 10)]
    here = view(server(20), There(parts[0], 1), There(B, 9))
    decision = placed(decide(spec("e", 0, "x", "y"), here, more=[*parts, B]))
    assert [each.model for each in decision.victims] == ["b"]
    assert [each.unit.model for each in decision.units] == ["y", "e"]


NAMES = "abcdef"
states = st.sampled_from([State.READY] * 6 + [State.QUEUED, State.LOADING, *LEAVING])
amounts = st.sampled_from([10, 20, 30, 50])
protections = st.sampled_from([None] * 6 + [LEASED, SEQUENCE, PINNED, KEPT])


@st.composite
def crowded(draw: st.DrawFn, *, ensembles: bool) -> "Case":
    """A newcomer that an empty server would hold, a server, and the specs of what is on it."""
    specs: list[UnitSpec] = []
    for name in NAMES[: draw(st.integers(1, len(NAMES)))]:
        parts = draw(st.sets(st.sampled_from([s.unit.model for s in specs]))) if specs else ()
        if ensembles and parts and draw(st.booleans()):
            specs.append(spec(name, 0, *sorted(parts)))
        else:
            specs.append(spec(name, draw(amounts)))
    budget = draw(st.integers(2, 20)) * 10
    replicas = [There(each, draw(st.integers(0, 5)), draw(states)) for each in specs]
    protected = {each.unit.model: draw(protections) for each in specs}
    on = server(budget, draw(st.sampled_from([0, 0, 1, 2, 3])))
    here = view(on, *replicas, protected={name: why for name, why in protected.items() if why})
    return spec("newcomer", draw(st.integers(1, budget // 10)) * 10), here, specs


def enough(gone: Iterable[Unit], newcomer: UnitSpec, here: View, specs: Any) -> bool:
    stay = [
        each.spec
        for each in here.there
        if each.spec.unit not in set(gone) and each.state not in LEAVING
    ]
    room = here.server.max_models or len(NAMES) + 1
    return (
        sum(each.declared.get("ram", 0) for each in stay) + newcomer.declared["ram"]
        <= here.server.budget["ram"]
    ) and sum(each.slots for each in stay) + 1 <= room


def every_choice(here: View, specs: Any) -> Iterator[frozenset[Unit]]:
    """All sets that may leave: READY, not protected, and with all that needs them."""
    free = [
        each.spec.unit
        for each in here.there
        if each.state is State.READY and each.spec.unit.model not in here.protected
    ]
    for size in range(len(free) + 1):
        for chosen in map(frozenset, combinations(free, size)):
            if not any(
                chosen.intersection(other.spec.requires)
                for other in here.there
                if other.spec.unit not in chosen
            ):
                yield chosen


Case = tuple[UnitSpec, View, list[UnitSpec]]


@pytest.mark.parametrize("policy", ["lru", "gdsf"])
@settings(max_examples=150)
@given(case=crowded(ensembles=True))
def test_victims_are_never_more_than_needed(policy: str, case: Case) -> None:
    newcomer, here, listed = case
    specs = known(*listed)
    choices = [each for each in every_choice(here, specs) if enough(each, newcomer, here, specs)]
    decision = decide(newcomer, here, more=listed, limits=Limits(policy=policy))
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


@settings(max_examples=200)
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


@settings(max_examples=200)
@given(crowded(ensembles=False))
def test_lru_takes_the_least_recently_used_but_those_that_need_not_leave(case: Case) -> None:
    newcomer, here, listed = case
    specs = known(*listed)
    decision = decide(newcomer, here, more=listed)
    assume(isinstance(decision, Place))
    prefix: list[Unit] = []
    for used, candidate in sorted((used, unit) for unit, used in here.last_used.items()):
        if enough(prefix, newcomer, here, specs):
            break
        if any(candidate in choice for choice in every_choice(here, specs)):
            prefix.append(candidate)
    for candidate in reversed(prefix.copy()):  # the most recently used is spared first
        rest = [each for each in prefix if each != candidate]
        if enough(rest, newcomer, here, specs):
            prefix = rest
    assert set(placed(decision).victims) == set(prefix)


@settings(max_examples=100)
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


@settings(max_examples=100)
@given(crowded(ensembles=True))
def test_what_may_evict_nothing_gets_a_place_only_where_there_is_room(case: Case) -> None:
    newcomer, here, listed = case
    decision = decide(newcomer, here, more=listed, terms=Terms(evict=False))
    if enough((), newcomer, here, known(*listed)):
        assert placed(decision).victims == ()
    else:
        assert isinstance(decision, Wait)


# --- score and pick -------------------------------------------------------------------------------


def test_the_weights_add_up_to_one() -> None:
    assert sum(weight for weight, _ in placement.SCORES) == pytest.approx(1)


@pytest.mark.parametrize("policy", ["lru", "gdsf"])
@given(case=crowded(ensembles=True), now=st.floats(-100, 1e9))
def test_every_score_is_between_0_and_1(policy: str, case: Case, now: float) -> None:
    newcomer, here, listed = case
    fleet = fleet_of([here], [newcomer, *listed], Limits(policy=policy))
    decision = place(fleet, newcomer, Terms(), now)
    assume(isinstance(decision, Place))
    chosen = placed(decision)
    for _, measure in placement.SCORES:
        assert 0 <= measure(fleet, "t0", chosen.units, chosen.victims, now) <= 1
    assert score(fleet, "t0", chosen.units, chosen.victims, now) == pytest.approx(chosen.score)
    assert 0 <= chosen.score <= 1 + 1e-9


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
        "t0 has gpu=nothing, it requires gpu=h200; t1 has gpu=t4, it requires gpu=h200"
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
    scores = {
        name: placement.on_server(full, (room,), name, Terms(), NOW) for name in ("t0", "t1")
    }
    assert all(isinstance(outcome, Place) for outcome in scores.values())


def test_a_claimed_server_is_for_its_claimant_alone() -> None:
    fleet = fleet_of([view(server(100))], [A, B])
    fleet.claims["t0"] = A.unit
    decision = place(fleet, B, Terms(), NOW)
    assert isinstance(decision, Wait)
    assert decision.reason == "t0 is kept for a:1, which has waited longer"
    assert isinstance(place(fleet, A, Terms(), NOW), Place)


def test_what_does_not_answer_is_not_counted_on() -> None:
    fleet = fleet_of([view(server(100), There(A, 1))], [A])
    broken = fleet.replicas["t0"][A.unit]
    fleet.put(broken._replace(broken=True))
    assert isinstance(place(fleet, A, Terms(), NOW), Wait)


# --- GreedyDual-Size-Frequency --------------------------------------------------------------------

GDSF = Limits(policy="gdsf", half_life_seconds=600.0)


def used(fleet: Fleet, name: str, *when: float) -> None:
    for at in when:
        fleet.touch(ReplicaKey("t0", unit(name)), at, 1)


def test_gdsf_takes_the_least_uses_times_seconds_by_size() -> None:
    """Of 100 bytes: cheap 3 uses * 1 s / 0.5 = 6; dear 1 use * 10 s / 0.2 = 50; rare 2 uses *
    0.5 s / 0.1 = 10. By last use it would be dear, rare, cheap."""
    listed = [
        spec("cheap", 50, load_seconds=1.0),
        spec("dear", 20, load_seconds=10.0),
        spec("rare", 10, load_seconds=0.5),
    ]
    here = view(server(100), There(listed[1], NOW - 2), There(listed[2], NOW - 1), There(listed[0], NOW))
    fleet = fleet_of([here], listed, GDSF)
    used(fleet, "cheap", NOW, NOW)
    used(fleet, "rare", NOW - 1)
    ranks = {each.model: fleet.uses["t0"][each].rank for each in fleet.replicas["t0"]}
    assert ranks == pytest.approx({"cheap": 6.0, "dear": 50.0, "rare": 10.0})
    everything = ["cheap", "dear", "rare"]
    for size, gone in [(20, []), (30, ["cheap"]), (75, ["cheap", "rare"]), (100, everything)]:
        assert victims(place(fleet, spec("n", size), Terms(), NOW)) == gone


def test_gdsf_counts_a_use_half_after_a_half_life() -> None:
    fleet = fleet_of([view(server(100), There(A, NOW))], [A], GDSF)
    used(fleet, "a", NOW + 600.0)
    assert fleet.use(ReplicaKey("t0", A.unit)).uses == pytest.approx(1.5)
    used(fleet, "a", NOW + 1800.0)
    assert fleet.use(ReplicaKey("t0", A.unit)).uses == pytest.approx(1.375)


def test_gdsf_lets_old_fame_fade_as_others_come_and_go() -> None:
    """What was used much once leaves when the server's clock has passed its rank."""
    famous = spec("famous", 50, load_seconds=1.0)
    world = World(
        [famous, *(spec(f"n{i}", 50, load_seconds=1.0) for i in range(30))],
        [Server("t0", "h:1", {"ram": 100})],
        Limits(policy="gdsf"),
    )
    world.resident("famous")
    for _ in range(9):
        used(world.fleet, "famous", world.now)
    evicted_at = None
    for i in range(30):
        world.resident(f"n{i}")
        if "famous" not in world.ready():
            evicted_at = i
            break
    # Each newcomer's rank is clock + 2, and the clock becomes that of the last victim: 0, 2, 4, …
    # until it exceeds famous' own (1 + 9) * 1 / 0.5 = 20.
    assert evicted_at is not None
    assert 8 <= evicted_at <= 12


def test_gdsf_has_the_big_unused_leave_before_the_small_expensive_used() -> None:
    big = spec("big", 60, load_seconds=0.5)
    small = [spec(f"s{i}", 10, load_seconds=20.0) for i in range(4)]
    here = view(
        server(100), There(big, NOW), *(There(each, NOW - 100 - i) for i, each in enumerate(small))
    )
    listed = [big, *small]
    assert victims(decide(spec("n", 30), here, more=listed, limits=GDSF)) == ["big"]
    assert "big" not in victims(decide(spec("n", 30), here, more=listed))


# --- a herd ---------------------------------------------------------------------------------------


def loads_of(world: World) -> list[int]:
    asked = [world.ask(f"m{i}") for i in range(50)]
    world.work()
    assert all(isinstance(world.answers[waiter], ev.Granted) for waiter in asked)
    loaded = [r.server for r in world.records if r.kind is ev.Kind.READY]
    return [loaded.count(name) for name in world.fleet.servers]


@pytest.mark.parametrize("budgets", [[1000] * 4, [800, 900, 1000, 1100], [0] * 4])
@pytest.mark.parametrize("sizes", [[10], [5, 10, 20]])
def test_a_herd_of_cold_models_is_spread(budgets: list[int], sizes: list[int]) -> None:
    specs = [spec(f"m{i}", sizes[i % len(sizes)]) for i in range(50)]
    servers = [
        Server(f"t{i}", f"h:{i}", {"ram": ram} if ram else {}) for i, ram in enumerate(budgets)
    ]
    loads = loads_of(World(specs, servers))
    assert max(loads) <= 1.25 * sum(loads) / len(loads), loads


def test_a_herd_is_spread_where_much_has_to_leave() -> None:
    world = World(
        [spec(f"m{i}", 10) for i in range(50)] + [spec(f"old{i}", 10) for i in range(40)],
        [Server(f"t{i}", f"h:{i}", {"ram": 100}) for i in range(4)],
    )
    for i in range(40):
        world.resident(f"old{i}")
    world.records.clear()
    loads = loads_of(world)
    assert max(loads) <= 1.25 * sum(loads) / len(loads), loads


# --- many servers ---------------------------------------------------------------------------------


@st.composite
def crowds(draw: st.DrawFn) -> tuple[Fleet, list[UnitSpec]]:
    """More equal servers than are looked at one by one, each with some replicas."""
    policy = draw(st.sampled_from(["lru", "gdsf"]))
    random = draw(st.randoms(use_true_random=False))
    fleet = Fleet(Limits(policy=policy), NOW, 0.0)
    listed = [spec(f"m{i}", 10 * (i % 4 + 1), load_seconds=1.0 + i % 3) for i in range(200)]
    for each in listed:
        reconcile.put_spec(fleet, each, NOW)
    fullness = draw(st.sampled_from([3, 5, 8]))
    for i in range(40):
        fleet.add_server(server(100, id=f"t{i:02}"))
    for i in range(40):
        for each in random.sample(listed, random.randint(0, fullness)):
            key = ReplicaKey(f"t{i:02}", each.unit)
            taken = fleet.accounts[key.server].planned.get("ram", 0)
            if taken + each.declared["ram"] <= 100:
                there = There(each, NOW - random.randint(1, 500))
                put(fleet, key, there, {})
    for name in fleet.servers:
        lowest = fleet.orders[name].lowest()
        fleet.roster.changed(name, placement.room_score(fleet, name), lowest)
    return fleet, listed


@settings(max_examples=25)
@given(crowds(), st.integers(0, 199))
def test_many_servers_get_the_answer_that_a_look_at_all_gives(
    case: tuple[Fleet, list[UnitSpec]], index: int
) -> None:
    """The same kind of place: room where there is any, and a victim that matters as little."""
    fleet, listed = case
    wanted = listed[index]
    assume(wanted.unit not in fleet.where)
    quick = place(fleet, wanted, Terms(), NOW)
    full = place(fleet, wanted, Terms(), NOW, only=list(fleet.servers))
    assert type(quick) is type(full)
    if isinstance(quick, Place) and isinstance(full, Place):
        assert bool(quick.victims) == bool(full.victims)
        fits = placement.on_server(fleet, (wanted,), quick.server, Terms(), NOW)
        assert fits == quick
        if quick.victims:
            lowest = sorted(front(fleet, name) for name in fleet.servers)
            assert front(fleet, quick.server) <= lowest[3], "one of the four that matter least"


# --- groups and reservations ----------------------------------------------------------------------


def catalogue(*specs: UnitSpec) -> Fleet:
    return fleet_of([], specs)


def names_of_group(fleet: Fleet, name: str) -> list[str]:
    return [each.unit.model for each in fleet.group(fleet.specs[unit(name)])]


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
    found = names_of_group(catalogue(spec("a", 1, "b"), spec("b", 1, "a"), spec("c", 1, "a")), start)
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
