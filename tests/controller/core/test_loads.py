"""Which load starts when: turns, bounds, deadlines, and loads that never end."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.errors import LoadFailed, ModelNotFound, VersionNotFound
from services.controller.core import events as ev
from services.controller.core.entities import Server, UnitSpec
from services.controller.core.errors import DeadlineTooShort, SetAside
from services.controller.core.states import State
from services.controller.core.waiting import Purpose
from tests.support.residency_world import (
    ABCD,
    LIMITS,
    MIB,
    ONE,
    World,
    ensemble,
    key,
    servers,
    spec,
    unit,
)


def loading(world: World, server: str = "t0") -> set[str]:
    here = world.fleet.replicas[server].values()
    return {r.unit.model for r in here if r.state is State.LOADING}


# --- bounds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", [1, 2, 3])
def test_so_many_loads_at_a_time_on_a_server(bound: int) -> None:
    specs = [spec(f"m{i}", 1) for i in range(8)]
    world = World(specs, servers(1), replace(LIMITS, loads_per_server=bound, loads_per_host=9))
    asked = [world.ask(f"m{i}") for i in range(8)]
    most = 0
    while world.pending:
        most = max(most, len(loading(world)))
        order = world.pending.pop(0)
        world.feed(ev.Loaded(order.key, order.attempt, 0.1))
    assert most == bound
    assert all(isinstance(world.answers[waiter], ev.Granted) for waiter in asked)


def test_so_many_loads_at_a_time_on_a_host() -> None:
    on_one_host = [replace(server, host="x") for server in servers(3)]
    specs = [spec(f"m{i}", 1) for i in range(9)]
    world = World(specs, on_one_host, replace(LIMITS, loads_per_server=2, loads_per_host=3))
    asked = [world.ask(f"m{i}") for i in range(9)]
    while world.pending:
        assert sum(len(loading(world, name)) for name in world.fleet.servers) <= 3
        assert len(world.pending) == 3 or len(world.answers) >= 6
        order = world.pending.pop(0)
        world.feed(ev.Loaded(order.key, order.attempt, 0.1))
    assert all(isinstance(world.answers[waiter], ev.Granted) for waiter in asked)


@pytest.mark.parametrize("end", ["failed", "hung", "lost"])
def test_however_a_load_ends_another_may_start_on_its_host(end: str) -> None:
    both = [replace(server, host="x") for server in servers(2)]
    world = World(
        [spec("a", 250), spec("b", 250)],
        both,
        replace(LIMITS, loads_per_server=1, loads_per_host=1),
    )
    world.ask("a")
    waiter = world.ask("b")
    (load,) = world.pending
    world.pending.clear()
    if end == "failed":
        world.feed(ev.LoadFailedOnServer(load.key, load.attempt, "no weights"))
    elif end == "hung":
        world.feed(ev.LoadHung(load.key, load.attempt, "it hangs"))
    else:
        world.feed(ev.ServerLost(load.key.server, "killed"))
    assert "b" in {order.key.unit.model for order in world.pending if isinstance(order, ev.Load)}
    assert waiter not in world.answers


# --- turns ----------------------------------------------------------------------------------------


def order_of_loads(world: World) -> list[str]:
    return [r.unit.model for r in world.records if r.kind is ev.Kind.LOADING and r.unit is not None]


ALONE = replace(LIMITS, loads_per_server=1)


def test_first_come_first_loaded() -> None:
    world = World([spec(f"m{i}", 1) for i in range(5)], servers(1), ALONE)
    for i in (3, 0, 4, 1, 2):
        world.ask(f"m{i}")
        world.now += 0.1
    world.work()
    assert order_of_loads(world) == ["m3", "m0", "m4", "m1", "m2"]


def test_priority_goes_first() -> None:
    specs = [
        spec("running", 1),
        spec("low", 1, priority=-1),
        spec("mid", 1),
        spec("high", 1, priority=2),
    ]
    world = World(specs, servers(1), ALONE)
    for name in ("running", "low", "mid", "high"):
        world.ask(name)
    world.work()
    assert order_of_loads(world) == ["running", "high", "mid", "low"]


def test_a_request_goes_before_what_nobody_waits_for() -> None:
    world = World([spec("running", 1), spec("wanted", 1)], servers(1), ALONE)
    world.ask("running")
    world.register(spec("kept", 1, min_copies=1))
    world.ask("wanted")
    world.work()
    assert order_of_loads(world) == ["running", "wanted", "kept"]


def test_who_waits_long_goes_before_the_urgent() -> None:
    """One step of priority counts like `aging_seconds`."""
    limits = replace(ALONE, aging_seconds=10.0)
    world = World(
        [spec("running", 1), spec("old", 1), spec("new", 1, priority=1)], servers(1), limits
    )
    world.ask("running")
    world.ask("old")
    world.now += 9.0
    early = World(
        [spec("running", 1), spec("old", 1), spec("new", 1, priority=1)], servers(1), limits
    )
    early.ask("running")
    early.ask("old")
    for each, seconds in ((early, 9.0), (world, 2.0)):
        each.now += seconds
        each.ask("new")
        each.work()
    assert order_of_loads(early) == ["running", "new", "old"]
    assert order_of_loads(world) == ["running", "old", "new"]


def test_a_waiter_lends_its_urgency_to_what_was_wanted_already() -> None:
    world = World([spec("running", 1)], servers(1), ALONE)
    world.ask("running")
    world.register(spec("k1", 1, min_copies=1), spec("k2", 1, min_copies=1))
    world.ask("k2")
    world.work()
    assert order_of_loads(world) == ["running", "k2", "k1"]


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 2)), max_size=40))
def test_nothing_starves(rivals: list[tuple[int, float]]) -> None:
    """However many urgent ones come, the least urgent is loaded before those that came
    `aging_seconds` times the difference later."""
    limits = replace(ALONE, aging_seconds=1.0)
    specs = [spec(f"m{i}", 1, priority=priority) for i, (priority, _) in enumerate(rivals)]
    world = World([spec("running", 1), spec("patient", 1), *specs], servers(1), limits)
    world.ask("running", 1000.0)
    world.ask("patient", 1000.0)
    start = world.now
    asked_at = {}
    for i, (_, pause) in enumerate(rivals):
        world.now += pause
        asked_at[f"m{i}"] = world.now
        world.ask(f"m{i}", 1000.0)
    world.work()
    order = order_of_loads(world)
    before = order[: order.index("patient")]
    assert all(asked_at[name] <= start + 3.0 for name in before if name != "running")


# --- bursts ---------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(
    count=st.integers(1, 30),
    sizes=st.lists(st.sampled_from([60, 100, 150, 300]), min_size=1, max_size=4),
    slots=st.sampled_from([0, 1, 3]),
    policy=st.sampled_from(["lru", "gdsf"]),
)
def test_a_burst_beyond_capacity_is_served(
    count: int, sizes: list[int], slots: int, policy: str
) -> None:
    specs = [spec(f"m{i}", sizes[i % len(sizes)]) for i in range(count)]
    world = World(specs, servers(2, 300, slots), replace(LIMITS, policy=policy))
    world.feed(ev.RouterJoined("r", frozenset()))
    asked = [world.ask(f"m{i}", 600.0, router="r") for i in range(count)]
    for _ in range(20 * count):
        for answer in list(world.answers.values()):
            if isinstance(answer, ev.Granted):
                world.feed(ev.RouterStarted("r", answer.use_lease))
        world.drained("r")
        world.work()
        if len(world.answers) == count:
            break
        world.pass_time(0.25)
    assert all(isinstance(world.answers[waiter], ev.Granted) for waiter in asked)


def test_a_big_one_is_not_starved_by_small_ones() -> None:
    """Three small ones are about to be used; as one is, the next is asked for in its place."""
    small = [spec(f"s{i}", 100) for i in range(40)]
    limits = replace(LIMITS, router_seconds=1e6, use_lease_seconds=5.0, claim_seconds=2.0)
    world = World([spec("big", 300), *small], servers(1), limits)
    world.feed(ev.RouterJoined("r", frozenset()))
    waiting: list[int] = []
    leased: list[ev.Granted] = []
    big = 0
    for i in range(40):
        waiting.append(world.ask(f"s{i}", router="r"))
        if len(leased) == 3 or i > 10:
            for grant in leased[:1]:
                world.feed(ev.RouterStarted("r", grant.use_lease))
            leased = leased[1:]
        world.drained("r")
        world.work()
        leased += [world.granted(waiter) for waiter in waiting if waiter in world.answers]
        waiting = [waiter for waiter in waiting if waiter not in world.answers]
        if i == 5:
            assert len(leased) == 3
            big = world.ask("big", 10.0)
        if big in world.answers:
            break
        world.pass_time(0.5)
    world.granted(big)


# --- deadlines ------------------------------------------------------------------------------------


def test_a_deadline_too_short_is_said_at_once_and_the_retry_finds_it() -> None:
    world = World([spec("slow", load_seconds=8.0)])
    error = world.refusal(world.ask("slow", deadline=2.0))
    assert isinstance(error, DeadlineTooShort)
    assert error.retry_after == pytest.approx(8.0)
    assert error.metadata["left_seconds"] == "2.00"
    world.work(seconds=8.0)
    world.granted(world.ask("slow", deadline=2.0))


def test_a_deadline_too_short_counts_from_when_the_load_began() -> None:
    world = World([spec("slow", load_seconds=8.0)])
    first = world.ask("slow", deadline=100.0)
    world.now += 7.0
    second = world.ask("slow", deadline=2.0)
    assert second not in world.answers
    world.work()
    world.granted(first)
    world.granted(second)


def test_what_was_only_too_late_is_given_up_when_nobody_tries_again() -> None:
    world = World([spec("busy", 200), spec("slow", 200, load_seconds=2.0)], servers(1))
    world.resident("busy")
    world.use("busy", sequences=1)
    assert isinstance(world.refusal(world.ask("slow", deadline=1.0)), DeadlineTooShort)
    for _ in range(12):
        world.use("busy", sequences=1)
        world.pass_time(0.5)
    assert not world.fleet.wants.by_unit


# --- loads that fail ------------------------------------------------------------------------------


def test_a_copy_that_fails_takes_no_waiter_of_another_server_with_it() -> None:
    """`e` has its place on a server where its part is READY."""
    world = World([spec("a", 100), spec("b", 0), ensemble("e", "a", "b")], servers(2))
    home = world.resident("a").server
    (other,) = set(world.fleet.servers) - {home}
    world.register(spec("a", 100, min_copies=2))
    copy = world.take(ev.Load, "a")
    assert copy.key.server == other
    waiter = world.ask("e")
    if world.fleet.wants.by_unit[unit("e")].server == home:
        world.feed(ev.LoadFailedOnServer(copy.key, copy.attempt, "bad disk"))
        world.work()
        world.granted(waiter)
    else:
        world.feed(ev.LoadFailedOnServer(copy.key, copy.attempt, "bad disk"))
        assert isinstance(world.refusal(waiter), LoadFailed)


def test_the_backoff_doubles() -> None:
    world = World(ABCD, limits=replace(LIMITS, backoff_seconds=2.0, max_backoff_seconds=5.0))
    waits = []
    for _ in range(4):
        waiter = world.ask("a")
        world.work(fail=["a"])
        error = world.refusal(waiter)
        waits.append(error.retry_after)
        world.now += error.retry_after + 0.1
    assert waits == pytest.approx([2.0, 4.0, 5.0, 5.0])


# --- loads that hang ------------------------------------------------------------------------------


def test_a_hung_load_keeps_its_memory_until_it_is_unloaded() -> None:
    world = World(ABCD)
    waiter = world.ask("a")
    load = world.take(ev.Load, "a")
    world.feed(ev.LoadHung(load.key, load.attempt, "not over after 60 s"))
    assert isinstance(world.refusal(waiter), LoadFailed)
    assert world.replica("a").state is State.UNLOADING
    unload = world.take(ev.Unload, "a")
    assert unload.versions == ()
    granted = [world.ask(name) for name in "bcd"]
    world.work()
    assert [type(world.answers.get(waiter)) for waiter in granted[:2]] == [ev.Granted, ev.Granted]
    assert granted[2] not in world.answers
    assert world.fleet.accounts["t0"].occupied == {"ram": 300 * MIB}
    world.feed(ev.Loaded(load.key, load.attempt, 70.0))
    assert "a" not in world.ready(), "it came too late"
    world.feed(ev.Unloaded(unload.key, unload.attempt))
    world.work()
    world.pass_time(10.0)
    world.resident("a")


def test_a_hung_load_takes_nothing_else_down() -> None:
    world = World(ABCD)
    world.resident("b")
    world.ask("a")
    load = world.take(ev.Load, "a")
    world.feed(ev.LoadHung(load.key, load.attempt, "it hangs"))
    assert world.ready() == {"b"}
    assert world.fleet.servers["t0"].accepting
    world.resident("c")


def test_a_hung_unload_drains_the_server_and_asks_for_its_restart() -> None:
    world = World(ABCD, servers(2))
    world.resident("a")
    (home,) = world.fleet.where[unit("a")]
    world.evict("a")
    unload = world.take(ev.Unload, "a")
    world.feed(ev.UnloadHung(unload.key, unload.attempt, "not over after 60 s"))
    server = world.fleet.servers[home]
    assert server.draining == "a:1 does not unload: not over after 60 s"
    assert world.resident("b").server != home
    world.pass_time(1.0)
    assert world.fleet.servers[home].restart_wanted
    world.feed(ev.ServerLost(home, "restarted"))
    world.feed(ev.ServerFound(world.fleet.servers[home], frozenset()))
    assert world.fleet.servers[home].accepting
    assert not world.fleet.replicas[home]


def test_a_hung_unload_is_no_reason_to_take_the_memory_twice() -> None:
    world = World([spec("a", 200), spec("b", 200)], servers(1))
    world.resident("a")
    world.evict("a")
    unload = world.take(ev.Unload, "a")
    world.feed(ev.UnloadHung(unload.key, unload.attempt, "it hangs"))
    world.ask("b")
    world.settle(5.0)
    assert not world.pending
    assert world.ready() == set()


# --- what changes on the way ----------------------------------------------------------------------


def test_what_leaves_the_catalogue_while_it_waits_for_its_turn() -> None:
    world = World([spec("a", 0), spec("b", 0)])  # of unknown size: one by one
    world.ask("a")
    waiter = world.ask("b")
    world.feed(ev.CatalogueChanged(frozenset({"b"}), ()))
    assert isinstance(world.refusal(waiter), VersionNotFound)
    world.work()
    assert world.ready() == {"a"}


def test_an_ensemble_leaves_the_catalogue_while_its_parts_wait() -> None:
    world = World([spec("a", 0), spec("b", 0), ensemble("e", "a", "b")])
    world.ask("e")
    world.feed(ev.CatalogueChanged(frozenset({"e"}), ()))
    world.work()
    assert world.ready() == {"a"}, "b was not begun, and nobody wants it"


def test_a_part_leaves_the_catalogue_while_its_ensemble_waits() -> None:
    world = World([spec("a", 0), spec("b", 0), ensemble("e", "a", "b")])
    waiter = world.ask("e")
    world.feed(ev.CatalogueChanged(frozenset({"b"}), ()))
    assert world.refusal(waiter).metadata["model"] == "b"
    assert isinstance(world.refusal(world.ask("e")), ModelNotFound)
    world.work()


def test_a_part_that_changes_is_loaded_again_for_the_ensemble_that_waits() -> None:
    world = World([*ABCD, ensemble("e", "a", "b")])
    world.resident("a")
    waiter = world.ask("e", deadline=30)
    world.register(replace(ABCD[0], fingerprint="new"))
    world.settle(5.0)
    world.granted(waiter)


def test_a_part_that_vanishes_is_loaded_again_for_the_ensemble_that_waits() -> None:
    world = World([*ABCD, ensemble("e", "a", "b")])
    world.resident("a")
    world.now += 1.0
    waiter = world.ask("e", deadline=30)
    world.feed(ev.IndexSeen("t0", frozenset(), world.now))
    world.settle(5.0)
    world.granted(waiter)


def test_what_changed_while_it_loaded_is_loaded_again() -> None:
    world = World(ABCD)
    waiter = world.ask("a")
    world.register(replace(ABCD[0], fingerprint="new"))
    world.work()
    world.granted(waiter)
    assert len(world.reasons(ev.Kind.READY)) == 2
    assert not world.replica("a").broken


def test_a_load_of_files_that_were_replaced_meanwhile_may_fail() -> None:
    world = World(ABCD)
    waiter = world.ask("a")
    load = world.take(ev.Load, "a")
    world.register(replace(ABCD[0], fingerprint="new"))
    world.feed(ev.LoadFailedOnServer(load.key, load.attempt, "no weights"))
    world.work()
    world.granted(waiter)


def test_a_load_that_somebody_else_undoes_is_begun_again() -> None:
    world = World(ABCD)
    waiter = world.ask("a")
    load = world.take(ev.Load, "a")
    world.feed(ev.LoadFailedOnServer(load.key, load.attempt, "unloaded", undone=True))
    assert world.reasons(ev.Kind.UNEXPECTED) == [
        "unloaded by somebody else while it was being loaded"
    ]
    assert world.reasons(ev.Kind.LOAD_FAILED) == []
    world.work()
    world.granted(waiter)


def test_an_ensemble_is_placed_elsewhere_when_its_server_is_drained_half_way() -> None:
    world = World([spec("a", 0), spec("b", 0), ensemble("e", "a", "b")], servers(2))
    waiter = world.ask("e", 50.0)
    (load,) = world.pending
    world.feed(ev.DrainWanted(load.key.server, "maintenance"))
    world.settle(5.0)
    assert world.granted(waiter).key.server != load.key.server


# --- found under way ------------------------------------------------------------------------------


def found(world: World, **states: frozenset[object]) -> None:
    there = {"resident": frozenset(), **states}
    world.feed(ev.ServerFound(world.fleet.servers["t0"], **there))  # type: ignore[arg-type]


def test_a_load_that_another_controller_began_is_waited_for() -> None:
    world = World(ABCD)
    found(world, loading=frozenset({unit("a")}))
    settle = world.order(ev.Settle, "a")
    assert settle.loading
    assert world.replica("a").state is State.LOADING
    waiter = world.ask("a")
    assert [type(order) for order in world.pending] == [ev.Settle], "it is loading already"
    world.work()
    world.granted(waiter)


def test_an_unload_that_another_controller_began_still_takes_its_memory() -> None:
    world = World(ABCD)
    found(world, unloading=frozenset({unit("a")}))
    settle = world.take(ev.Settle, "a")
    assert not settle.loading
    asked = [world.ask(name) for name in "bcd"]
    world.work()
    assert sum(isinstance(world.answers.get(waiter), ev.Granted) for waiter in asked) == 2
    world.feed(ev.Unloaded(settle.key, settle.attempt))
    world.work()
    assert all(isinstance(world.answers.get(waiter), ev.Granted) for waiter in asked)


def test_a_load_found_under_way_may_fail_or_hang() -> None:
    for event in (ev.LoadFailedOnServer, ev.LoadHung):
        world = World(ABCD)
        found(world, loading=frozenset({unit("a")}))
        waiter = world.ask("a")
        settle = world.take(ev.Settle, "a")
        world.feed(event(settle.key, settle.attempt, "no"))
        assert isinstance(world.refusal(waiter), LoadFailed)


@pytest.mark.parametrize("state", ["resident", "loading"])
def test_what_was_loaded_with_another_config_is_loaded_again(state: str) -> None:
    world = World(ABCD)
    found(world, **{state: frozenset({unit("a")}), "outdated": frozenset({unit("a")})})
    waiter = world.ask("a")
    assert waiter not in world.answers
    world.work()
    world.granted(waiter)
    assert [r.unit for r in world.records if r.kind is ev.Kind.UNLOADED] == [unit("a")]
    assert not world.replica("a").broken


def test_what_was_idle_before_a_restart_leaves_first_after_it() -> None:
    world = World(ABCD)
    there = frozenset(map(unit, "abc"))
    idle = {unit("a"): 5.0, unit("b"): 90.0, unit("c"): 30.0}
    world.feed(ev.ServerFound(world.fleet.servers["t0"], there, idle=idle))
    world.resident("d")
    assert world.ready() == {"a", "c", "d"}


def test_strangers_take_their_place_and_are_given_to_nobody() -> None:
    world = World(ABCD)
    found(world, resident=frozenset({unit("x")}))
    assert isinstance(world.refusal(world.ask("x")), ModelNotFound)
    assert world.replica("x").slots == 1
    assert world.reasons(ev.Kind.UNEXPECTED) == ["resident but not in the catalogue"]


def test_a_stranger_that_is_registered_is_counted_as_declared() -> None:
    world = World(ABCD)
    found(world, resident=frozenset({unit("x"), unit("e")}))
    world.register(spec("x", 150), ensemble("e", "a"))
    assert world.replica("x").reserved == {"ram": 150 * MIB}
    assert world.replica("e").slots == 0
    world.granted(world.ask("x"))


def test_what_comes_unasked_while_its_part_leaves_goes_with_it() -> None:
    specs = [spec("a"), spec("bls", 10, requires=(unit("a"),))]
    world = World(specs, limits=replace(LIMITS, router_seconds=1e6))
    world.resident("a")
    world.feed(ev.RouterJoined("r", frozenset()))
    evicting = world.evict("a")
    world.now += 1.0
    world.feed(ev.IndexSeen("t0", frozenset({unit("a"), unit("bls")}), world.now))
    world.pass_time(0.5)
    assert world.ready() == set()
    world.drained("r")
    world.work()
    assert world.fleet.replicas["t0"] == {}
    assert isinstance(world.answers[evicting], ev.Evicted)


def test_what_is_registered_while_its_part_leaves_goes_with_it() -> None:
    """A stranger that turns out to be an ensemble of what is being evicted."""
    world = World([spec("a")], limits=replace(LIMITS, router_seconds=1e6))
    world.resident("a")
    world.feed(ev.RouterJoined("r", frozenset()))
    world.now += 1.0
    world.feed(ev.IndexSeen("t0", frozenset({unit("a"), unit("e")}), world.now))
    world.evict("a")
    world.register(ensemble("e", "a"))
    world.pass_time(0.5)
    world.drained("r")
    world.work()
    assert world.fleet.replicas["t0"] == {}
    world.resident("e")


# --- measured -------------------------------------------------------------------------------------


def test_only_what_takes_of_what_is_lacking_leaves_for_a_debt() -> None:
    specs = [UnitSpec(unit("cpu"), declared={"ram": 1})] + [
        UnitSpec(unit(name), declared={"gpu:0": 50}) for name in ("g1", "g2")
    ]
    world = World(specs, [Server("t0", "h", {"ram": 10, "gpu:0": 100})])
    for name in ("cpu", "g1", "g2"):
        world.resident(name)
    world.feed(ev.Measured("t0", {unit("g2"): {"gpu:0": 70}}, {}))
    assert world.ready() == {"cpu", "g2"}


# --- set aside ------------------------------------------------------------------------------------


def joined(specs: list[UnitSpec], count: int = 2) -> World:
    world = World(specs, servers(count), replace(LIMITS, router_seconds=1e6))
    world.feed(ev.RouterJoined("r", frozenset()))
    return world


def test_a_request_that_broke_on_two_servers_sets_its_unit_aside() -> None:
    world = joined([*ABCD])
    home = world.resident("a").server
    world.resident("b")
    world.feed(ev.RouterBroke("r", key("b", home)))
    world.feed(ev.RouterBroke("r", key("a", home), key("a", "elsewhere")))
    world.drained("r")
    world.work()
    error = world.refusal(world.ask("a"))
    assert isinstance(error, SetAside)
    assert error.retry_after == pytest.approx(LIMITS.set_aside_seconds, abs=1)
    assert "a" not in world.ready()
    assert "b" in world.ready(), "a bystander stays"
    world.pass_time(LIMITS.set_aside_seconds + 1)
    world.drained("r")
    world.work()
    world.resident("a")


def test_what_is_set_aside_while_it_loads_does_not_come_back_by_that() -> None:
    world = joined([spec("a", min_copies=2)])
    first = world.order(ev.Load, "a")
    world.pending.remove(first)
    world.feed(ev.Loaded(first.key, first.attempt, 0.1))
    world.pass_time(0.1)
    assert world.pending, "the second copy loads"
    world.feed(ev.RouterBroke("r", first.key, key("a", "elsewhere")))
    world.drained("r")
    world.work()
    world.drained("r")
    world.work()
    assert world.ready() == set()
    assert isinstance(world.refusal(world.ask("a")), SetAside)


def test_what_needs_a_part_that_is_set_aside_hears_so() -> None:
    world = joined([*ABCD, ensemble("e", "a", "b")], 1)
    world.resident("a")
    waiter = world.ask("e")
    world.feed(ev.RouterBroke("r", key("a"), key("a", "elsewhere")))
    assert isinstance(world.refusal(waiter), SetAside)
    assert world.refusal(waiter).metadata["model"] == "a"


def test_two_that_crash_servers_alone_are_set_aside_once_each() -> None:
    world = joined(ABCD, 2)
    for _ in range(3):
        world.now += 5.0
        world.feed(ev.RouterBroke("r", key("a", "t0")))
        world.feed(ev.RouterBroke("r", key("b", "t1")))
    world.pass_time(1.0)
    world.pass_time(1.0)
    assert {u.model: f.count for u, f in world.fleet.failures.by_unit.items()} == {"a": 1, "b": 1}
    assert len(world.reasons(ev.Kind.SET_ASIDE)) == 2


def test_crashes_long_ago_are_forgotten() -> None:
    world = joined(ABCD, 2)
    for _ in range(5):
        world.pass_time(LIMITS.suspect_seconds * 0.6)
        world.feed(ev.RouterBroke("r", key("a", "t0")))
    world.pass_time(1.0)
    assert not world.fleet.failures.by_unit


# --- waits ----------------------------------------------------------------------------------------


def test_a_sequence_does_not_keep_the_server_from_all_others() -> None:
    """What waits for the end of a sequence may wait for any time: nothing is kept free for it."""
    world = joined([spec("a", 200), spec("c", 50)], 1)
    world.resident("a")
    world.use("a", sequences=1)
    world.register(spec("big", 300, pinned=True))
    for _ in range(5):
        world.use("a", sequences=1)
        world.pass_time(1.0)
    waiter = world.ask("c")
    world.work()
    world.granted(waiter)
    world.feed(ev.RouterUsed("r", {}))
    for _ in range(3):
        world.pass_time(0.5)
        world.drained("r")
        world.work()
    assert world.ready() == {"big"}


def test_what_waits_for_a_lost_server_stands_in_nobodys_way() -> None:
    lost = Server("t9", "h", {}, labels={"zone": "z"})
    kept = [spec(f"k{i:02}", 10, min_copies=1, required_labels={"zone": "z"}) for i in range(80)]
    world = World(
        [*kept, spec("a", 300), spec("b", 300)], [*ONE, lost], replace(LIMITS, router_seconds=1e6)
    )
    world.feed(ev.ServerLost("t9", "gone"))
    world.settle(60.0)
    world.resident("a")
    world.use("a", sequences=1)
    waiter = world.ask("b", deadline=500)
    world.feed(ev.RouterUsed("r", {}))
    for _ in range(5):
        world.pass_time(1.0)
        world.drained("r")
        world.work()
    world.granted(waiter)


def test_a_prediction_evicts_nothing() -> None:
    world = World(ABCD)
    for name in "abc":
        world.resident(name)
    world.fleet.wants.want(unit("d"), Purpose.PREDICTED, world.now, until=world.now + 30)
    world.settle(5.0)
    assert world.ready() == {"a", "b", "c"}
    assert unit("d") not in world.fleet.wants.by_unit, "nor does it wait for room"
    world.evict("a")
    world.work()
    world.fleet.wants.want(unit("d"), Purpose.PREDICTED, world.now, until=world.now + 30)
    world.settle(1.0)
    assert world.ready() == {"b", "c", "d"}
