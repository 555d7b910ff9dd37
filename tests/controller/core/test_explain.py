"""Why a unit is where it is, and why not elsewhere; and that asking changes nothing."""

from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.errors import ModelNotFound, VersionNotFound
from services.controller.core import events as ev
from services.controller.core import explain
from services.controller.core.entities import ReplicaKey, Server, UnitSpec
from services.controller.core.explain import Absence, Stay
from services.controller.core.limits import Limits
from services.controller.core.states import State
from tests.support.residency_world import ABCD, LIMITS, MIB, World, spec, unit

TWO = (Server("t0", "h:1", {"ram": 300 * MIB}), Server("t1", "h:2", {"ram": 300 * MIB}))


def stay(world: World, name: str, server: str = "t0") -> Stay:
    found = explain.why_resident(world.engine.fleet, unit(name), world.now)
    (one,) = [each for each in found if each.replica.key.server == server]
    return one


def absence(world: World, name: str) -> Absence:
    return explain.why_not_loaded(world.engine.fleet, unit(name), world.now)


def ensemble(*parts: str) -> UnitSpec:
    return UnitSpec(unit("e"), requires=tuple(unit(p) for p in parts), ensemble=True)


# --- what is there --------------------------------------------------------------------------------


def test_the_turns_are_the_order_in_which_they_leave() -> None:
    world = World([*ABCD, spec("f"), spec("g")])
    for name in "abc":
        world.resident(name)
        world.now += 10
    world.resident("a")  # used again
    turns = explain.eviction_turns(world.engine.fleet, "t0")
    assert turns == {unit("b"): 1, unit("c"): 2, unit("a"): 3}
    for name in "dfg":
        world.now += 1
        world.resident(name)
    left = [r.unit for r in world.records if r.kind is ev.Kind.EVICTING]
    assert left == sorted(turns, key=lambda u: turns[u])


def test_a_replica_tells_why_it_was_placed_and_what_is_known_of_it() -> None:
    world = World(ABCD, limits=replace(LIMITS, idle_ttl_seconds=60.0))
    world.resident("a")
    world.resident("b")
    world.now += 5
    found = stay(world, "a")
    assert found.placed == "asked for: ram 100 MiB on t0, which has room"
    assert (found.kept_by, found.turn, found.candidates) == ((), 1, 2)
    assert found.numbers["idle_seconds"] == pytest.approx(5.1)
    assert found.numbers["bytes"] == 100 * MIB
    assert found.numbers["reload_seconds"] == pytest.approx(0.1)
    assert found.numbers["idle_ttl_seconds"] == 60


def test_a_ttl_of_its_own_comes_before_the_default_and_0_is_none() -> None:
    limits = replace(LIMITS, idle_ttl_seconds=60.0)
    world = World([spec("a", idle_ttl=5.0), spec("b", idle_ttl=0.0)], limits=limits)
    world.resident("a")
    world.resident("b")
    assert stay(world, "a").numbers["idle_ttl_seconds"] == 5
    assert "idle_ttl_seconds" not in stay(world, "b").numbers


def test_what_may_not_leave_says_why_and_has_no_turn() -> None:
    world = World([spec("a", pinned=True), spec("b", min_copies=1), spec("c")])
    world.work()
    world.feed(ev.RouterJoined("r1", frozenset()))
    world.resident("c", router="r1")
    for name, why in (("a", "pinned"), ("b", "its minimum of copies"), ("c", "about to be used")):
        found = stay(world, name)
        assert (found.kept_by, found.turn, found.candidates) == ((why,), 0, 0)


def test_a_part_is_kept_by_the_ensemble_above_it_that_may_not_leave() -> None:
    world = World([*ABCD, replace(ensemble("a"), pinned=True)])
    world.work()
    world.resident("b")
    assert stay(world, "a").kept_by == ("needed by e:1 (pinned)",)
    assert stay(world, "e").kept_by == ("pinned",)
    assert stay(world, "b").turn == 1


def test_an_ensemble_leaves_just_before_its_first_part() -> None:
    world = World([*ABCD, ensemble("a", "b")])
    world.resident("c")
    world.now += 1
    world.resident("e")
    turns = explain.eviction_turns(world.engine.fleet, "t0")
    assert turns == {unit("c"): 1, unit("e"): 2, unit("a"): 3, unit("b"): 4}


def test_an_ensemble_whose_parts_stay_stays() -> None:
    world = World([spec("a", pinned=True), ensemble("a")])
    world.work()
    world.resident("e")
    assert stay(world, "e").kept_by == (
        "an ensemble takes no room: it leaves with one of its parts",
    )


def test_what_is_on_its_way_has_neither_turn_nor_excuse() -> None:
    world = World(ABCD)
    world.ask("a")
    found = stay(world, "a")
    assert (found.replica.state, found.kept_by, found.turn) == (State.LOADING, (), 0)
    assert explain.why_resident(world.engine.fleet, unit("b"), world.now) == ()


# --- what is not ----------------------------------------------------------------------------------


def test_what_nothing_asks_for_tells_what_a_request_would_do() -> None:
    world = World(ABCD, TWO)
    for name in "abc":
        world.resident(name)
    found = absence(world, "d")
    assert found.reason.startswith("nothing asks for d:1; a request would load it: ram 100 MiB on ")
    assert (found.waiters, found.turn, found.failure) == (0, 0, None)
    first = found.verdicts[0]
    assert first.possible
    assert 0 < first.score <= 1
    assert world.resident("d").server == first.server


def test_the_victims_are_those_that_leave() -> None:
    world = World(ABCD)
    for name in "abc":
        world.resident(name)
    (verdict,) = absence(world, "d").verdicts
    assert verdict.victims == (unit("a"),)
    assert verdict.reason == "ram 100 MiB on t0, after evicting a:1"
    world.resident("d")
    assert world.ready() == {"b", "c", "d"}


def test_the_verdicts_come_in_the_order_in_which_they_would_be_taken() -> None:
    servers = (
        Server("full", "h:1", {"ram": 100 * MIB}),
        Server("small", "h:2", {"ram": 10 * MIB}),
        Server("holds", "h:3", {"ram": 300 * MIB}),
        Server("empty", "h:4", {"ram": 300 * MIB}),
        Server("away", "h:5", {"ram": 300 * MIB}),
    )
    world = World(ABCD, servers)
    world.feed(ev.ServerLost("away", "connection refused"))
    world.feed(ev.DrainWanted("empty", "an operator wants it drained"))
    world.feed(ev.DrainWanted("full", "for a moment"))
    assert world.resident("b").server == "holds"
    world.feed(ev.DrainWanted("full", ""))
    world.feed(ev.DrainWanted("holds", "for a moment"))
    assert world.resident("c").server == "full"
    world.feed(ev.DrainWanted("holds", ""))
    found = {verdict.server: verdict for verdict in absence(world, "b").verdicts}
    assert list(found) == ["holds", "full", "away", "empty", "small"]
    assert (found["holds"].holds, found["holds"].possible) == (True, False)
    assert found["holds"].reason == "ready: loaded in 0.10 s"
    assert found["full"].possible
    assert found["away"].reason == "connection refused"
    assert found["empty"].reason == "an operator wants it drained"
    assert found["small"].reason == "small has ram 10 MiB but it needs ram 100 MiB"


def test_a_label_that_no_server_has() -> None:
    world = World([spec("a", required_labels={"gpu": "a100"})])
    found = absence(world, "a")
    assert found.reason == (
        "nothing asks for a:1; no server can hold it: t0 has gpu=nothing but it requires gpu=a100"
    )


def test_pins_in_the_way() -> None:
    world = World([spec("a", 300, pinned=True), spec("b")])
    world.work()
    assert absence(world, "b").reason == (
        "nothing asks for b:1; a request would be refused: the room on t0 is taken by what is kept "
        "there: a:1"
    )


def test_no_server_is_there() -> None:
    world = World(ABCD)
    world.feed(ev.ServerLost("t0", "connection refused"))
    assert absence(world, "a").reason == (
        "nothing asks for a:1; no server takes it: t0: connection refused"
    )


def test_a_load_that_failed_says_when_it_is_tried_again() -> None:
    world = World([*ABCD, ensemble("a", "b")])
    world.ask("a")
    world.work(fail=["a"])
    failed_at = world.now
    world.now += 2
    found = absence(world, "a")
    assert found.reason == (
        "a:1 could not be loaded on t0, and is not tried again for 3 s: no weights"
    )
    assert found.failure is not None
    assert found.failure.until == pytest.approx(failed_at + LIMITS.backoff_seconds)
    above = absence(world, "e")
    assert above.reason.startswith("e:1 requires a:1, which could not be loaded on t0, and")
    assert above.failure == found.failure
    world.now += 4
    assert absence(world, "a").failure is None
    assert absence(world, "a").reason.startswith("nothing asks for a:1; a request would load it")


def test_what_fails_again_and_again_says_how_often() -> None:
    world = World(ABCD)
    for _ in range(2):
        world.ask("a")
        world.work(fail=["a"])
        world.now += 20
    world.ask("a")
    world.work(fail=["a"])
    assert "could not be loaded on t0, 3 times in a row, and is" in absence(world, "a").reason


def test_what_is_set_aside_says_so() -> None:
    world = World(ABCD)
    world.feed(ev.RouterJoined("r1", frozenset()))
    key = ReplicaKey("t0", unit("a"))
    world.feed(ev.RouterBroke("r1", key, earlier=ReplicaKey("t1", unit("a"))))
    assert absence(world, "a").reason.startswith("a:1 is set aside for 60 s: ")


def test_what_loads_tells_for_how_long_and_how_long_it_takes() -> None:
    world = World([spec("a", load_seconds=7.0)])
    world.ask("a")
    world.ask("a")
    world.now += 2
    found = absence(world, "a")
    assert found.reason == (
        "a:1 is wanted (asked for) and loading on t0 for 2.0 s, which takes about 7.0 s"
    )
    assert (found.waiters, found.turn) == (2, 0)
    assert found.verdicts[0].holds


def test_what_has_a_place_tells_what_it_waits_for() -> None:
    limits = replace(LIMITS, loads_per_server=1)
    world = World(ABCD, limits=limits)
    world.ask("a")
    world.ask("b")
    assert absence(world, "b").reason == (
        "b:1 is wanted (asked for) and has a place on t0: waits for its turn on its server"
    )


def test_what_waits_for_a_place_has_a_turn() -> None:
    world = World([spec("a", 300), *ABCD[1:], ensemble("c")])
    world.feed(ev.RouterJoined("r1", frozenset()))
    world.resident("a", router="r1")  # about to be used: nothing can be evicted
    world.ask("b")
    world.ask("e")
    assert [absence(world, name).turn for name in "bec"] == [1, 2, 2]
    assert absence(world, "b").reason == (
        "b:1 is wanted (asked for) and waits for a place, turn 1 of 2: "
        "everything on t0 is about to be used or about to leave"
    )
    part = absence(world, "c")
    assert part.reason.startswith("c:1 is a part of e:1, which is wanted (asked for) and waits")
    assert part.waiters == 1


def test_what_is_leaving_says_why() -> None:
    world = World(ABCD)
    world.resident("a")
    world.evict("a")
    assert absence(world, "a").reason == (
        "a:1 is unloading on t0 (drained), and nothing asks for it"
    )


def test_what_is_ready_tells_what_another_copy_takes() -> None:
    world = World([spec("a", max_copies=1), spec("b")], TWO)
    world.resident("a")
    world.resident("b")
    assert absence(world, "a").reason == "a:1 is READY on t1, as many as it may have (max_copies 1)"
    assert absence(world, "b").reason == (
        "b:1 is READY on t0; another copy is loaded after 3 s with more than 4 requests in flight "
        "on each (0.0 now) or more than 100 ms in its queue (0 ms now)"
    )


def test_what_is_not_known() -> None:
    world = World(ABCD)
    with pytest.raises(VersionNotFound, match="Registered versions: 1"):
        explain.why_not_loaded(world.engine.fleet, unit("a:9"), world.now)
    with pytest.raises(ModelNotFound):
        explain.why_not_loaded(world.engine.fleet, unit("nope"), world.now)
    assert explain.why_resident(world.engine.fleet, unit("nope"), world.now) == ()


# --- asking changes nothing -----------------------------------------------------------------------

NAMES = list("abcdef")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.sampled_from(NAMES)),
        st.tuples(st.just("fail"), st.sampled_from(NAMES)),
        st.tuples(st.just("evict"), st.sampled_from(NAMES)),
        st.tuples(st.just("wait"), st.sampled_from([0.1, 1.0, 30.0])),
    ),
    min_size=1,
    max_size=30,
)


def crowd(policy: str) -> World:
    specs = [
        *(spec("a", 90), spec("b", 150), spec("c", 120, pinned=True), spec("d", 200)),
        *(spec("f", 60, required_labels={"zone": "b"}), spec("g", 0)),
        UnitSpec(unit("e"), requires=(unit("a"), unit("b")), ensemble=True),
    ]
    servers = (
        Server("t0", "h:1", {"ram": 300 * MIB}, 4),
        Server("t1", "h:2", {"ram": 350 * MIB}, 3, labels={"zone": "b"}),
    )
    return World(specs, servers, Limits(policy=policy, router_seconds=1.0))


def went(policy: str, steps: Iterable[tuple[str, object]], *, explained: bool) -> World:
    world = crowd(policy)
    for kind, about in steps:
        match kind, about:
            case "ask", str():
                world.ask(about)
                world.work()
            case "fail", str():
                world.ask(about)
                world.work(fail=[about])
            case "evict", str():
                world.evict(about)
            case _, float():
                world.pass_time(about)
        for each in map(unit, NAMES if explained else ()):
            explain.why_resident(world.engine.fleet, each, world.now)
            explain.why_not_loaded(world.engine.fleet, each, world.now)
    return world


@settings(max_examples=60, deadline=None)
@given(steps=STEPS, policy=st.sampled_from(["lru", "gdsf"]))
def test_a_fleet_that_is_asked_does_what_it_would_have_done(
    steps: list[tuple[str, object]], policy: str
) -> None:
    left, asked = went(policy, steps, explained=False), went(policy, steps, explained=True)
    assert asked.records == left.records
    assert asked.pending == left.pending
    assert asked.answers.keys() == left.answers.keys()
    assert asked.engine.fleet.replicas == left.engine.fleet.replicas
    assert asked.engine.fleet.uses.on == left.engine.fleet.uses.on
