"""One order of victims for the fleet, when they leave, and whose load comes next."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.controller.core import events as ev
from services.controller.core import order, placement, words
from services.controller.core.entities import Server
from services.controller.core.fleet import Fleet
from services.controller.core.limits import Limits
from services.controller.core.placement import Place, place
from services.controller.core.states import State
from services.controller.core.victims import Later, Terms
from tests.support.placement_views import NOW, There, fleet_of, placed, server, spec, view
from tests.support.residency_world import LIMITS, MIB, World, key, servers, unit
from tests.support.residency_world import spec as sized

# --- one order ------------------------------------------------------------------------------------


@st.composite
def fleets(draw: st.DrawFn) -> Fleet:
    """Full servers, with models of several sizes, load times and last uses."""
    limits = Limits(policy=draw(st.sampled_from(["lru", "gdsf"])))
    number = 0
    views, specs = [], []
    for at in range(draw(st.integers(1, 5))):
        there = []
        for size in draw(st.lists(st.sampled_from([10, 20, 30, 50]), min_size=1, max_size=6)):
            each = spec(f"m{number}", size, load_seconds=draw(st.sampled_from([0.5, 2.0, 9.0])))
            number += 1
            specs.append(each)
            there.append(There(each, NOW - draw(st.integers(1, 5000))))
        full = sum(one.spec.declared["ram"] for one in there)
        views.append(view(server(full, id=f"t{at}"), *there))
    return fleet_of(views, specs, limits)


@settings(max_examples=2 * settings().max_examples)
@given(fleets(), st.sampled_from([5, 25, 60, 100]))
def test_the_dearest_victim_is_the_cheapest_that_any_server_has(fleet: Fleet, size: int) -> None:
    newcomer = spec("newcomer", size)
    each = [
        found
        for name in fleet.servers
        if isinstance(found := placement.on_server(fleet, (newcomer,), name, Terms(), NOW), Place)
    ]
    decision = place(fleet, newcomer, Terms(), NOW)
    if not each:
        assert not isinstance(decision, Place)
        return
    chosen = placed(decision)
    costs = {found.server: found.cost for found in each}
    assert chosen in each
    assert chosen.cost <= order._as_good_as(fleet, min(costs.values()), NOW)
    ranks = fleet.uses.on[chosen.server]
    assert chosen.cost == max(ranks[gone].rank for gone in chosen.victims)


def test_quietness_decides_only_between_equals() -> None:
    a, b = spec("a", 10, load_seconds=1.0), spec("b", 10, load_seconds=1.0)
    loading = There(spec("l", 1), NOW, State.LOADING)

    def chosen(idle: float, idle_beside_a_load: float) -> str:
        quiet = view(server(10, id="quiet"), There(a, NOW - idle))
        busy = view(server(11, id="busy"), There(b, NOW - idle_beside_a_load), loading)
        fleet = fleet_of([quiet, busy], [a, b], Limits())
        return placed(place(fleet, spec("n", 10), Terms(), NOW)).server

    assert chosen(1000.0, 1005.0) == "quiet"
    assert chosen(1000.0, 1100.0) == "busy"


def test_copies_are_apart_before_they_are_cheap() -> None:
    c, old, new = spec("c", 10), spec("old", 10), spec("new", 10)
    first = view(server(10, id="t0", host="x"), There(c, NOW))
    beside = view(server(10, id="t1", host="x"), There(old, NOW - 900))
    apart = view(server(10, id="t2", host="y"), There(new, NOW - 100))
    fleet = fleet_of([first, beside, apart], [c, old, new])
    assert placed(place(fleet, c, Terms(), NOW)).server == "t2"


def test_the_clock_of_the_fleet_is_the_highest_rank_that_was_evicted() -> None:
    specs = [sized(f"m{i}", 200, load_seconds=1.0 + i) for i in range(6)]
    world = World(specs, servers(2), replace(LIMITS, policy="gdsf"))
    clocks = [0.0]
    for i in range(6):
        world.resident(f"m{i}")
        clocks.append(world.fleet.uses.clock)
    assert clocks == sorted(clocks)
    gone = {record.unit for record in world.records if record.kind is ev.Kind.EVICTING}
    assert gone == {unit(f"m{i}") for i in range(4)}
    least = [world.fleet.use(key(name, at)).rank for at in ("t0", "t1") for name in world.ready(at)]
    assert world.fleet.uses.clock <= min(least)


def test_a_reason_has_the_figures() -> None:
    world = World([sized("a", 4198, load_seconds=9.0), sized("b", 4198)], servers(1, 5000))
    world.resident("a")
    world.use("a", requests=2)
    world.now += 2400.0
    world.ask("b")
    (reason,) = world.reasons(ev.Kind.EVICTING)
    assert reason == (
        "least recently used in the fleet (used 3 times lately, idle 40 min, 0.1 s to load, "
        "4.10 GiB); makes room for b:1"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0 s"),
        (9.0, "9 s"),
        (59.6, "60 s"),
        (2400, "40 min"),
        (9000, "2.5 h"),
        (2e5, "2.3 d"),
    ],
)
def test_times_in_words(seconds: float, text: str) -> None:
    assert words.duration(seconds) == text


ALONE = replace(LIMITS, loads_per_server=1)


# --- late eviction --------------------------------------------------------------------------------


def ready_models(count: int) -> World:
    """One server, full of `old0`, `old1`, …, with one load at a time."""
    specs = [sized(f"{kind}{i}", 100) for kind in ("old", "new") for i in range(count)]
    world = World(specs, servers(1, 100 * count), replace(LIMITS, loads_per_server=1))
    for i in range(count):
        world.resident(f"old{i}")
        world.now += 1.0
    return world


def test_nothing_leaves_before_its_successor_could_load() -> None:
    world = ready_models(3)
    asked = [world.ask(f"new{i}") for i in range(3)]
    assert world.ready() == {"old1", "old2"}
    status = world.fleet.wants.by_unit[unit("new1")].status
    assert status == "t0 is busy with other loads"
    world.feed(ev.Unloaded(*(lambda o: (o.key, o.attempt))(world.take(ev.Unload, "old0"))))
    assert world.ready() == {"old1", "old2"}, "new0 is loading"
    load = world.take(ev.Load, "new0")
    world.feed(ev.Loaded(load.key, load.attempt, 1.0))
    assert world.ready() == {"new0", "old2"}
    world.work()
    for waiter in asked:
        world.granted(waiter)


def serve(world: World) -> None:
    """The Router drains what is withdrawn, and the servers do their work, until nothing is left."""
    for _ in range(4):
        world.drained("r")
        world.work()


def test_a_victim_that_is_used_while_others_wait_stays() -> None:
    world = ready_models(3)
    world.ask("new0")
    world.ask("new1")
    world.now += 1.0
    world.use("old1")
    serve(world)
    assert world.ready() == {"new0", "new1", "old1"}


def test_a_host_that_is_full_of_loads_lets_nothing_leave() -> None:
    both = [replace(one, host="x") for one in servers(2, 100)]
    specs = [sized(name, 100) for name in "abcd"]
    world = World(specs, both, replace(LIMITS, loads_per_host=1))
    world.resident("a")
    world.resident("b")
    world.ask("c")
    world.ask("d")
    assert len(world.ready()) == 1
    world.work()
    assert world.ready() == {"c", "d"}


def test_what_loads_alone_evicts_nothing_while_others_load() -> None:
    unknown = sized("unknown", 0)
    world = World([sized("a", 200), sized("b", 60), unknown], servers(1))
    world.resident("a")
    world.ask("b")
    world.ask("unknown")
    assert "a" in world.ready()
    world.work()
    assert "unknown" in world.ready()


def test_room_is_taken_though_other_loads_wait() -> None:
    world = ready_models(2)
    world.register(*(sized(f"{kind}{i}", 100) for kind in ("old", "new") for i in range(2)))
    world.evict("old0")
    world.work()
    world.ask("new0")
    assert world.replica("new0").state is State.LOADING
    assert "old1" in world.ready()


def test_the_soft_limit_makes_no_room_where_no_load_could_begin() -> None:
    both = [
        Server(f"t{i}", f"h:{i}", {"ram": 300 * MIB}, soft={"ram": 150 * MIB}, host="x")
        for i in range(2)
    ]
    specs = [sized("a", 100), sized("b", 100), sized("c", 300)]
    limits = replace(LIMITS, loads_per_host=1, headroom_idle_seconds=5.0, slow_load_seconds=60.0)
    world = World(specs, both, limits)
    home = world.resident("a").server
    world.feed(ev.IndexSeen(home, frozenset({unit("a"), unit("b")}), world.now))
    assert world.ready(home) == {"a", "b"}
    world.ask("c")
    for _ in range(20):
        world.pass_time(1.0)
    assert world.ready(home) == {"a", "b"}
    world.work()
    for _ in range(20):
        world.pass_time(1.0)
    assert len(world.ready(home)) == 1


def test_what_is_in_use_waits_for_a_busy_server_before_it_leaves_a_drained_one() -> None:
    specs = [sized("m0", 200), sized("m1", 200), sized("m2", 100)]
    world = World(specs, servers(2), ALONE)
    home, other = world.resident("m0").server, world.resident("m1").server
    world.use("m0", home, in_flight=1)
    world.feed(ev.DrainWanted(home, "maintenance"))
    world.ask("m2")
    assert world.replica("m2", other).state is State.LOADING
    for _ in range(3):
        world.use("m0", home, in_flight=1)
        world.pass_time(0.3)
        assert world.ready(home) == {"m0"}
    for _ in range(4):
        serve(world)
        world.use("m0", home, in_flight=1)
        world.pass_time(0.3)
    assert "m0" in world.ready(other)
    assert world.ready(home) == set()


def test_the_decision_says_that_it_is_later() -> None:
    loads = [There(spec(f"l{i}", 1), NOW, State.LOADING) for i in range(2)]
    a = spec("a", 98)
    fleet = fleet_of([view(server(100), There(a, 1), *loads)], [a], Limits())
    decision = place(fleet, spec("n", 50), Terms(), NOW)
    assert isinstance(decision, Later)
    assert decision.reason == "t0 is busy with other loads"


# --- the order of loads ---------------------------------------------------------------------------


def loaded(world: World) -> list[str]:
    kinds = [r for r in world.records if r.kind is ev.Kind.LOADING and r.unit is not None]
    return [r.unit.model for r in kinds if r.unit is not None]


def test_most_waiters_for_a_second_of_loading_come_first() -> None:
    specs = [
        sized("running", 10),
        sized("long", 10, load_seconds=13.0),
        sized("short", 10, load_seconds=0.5),
        sized("popular", 10, load_seconds=13.0),
    ]
    world = World(specs, servers(1, 40), ALONE)
    world.ask("running")
    world.ask("long")
    world.now += 1.0
    for _ in range(40):
        world.ask("popular")
    world.ask("short")
    world.work()
    assert loaded(world)[0] == "running"
    assert loaded(world)[-1] == "long"


def test_the_order_in_the_queue_follows_the_waiters() -> None:
    world = ready_models(3)
    world.ask("new0")
    for name in ("new1", "new2"):
        world.ask(name)
        world.now += 0.5
    waiters = [world.ask("new2") for _ in range(3)]
    assert [each.model for _, each in world.fleet.wants.unplaced] == ["new2", "new1"]
    for waiter in waiters:
        world.feed(ev.WaiterGone(waiter))
    assert [each.model for _, each in world.fleet.wants.unplaced] == ["new1", "new2"]


def test_nobody_waits_much_longer_for_whoever_has_more_waiters() -> None:
    """At most two steps of priority lie between the most and the fewest."""
    limits = replace(ALONE, aging_seconds=1.0)
    crowds = [sized(f"crowd{i}", 10, load_seconds=0.01) for i in range(12)]
    world = World(
        [sized("running", 10), sized("alone", 10, load_seconds=90.0), *crowds], servers(1), limits
    )
    world.ask("running")
    world.ask("alone", 1000.0)
    start = world.now
    asked = {}
    for i in range(12):
        world.now += 0.5
        asked[f"crowd{i}"] = world.now
        for _ in range(9):
            world.ask(f"crowd{i}", 1000.0)
    world.work()
    before = loaded(world)[1 : loaded(world).index("alone")]
    assert before
    assert all(asked[name] <= start + 2.0 for name in before)


def test_what_would_serve_nobody_in_time_pushes_nothing_out() -> None:
    specs = [sized("used", 200), sized("slow", 200, load_seconds=8.0), sized("quick", 200)]
    world = World(specs, servers(1), replace(LIMITS, headroom_idle_seconds=30.0))
    world.resident("used")
    world.refusal(world.ask("slow", deadline=2.0))
    assert world.ready() == {"used"}
    assert not world.pending
    world.pass_time(31.0)
    world.refusal(world.ask("slow", deadline=2.0))
    world.work(seconds=8.0)
    assert world.ready() == {"slow"}, "nothing that was used lately had to leave"


def test_whoever_can_still_be_served_goes_before_whoever_cannot() -> None:
    world = ready_models(2)
    world.register(
        *(sized(f"{kind}{i}", 100) for kind in ("old", "new") for i in range(2)),
        sized("slow", 100, load_seconds=8.0),
    )
    world.ask("new0")
    late = world.ask("slow", deadline=9.0)
    world.now += 2.0
    other = world.ask("new1", deadline=60.0)
    world.use("old1")
    serve(world)
    world.granted(other)
    assert late not in world.answers
    patient = world.ask("slow", deadline=60.0)
    serve(world)
    world.granted(patient)
