"""The residency engine, decision by decision."""

import pytest

from services.common.errors import (
    DeadlineBeforeResident,
    LoadFailed,
    ModelNotFound,
    VersionNotFound,
)
from services.controller.core import events as ev
from services.controller.core.entities import Health, ReplicaKey, Server, UnitSpec
from services.controller.core.errors import Held, NeverFits, NoRoom, NoServer
from services.controller.core.limits import Limits
from services.controller.core.states import TRANSITIONS, Cause, State, after
from services.controller.core.view import FleetView
from tests.support.residency_world import ABCD, MIB, World, ensemble, servers, spec, unit

ONE_AT_A_TIME = Limits(loads_per_server=1)


def test_every_move_is_in_the_table() -> None:
    assert after(State.READY, Cause.EVICTED) is State.DRAINING
    for state in State:
        for cause in Cause:
            if (state, cause) not in TRANSITIONS:
                with pytest.raises(ValueError, match="cannot be"):
                    after(state, cause)


def test_a_cold_unit_is_loaded_once_for_all_that_wait() -> None:
    world = World(ABCD)
    waiters = [world.ask("a") for _ in range(5)]
    assert [type(order) for order in world.pending] == [ev.Load]
    world.work()
    assert all(isinstance(world.answers[w], ev.Granted) for w in waiters)


def test_the_least_recently_used_leaves_and_no_other() -> None:
    world = World(ABCD)
    for name in "abc":
        world.resident(name)
    world.resident("a")
    world.resident("d")
    assert world.ready() == {"a", "c", "d"}
    evicting = [r for r in world.records if r.kind is ev.Kind.EVICTING]
    assert [(r.unit, r.for_unit) for r in evicting] == [(unit("b"), unit("d"))]
    assert "least recently used" in evicting[0].reason


def test_victims_are_no_more_than_needed() -> None:
    big = spec("big", 200)
    small = [spec("s1", 50), spec("s2", 200), spec("s3", 50)]
    world = World([big, *small], [Server("t0", "h:1", {"ram": 300 * MIB})])
    for each in small:
        world.resident(each.unit.model)
    world.resident(big.unit.model)
    # s1 is the oldest, but evicting s2 alone is enough and evicting s1 too would be for nothing.
    assert world.ready() == {"s1", "s3", "big"}


def test_what_can_never_fit_is_refused_at_once_and_evicts_nothing() -> None:
    world = World([*ABCD, spec("huge", 400)])
    world.resident("a")
    error = world.refusal(world.ask("huge"))
    assert isinstance(error, NeverFits)
    assert "300 MiB" in error.message
    assert "400 MiB" in error.message
    assert world.ready() == {"a"}


def test_a_guess_rules_nothing_out() -> None:
    world = World([UnitSpec(unit("new"), artifact_bytes=150 * MIB)])
    world.resident("new")
    assert world.ready() == {"new"}


def test_pinned_units_stay_and_come_by_themselves() -> None:
    world = World([spec("a", pinned=True), spec("b"), spec("c"), spec("d")])
    world.work()
    assert world.ready() == {"a"}
    for name in "bcdbcd":
        world.resident(name)
        assert "a" in world.ready()
    assert isinstance(world.refusal(world.evict("a")), Held)


def test_room_taken_by_pins_alone_is_said() -> None:
    world = World([spec(name, pinned=True) for name in "abc"] + [spec("d")])
    world.work()
    error = world.refusal(world.ask("d"))
    assert isinstance(error, NoRoom)
    assert "kept there: a:1, b:1, c:1" in error.message


def test_unknown_names_and_versions() -> None:
    world = World(ABCD)
    assert isinstance(world.refusal(world.ask("nope")), ModelNotFound)
    error = world.refusal(world.ask("a:9"))
    assert isinstance(error, VersionNotFound)
    assert error.metadata["versions"] == "1"


def test_a_failed_load_is_told_and_not_repeated_until_its_backoff() -> None:
    world = World(ABCD, limits=Limits(backoff_seconds=5.0))
    first = world.ask("a")
    world.work(fail=["a"])
    error = world.refusal(first)
    assert isinstance(error, LoadFailed)
    assert "no weights." in error.message
    again = world.refusal(world.ask("a"))
    assert isinstance(again, LoadFailed)
    assert again.retry_after == pytest.approx(5.0, abs=0.2)
    assert not world.pending
    world.pass_time(6.0)
    world.resident("a")


def test_a_failed_load_counts_until_one_succeeds() -> None:
    world = World(
        [spec("a"), spec("b"), ensemble("ab", "a", "b")],
        limits=Limits(backoff_seconds=5.0, max_backoff_seconds=20.0),
    )
    view = FleetView(world.fleet)

    def failures() -> list[str]:
        return [view.failure(unit(name), world.now) for name in ("a", "b", "ab")]

    assert failures() == ["", "", ""]
    world.ask("a")
    world.work(fail=["a"])
    failed = ["load failed: no weights", "", "load failed: a:1: no weights"]
    assert failures() == failed
    for _ in range(10):  # long after it may be tried again
        world.pass_time(6.0)
        assert failures() == failed
    revision = view.revision
    world.resident("a")
    assert failures() == ["", "", ""]
    assert view.revision > revision


def test_a_failed_load_counts_until_the_version_is_registered_anew() -> None:
    world = World([spec("a")])
    view = FleetView(world.fleet)
    world.ask("a")
    world.work(fail=["a"])
    world.register(spec("a", fingerprint="of other files"))
    assert view.failure(unit("a"), world.now) == ""


def test_a_failed_copy_says_nothing_once_its_backoff_is_over() -> None:
    world = World([spec("a")], servers(2), limits=Limits(backoff_seconds=5.0))
    view = FleetView(world.fleet)
    world.resident("a")
    world.fleet.failures.add(unit("a"), "t1", "no memory.", (5.0, 300.0), world.now)
    world.pass_time(6.0)
    assert view.failure(unit("a"), world.now) == ""


def test_a_deadline_ends_the_wait_and_the_load_goes_on_for_others() -> None:
    world = World(ABCD)
    impatient, patient = world.ask("a", deadline=1.0), world.ask("a")
    world.pass_time(1.0)
    error = world.refusal(impatient)
    assert isinstance(error, DeadlineBeforeResident)
    assert "loading on t0" in error.message
    world.work()
    assert isinstance(world.answers[patient], ev.Granted)


def test_a_place_that_nobody_waits_for_is_given_up() -> None:
    world = World([spec("a", 0), spec("b", 0)])  # unknown sizes load one by one
    world.ask("a")
    waiter = world.ask("b")
    world.feed(ev.WaiterGone(waiter))
    world.work()
    assert world.ready() == {"a"}


def test_no_server_is_waited_for_a_while() -> None:
    world = World(ABCD)
    world.feed(ev.ServerLost("t0", "it does not answer"))
    waiter = world.ask("a")
    world.pass_time(1.0)
    assert waiter not in world.answers
    world.pass_time(2.0)
    error = world.refusal(waiter)
    assert isinstance(error, NoServer)
    assert "t0: it does not answer" in error.message


def test_a_lost_server_takes_its_replicas_and_waiters_find_another() -> None:
    world = World(ABCD, [Server("t0", "h:1", {}, 2), Server("t1", "h:2", {}, 2)])
    key = world.resident("a")
    waiter = world.ask("b")
    (load,) = world.pending
    world.pending.clear()
    for server in {load.key.server, key.server}:
        world.feed(ev.ServerLost(server, "killed"))
        world.feed(ev.ServerFound(Server(server, "h:9", {}, 2), frozenset()))
    world.feed(ev.Loaded(load.key, load.attempt, 0.1))  # a late word of the dead changes nothing
    world.work()
    assert isinstance(world.answers[waiter], ev.Granted)
    assert world.ready() == {"b"}


def test_what_a_server_holds_is_adopted() -> None:
    world = World(ABCD)
    world.feed(ev.ServerFound(world.engine.fleet.servers["t0"], frozenset({unit("a")})))
    waiter = world.ask("a")
    assert isinstance(world.answers[waiter], ev.Granted)
    assert not world.pending


def test_changes_in_the_index_that_nobody_asked_for() -> None:
    world = World(ABCD)
    world.resident("a")
    began = world.now
    world.now += 1
    world.feed(ev.IndexSeen("t0", frozenset({unit("b")}), began))
    assert world.ready() == {"a", "b"}, "the index is older than the load"
    world.feed(ev.IndexSeen("t0", frozenset({unit("b")}), world.now))
    assert world.ready() == {"b"}
    assert [r.unit for r in world.records if r.kind is ev.Kind.UNEXPECTED] == [unit("b"), unit("a")]


# --- draining -------------------------------------------------------------------------------------


def filled(world: World, router: str = "r1") -> None:
    world.feed(ev.RouterJoined(router, frozenset()))
    for name in "abc":
        world.resident(name)
    world.feed(ev.RouterAcked(router, world.engine.fleet.revision))


def test_unload_waits_for_the_routers_word() -> None:
    world = World(ABCD)
    filled(world)
    world.ask("d")
    assert not world.pending, "a was withdrawn, and no Router has drained it"
    key = ReplicaKey("t0", unit("a"))
    world.feed(ev.RouterDrained("r1", key, world.engine.fleet.withdrawals.drains[key].revision - 1))
    assert not world.pending, "the word is older than the withdrawal"
    world.feed(ev.RouterDrained("r1", key, world.engine.fleet.withdrawals.drains[key].revision))
    assert [type(order) for order in world.pending] == [ev.Unload]


def test_a_lost_word_is_made_up_for_by_the_next_heartbeat() -> None:
    world = World(ABCD)
    filled(world)
    world.ask("d")
    key = ReplicaKey("t0", unit("a"))
    world.feed(ev.RouterUsed("r1", {}))
    assert not world.pending, "it has not applied the withdrawal yet"
    world.feed(ev.RouterAcked("r1", world.engine.fleet.revision))
    world.feed(ev.RouterUsed("r1", {key: ev.Usage(0.0, 1)}))
    assert not world.pending, "it is still in flight"
    world.feed(ev.RouterUsed("r1", {}))
    assert [type(order) for order in world.pending] == [ev.Unload]


def test_a_dead_router_is_not_waited_for() -> None:
    world = World(ABCD)
    filled(world)
    waiter = world.ask("d")
    world.pass_time(1.1)
    world.work()
    assert isinstance(world.answers[waiter], ev.Granted)
    assert ev.Kind.ROUTER_LOST in [r.kind for r in world.records]


def test_routers_that_have_not_come_back_yet_are_waited_for_after_a_start() -> None:
    world = World(ABCD, unload_from=12.0)
    for name in "abc":
        world.resident(name)
    world.ask("d")
    assert not world.pending
    world.pass_time(2.0)
    assert [type(order) for order in world.pending] == [ev.Unload]


def test_routers_that_have_all_come_back_after_a_start_are_not_waited_for() -> None:
    world = World(ABCD, unload_from=12.0, followers={"r1", "r2"})
    for name in "abc":
        world.resident(name)
    world.ask("d")
    world.feed(ev.RouterJoined("r1", frozenset()))
    world.drained("r1")
    assert not world.pending, "r2 may still send by the earlier table"
    world.feed(ev.RouterJoined("r2", frozenset()))
    assert not world.pending, "r2 has not applied the withdrawal yet"
    world.drained("r2")
    assert [type(order) for order in world.pending] == [ev.Unload]


def test_what_a_router_had_in_flight_before_a_start_is_waited_for() -> None:
    world = World(ABCD, unload_from=12.0, followers={"r1"})
    for name in "abc":
        world.resident(name)
    world.ask("d")
    (leaving,) = world.fleet.withdrawals.drains
    world.feed(ev.RouterJoined("r1", frozenset({leaving})))
    world.feed(ev.RouterAcked("r1", world.fleet.revision))
    world.feed(ev.RouterUsed("r1", {leaving: ev.Usage(0.0, 1)}))
    assert not world.pending
    world.feed(ev.RouterUsed("r1", {}))
    assert [type(order) for order in world.pending] == [ev.Unload]


def test_without_routers_before_a_start_nothing_is_waited_for() -> None:
    world = World(ABCD, unload_from=12.0, followers=set())
    for name in "abc":
        world.resident(name)
    world.ask("d")
    assert [type(order) for order in world.pending] == [ev.Unload]


def test_a_router_that_is_gone_for_good_is_waited_for_as_long_as_its_lease() -> None:
    world = World(ABCD, unload_from=12.0, followers={"r1", "dead"})
    for name in "abc":
        world.resident(name)
    world.feed(ev.RouterJoined("r1", frozenset()))
    world.ask("d")
    world.drained("r1")
    assert not world.pending
    world.pass_time(2.0)
    assert [type(order) for order in world.pending] == [ev.Unload]


def test_a_successor_hears_of_those_who_follow_and_of_those_who_are_awaited() -> None:
    unknown = World(ABCD, unload_from=12.0)
    unknown.feed(ev.RouterJoined("r1", frozenset()))
    assert unknown.fleet.withdrawals.followers(unknown.now) is None
    assert unknown.fleet.withdrawals.followers(12.0) == frozenset({"r1"})
    world = World(ABCD, unload_from=12.0, followers={"r1", "dead"})
    assert world.fleet.withdrawals.followers(world.now) == frozenset({"r1", "dead"})
    world.feed(ev.RouterJoined("r1", frozenset()))
    world.feed(ev.RouterJoined("r2", frozenset()))
    assert world.fleet.withdrawals.followers(world.now) == frozenset({"r1", "r2", "dead"})
    assert world.fleet.withdrawals.followers(12.0) == frozenset({"r1", "r2"})


def test_who_has_waited_for_an_earlier_controller_comes_first() -> None:
    world = World(ABCD, limits=ONE_AT_A_TIME)
    world.ask("a")
    world.ask("b", waited=2.0)
    world.ask("c", waited=9.0)
    world.ask("b", waited=20.0)
    loads = []
    while world.pending:
        (order,) = world.pending
        loads.append(order.key.unit.model)
        world.pending.clear()
        world.feed(ev.Loaded(order.key, order.attempt, 0.1))
    assert loads == ["a", "b", "c"], "the load of a had begun"


def test_an_eviction_is_over_though_a_part_of_it_has_come_back() -> None:
    world = World([spec("a", min_copies=2), spec("b")], servers(2))
    world.work()
    assert world.ready("t0") == world.ready("t1") == {"a"}
    world.register(spec("a"))
    world.use("a", "t1", in_flight=1)
    waiter = world.evict("a")
    world.feed(ev.RouterAcked("r", world.fleet.revision))
    world.use("a", "t1", in_flight=1)
    (first,) = [order for order in world.pending if isinstance(order, ev.Unload)]
    assert first.key.server == "t0"
    world.ask("a")
    world.work()
    assert world.ready() == {"a"}, "it has been asked for again"
    world.drained("r")
    world.work()
    assert isinstance(world.answers[waiter], ev.Evicted)


def test_a_use_lease_holds_until_it_started() -> None:
    world = World([spec("a", 300), spec("b", 300)])
    world.feed(ev.RouterJoined("r1", frozenset()))
    waiter = world.ask("a", router="r1")
    world.work()
    granted = world.answers[waiter]
    assert isinstance(granted, ev.Granted)
    world.ask("b")
    assert world.ready() == {"a"}, "its request has not started"
    world.feed(ev.RouterStarted("r1", granted.use_lease))
    assert world.ready() == set(), "started: it may be drained now"


def test_what_was_waited_for_is_granted_before_it_can_be_evicted() -> None:
    world = World([spec("a", 300), spec("b", 300)])
    world.feed(ev.RouterJoined("r1", frozenset()))
    first, second = world.ask("a", router="r1"), world.ask("b", router="r1")
    world.work()
    granted = world.answers[first]
    assert isinstance(granted, ev.Granted)
    world.feed(ev.RouterStarted("r1", granted.use_lease))
    world.feed(ev.RouterAcked("r1", world.engine.fleet.revision))
    world.feed(ev.RouterUsed("r1", {}))
    world.work()
    assert isinstance(world.answers[second], ev.Granted)


def test_a_use_lease_runs_out() -> None:
    world = World([spec("a", 300), spec("b", 300)])
    world.feed(ev.RouterJoined("r1", frozenset()))
    world.resident("a", router="r1")
    world.ask("b")
    world.pass_time(0.6)
    assert world.ready() == set()


# --- memory ---------------------------------------------------------------------------------------


def test_the_first_load_of_an_unknown_runs_alone_and_is_learned() -> None:
    world = World([spec("a", 0), spec("b", 0)], [Server("t0", "h:1", {"ram": 400 * MIB})])
    world.ask("a")
    world.ask("b")
    assert len(world.pending) == 1
    world.work()
    world.feed(ev.Measured("t0", {unit("a"): {"ram": 50 * MIB}}, {}))
    world.pass_time(11)
    world.feed(ev.Measured("t0", {unit("a"): {"ram": 60 * MIB}}, {}))
    assert world.learned[-1].memory == {"ram": 60 * MIB}


def test_debt_is_repaid_before_anything_is_loaded() -> None:
    world = World(
        [spec("a", 0), spec("b", 0), spec("c", 0)], [Server("t0", "h", {"ram": 400 * MIB})]
    )
    for name in "ab":
        world.resident(name)
    world.feed(ev.Measured("t0", {unit("b"): {"ram": 350 * MIB}}, {}))
    assert "a" not in world.ready()
    evicting = [r.reason for r in world.records if r.kind is ev.Kind.EVICTING]
    assert "over its limit by ram 169 MiB" in evicting[0]


def test_a_grown_resident_does_not_leave_a_placed_load_without_room() -> None:
    world = World(
        [spec("a", 0), spec("b", 0), spec("c", 100)], [Server("t0", "h", {"ram": 400 * MIB})]
    )
    for name in "ab":
        world.resident(name)
    waiter = world.ask("c")
    world.feed(
        ev.Measured("t0", {unit("a"): {"ram": 150 * MIB}, unit("b"): {"ram": 140 * MIB}}, {})
    )
    world.work()
    world.pass_time(0.1)
    world.work()
    assert isinstance(world.answers[waiter], ev.Granted)


def test_a_group_whose_part_outgrows_its_server_finds_another() -> None:
    """Its own part grew: waiting there would last for ever."""
    world = World(
        [spec("a", 100), spec("b", 100), ensemble("e", "a", "b")], servers(2, 220), ONE_AT_A_TIME
    )
    waiter = world.ask("e")
    first = world.take(ev.Load, "a")
    here = first.key.server
    world.feed(ev.Loaded(first.key, first.attempt, 0.1))
    world.feed(ev.Measured(here, {unit("a"): {"ram": 150 * MIB}}, {}))
    world.settle(3.0)
    (there,) = {replica.key.server for replica in world.fleet.ready(unit("e"))}
    assert there != here
    assert world.granted(waiter).key.server == there


# --- versions and ensembles -----------------------------------------------------------------------


def test_versions_with_one_config_live_side_by_side() -> None:
    world = World([spec("a"), spec("a:2")])
    world.resident("a")
    world.ask("a:2")
    (load,) = world.pending
    assert isinstance(load, ev.Load)
    assert load.versions == (1, 2)
    world.work()
    world.evict("a")
    (unload,) = world.pending
    assert isinstance(unload, ev.Unload)
    assert unload.versions == (2,)


def test_versions_whose_configs_differ_do_not() -> None:
    other = UnitSpec(unit("a:2"), "other", declared={"ram": MIB})
    world = World([spec("a"), other])
    world.resident("a")
    world.resident("a:2")
    assert world.ready() == {"a:2"}


def test_parts_are_loaded_first_and_held() -> None:
    world = World([*ABCD, ensemble("e", "a", "b")])
    world.ask("e")
    assert {order.key.unit for order in world.pending} == {unit("a"), unit("b")}
    world.work()
    assert world.ready() == {"a", "b", "e"}
    world.resident("c")
    assert isinstance(world.refusal(world.evict("a")), Held)
    world.resident("d")
    assert "e" not in world.ready(), "it leaves before a part of it does"
    assert len({"a", "b"} & world.ready()) == 1, "and only the part that has to"


def test_an_ensemble_leaves_before_its_parts() -> None:
    world = World([*ABCD, ensemble("e", "a", "b")])
    world.resident("e")
    world.resident("c")
    world.pass_time(60)
    world.resident("c")
    world.ask("d")
    assert [order.key.unit for order in world.pending] == [unit("e")]
    world.work()
    assert "d" in world.ready()
    assert "e" not in world.ready()


def test_an_ensemble_of_more_parts_than_fit_fails_at_once() -> None:
    world = World([*ABCD, ensemble("e", "a", "b", "c", "d")])
    error = world.refusal(world.ask("e"))
    assert isinstance(error, NeverFits)


def test_a_broken_part_fails_its_ensemble() -> None:
    world = World([*ABCD, ensemble("e", "a", "b")])
    waiter = world.ask("e")
    world.work(fail=["b"])
    error = world.refusal(waiter)
    assert isinstance(error, LoadFailed)
    assert error.metadata["model"] == "b"
    assert all(r.state is State.READY for r in world.engine.fleet.replicas["t0"].values())


def test_use_of_an_ensemble_is_use_of_its_parts() -> None:
    world = World([*ABCD, ensemble("e", "a")])
    world.resident("e")
    world.resident("b")
    world.resident("c")
    world.feed(ev.RouterJoined("r1", frozenset()))
    world.now += 1
    world.feed(ev.RouterUsed("r1", {ReplicaKey("t0", unit("e")): ev.Usage(0.0, 0)}))
    world.feed(ev.RouterAcked("r1", 10**6))
    world.ask("d")
    assert "a" in world.ready()
    assert "b" not in world.ready()


# --- the catalogue --------------------------------------------------------------------------------


def test_an_eviction_is_over_even_when_the_unit_is_wanted_again() -> None:
    world = World(ABCD)
    world.resident("a")
    evicting = world.evict("a")
    asking = world.ask("a")
    world.work()
    assert isinstance(world.answers[evicting], ev.Evicted)
    assert isinstance(world.answers[asking], ev.Granted)


def test_what_leaves_the_catalogue_is_evicted() -> None:
    world = World(ABCD)
    world.resident("a")
    world.feed(ev.CatalogueChanged(frozenset({"a"}), ()))
    world.work()
    assert world.ready() == set()


def test_what_leaves_the_catalogue_while_loading_is_evicted_then() -> None:
    world = World(ABCD)
    waiter = world.ask("a")
    world.feed(ev.CatalogueChanged(frozenset({"a"}), ()))
    assert isinstance(world.refusal(waiter), VersionNotFound)
    world.work()
    assert not world.engine.fleet.replicas["t0"]


def test_a_part_that_is_registered_while_its_ensemble_loads_is_loaded_too() -> None:
    world = World([spec("b"), ensemble("e", "b")])
    waiter = world.ask("e")
    world.register(ensemble("e", "a", "b"))
    world.register(spec("a"))
    world.work()
    world.granted(waiter)
    assert world.ready() == {"a", "b", "e"}


def test_what_a_part_is_made_of_anew_is_loaded_too() -> None:
    world = World([*ABCD, ensemble("e", "a"), ensemble("top", "e", "b")])
    waiter = world.ask("top")
    world.register(ensemble("e", "a", "c"))
    world.work()
    world.granted(waiter)
    assert world.ready() == {"a", "b", "c", "e", "top"}


def test_a_part_that_is_dropped_before_its_load_is_not_loaded() -> None:
    world = World([*ABCD, ensemble("e", "a", "b")], limits=ONE_AT_A_TIME)
    waiter = world.ask("e")
    world.register(ensemble("e", "a", "c"))
    world.work()
    world.granted(waiter)
    assert world.ready() == {"a", "c", "e"}


def test_placement_prefers_the_emptier_server() -> None:
    servers = [Server("t0", "h:1", {}, 3), Server("t1", "h:2", {}, 3)]
    world = World(ABCD, servers)
    first = world.resident("a").server
    assert world.resident("b").server in {"t0", "t1"}
    spread = {world.resident(name).server for name in "cd"} | {first}
    assert spread == {"t0", "t1"}
    assert all(s.health is Health.HEALTHY for s in world.engine.fleet.servers.values())
