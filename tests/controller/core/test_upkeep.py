"""What the engine does by itself, as time passes."""

from dataclasses import replace
from typing import Any

import pytest

from services.controller.core import events as ev
from services.controller.core.entities import Server, UnitSpec
from services.controller.core.limits import Limits
from services.controller.core.states import State
from tests.support.residency_world import (
    ABCD,
    LIMITS,
    MIB,
    World,
    ensemble,
    key,
    servers,
    spec,
    unit,
)

QUIET = replace(LIMITS, router_seconds=1e6)
TTL = replace(QUIET, idle_ttl_seconds=60.0)


# --- idle -----------------------------------------------------------------------------------------


def test_what_is_not_used_for_its_ttl_leaves() -> None:
    world = World(ABCD, limits=TTL)
    world.resident("a")
    world.settle(30.0)
    world.resident("b")
    world.settle(35.0)
    assert world.ready() == {"b"}
    assert "its idle TTL is 60 s" in world.reasons(ev.Kind.EVICTING)[0]


def test_a_model_has_a_ttl_of_its_own() -> None:
    specs = [spec("short", idle_ttl=5.0), spec("default"), spec("never", idle_ttl=0.0)]
    world = World(specs, limits=TTL)
    for each in specs:
        world.resident(each.unit.model)
    world.settle(10.0)
    assert world.ready() == {"default", "never"}
    world.settle(100.0)
    assert world.ready() == {"never"}


@pytest.mark.parametrize("more", [{"pinned": True}, {"min_copies": 1}])
def test_what_is_kept_has_no_ttl(more: dict[str, Any]) -> None:
    world = World([spec("a", **more)], limits=TTL)
    world.settle(200.0)
    assert world.ready() == {"a"}
    assert not world.reasons(ev.Kind.EVICTING)


def test_what_is_in_use_is_not_idle() -> None:
    world = World(ABCD, limits=TTL)
    world.resident("a")
    world.use("a", in_flight=1, requests=0)
    world.settle(100.0)
    assert world.ready() == {"a"}, "one request has been in flight all the time"
    world.feed(ev.RouterUsed("r", {}))
    world.settle(5.0)
    world.drained("r")
    world.work()
    assert world.ready() == set()


def test_a_part_stays_as_long_as_its_ensemble() -> None:
    world = World([*ABCD, ensemble("e", "a", idle_ttl=0.0)], limits=TTL)
    world.resident("e")
    world.settle(200.0)
    assert world.ready() == {"a", "e"}


# --- headroom -------------------------------------------------------------------------------------


def with_soft(**more: object) -> list[Server]:
    return [replace(servers(1, 300)[0], **more)]  # type: ignore[arg-type]


def test_the_soft_limit_is_kept_free_ahead_of_need() -> None:
    world = World(ABCD, with_soft(soft={"ram": 250 * MIB}), QUIET)
    for name in "abc":
        world.resident(name)
    world.settle(20.0)
    assert world.ready() == {"a", "b", "c"}, "all were used within `headroom_idle_seconds`"
    world.settle(20.0)
    assert world.ready() == {"b", "c"}
    assert world.reasons(ev.Kind.EVICTING) == ["headroom: t0 is over its soft limit by ram 50 MiB"]


def test_head_room_in_models() -> None:
    world = World(ABCD, with_soft(max_models=3, headroom_models=1), QUIET)
    for name in "abc":
        world.resident(name)
    world.settle(40.0)
    assert world.ready() == {"b", "c"}


def test_only_what_is_idle_leaves_for_head_room() -> None:
    world = World(
        [spec("a"), spec("b"), spec("c", min_copies=1)], with_soft(soft={"ram": 0}), QUIET
    )
    for name in "abc":
        world.resident(name)
    for _ in range(50):
        world.pass_time(1.0)
        world.use("a", in_flight=1)
        world.feed(ev.RouterAcked("r", world.fleet.revision))
        world.feed(ev.RouterUsed("r", {key("a"): ev.Usage(0.0, 1, 1)}))
        world.work()
    assert world.ready() == {"a", "c"}, "a is used, c is kept"


def test_head_room_is_not_cleared_of_what_has_none_of_it() -> None:
    specs = [
        UnitSpec(unit("cpu"), declared={"ram": 1}),
        UnitSpec(unit("gpu"), declared={"gpu": 80}),
    ]
    server = Server("t0", "h", {"ram": 10, "gpu": 100}, soft={"ram": 10, "gpu": 50})
    world = World(specs, [server], QUIET)
    world.resident("cpu")
    world.resident("gpu")
    world.settle(40.0)
    assert world.ready() == {"cpu"}


# --- strangers ------------------------------------------------------------------------------------


def test_strangers_leave_after_a_while() -> None:
    world = World(ABCD, limits=QUIET)
    world.feed(ev.ServerFound(world.fleet.servers["t0"], frozenset({unit("x"), unit("a")})))
    world.settle(20.0)
    assert world.ready() == {"x", "a"}, "it may be about to be registered"
    world.settle(15.0)
    assert world.ready() == {"a"}
    assert world.reasons(ev.Kind.EVICTING) == ["it is not in the catalogue"]


def test_a_stranger_that_is_registered_meanwhile_stays() -> None:
    world = World(ABCD, limits=QUIET)
    world.feed(ev.ServerFound(world.fleet.servers["t0"], frozenset({unit("x")})))
    world.settle(20.0)
    world.register(spec("x"))
    world.settle(60.0)
    assert world.ready() == {"x"}


# --- preload, copies ------------------------------------------------------------------------------


def test_a_preload_is_loaded_once_and_may_leave_then() -> None:
    world = World([spec("a", preload=True), *ABCD[1:]], limits=QUIET)
    world.settle(1.0)
    assert world.ready() == {"a"}
    world.evict("a")
    world.settle(10.0)
    assert world.ready() == set()


def test_a_preload_evicts_nothing() -> None:
    world = World(ABCD, limits=QUIET)
    for name in "abc":
        world.resident(name)
    world.register(spec("d", preload=True))
    world.settle(5.0)
    assert world.ready() == {"a", "b", "c"}


def test_a_preload_waits_for_the_first_server() -> None:
    world = World([spec("a", preload=True)], limits=QUIET)
    world.feed(ev.ServerLost("t0", "it does not answer"))
    world.settle(30.0)
    world.feed(ev.ServerFound(world.fleet.servers["t0"], frozenset()))
    world.settle(1.0)
    assert world.ready() == {"a"}


def test_the_minimum_of_copies_is_kept_and_restored() -> None:
    world = World([spec("a", min_copies=2), *ABCD[1:]], servers(3), QUIET)
    world.settle(2.0)
    homes = world.fleet.where[unit("a")]
    assert len(homes) == 2
    lost = min(homes)
    world.feed(ev.ServerLost(lost, "killed"))
    world.settle(2.0)
    assert len(world.fleet.ready(unit("a"))) == 2
    assert lost not in world.fleet.where[unit("a")]


def test_more_copies_than_servers_are_not_made_and_harm_nobody() -> None:
    world = World([spec("a", min_copies=5), *ABCD[1:]], servers(2), QUIET)
    world.settle(5.0)
    assert len(world.fleet.ready(unit("a"))) == 2
    for name in "bcd":
        world.resident(name)
    assert len(world.fleet.ready(unit("a"))) == 2


def test_a_busy_unit_gets_a_copy_elsewhere_and_loses_it_when_idle() -> None:
    limits = replace(QUIET, copy_up_seconds=1.0, copy_down_seconds=5.0, copy_in_flight=2.0)
    world = World(ABCD, servers(2), limits)
    home = world.resident("a").server
    world.use("a", home, in_flight=10)
    world.settle(10.0)
    assert len(world.fleet.ready(unit("a"))) == 2
    world.drained("r")
    world.settle(30.0)
    world.drained("r")
    world.work()
    assert len(world.fleet.ready(unit("a"))) == 1


def test_a_copy_takes_the_place_of_the_idle_alone() -> None:
    limits = replace(QUIET, copy_up_seconds=1.0, copy_in_flight=2.0)
    world = World([spec("a", 300), spec("b", 300)], servers(2), limits)
    home = world.resident("a").server
    world.resident("b")
    world.use("a", home, in_flight=10)
    world.settle(30.0)
    world.drained("r")
    world.use("a", home, in_flight=10)
    world.work()
    assert world.ready() == {"a", "b"}, "b was used within a minute"
    for _ in range(60):
        world.pass_time(1.0)
        world.feed(ev.RouterAcked("r", world.fleet.revision))
        world.use("a", home, in_flight=10)
        world.work()
    assert world.ready() == {"a"}


def test_most_copies_are_the_models_own() -> None:
    limits = replace(QUIET, copy_up_seconds=1.0, copy_in_flight=2.0)
    world = World([spec("a", max_copies=1)], servers(3), limits)
    world.use("a", world.resident("a").server, in_flight=50)
    world.settle(30.0)
    assert len(world.fleet.ready(unit("a"))) == 1


def test_an_ensemble_gets_no_copy_while_a_part_is_not_in_the_catalogue() -> None:
    limits = replace(QUIET, copy_up_seconds=1.0, copy_in_flight=2.0)
    world = World([spec("b"), ensemble("e", "a", "b")], servers(2), limits)
    world.feed(ev.IndexSeen("t0", frozenset(map(unit, "abe")), world.now))
    world.use("e", in_flight=10)
    world.settle(5.0)
    assert not world.fleet.replicas["t1"]
    world.register(spec("a"))
    world.use("e", in_flight=10)
    world.settle(5.0)
    assert world.ready("t1") == {"a", "b", "e"}


def test_a_queue_that_is_over_calls_for_no_copy() -> None:
    world = World(ABCD, servers(3), replace(QUIET, copy_up_seconds=1.0))
    home = world.resident("a").server
    world.feed(ev.QueuesSeen(home, {unit("a"): 5.0}))
    world.feed(ev.QueuesSeen(home, {}))
    world.use("a", home, in_flight=1)
    world.settle(30.0)
    assert len(world.fleet.ready(unit("a"))) == 1


# --- drained servers ------------------------------------------------------------------------------


def drained_busy(world: World) -> str:
    home = world.resident("a").server
    world.use("a", home, in_flight=1)
    world.feed(ev.DrainWanted(home, "maintenance", restart=True))
    return home


def test_the_busy_are_brought_elsewhere_before_they_leave_a_drained_server() -> None:
    world = World(ABCD, servers(2), QUIET)
    home = drained_busy(world)
    world.pass_time(0.5)
    assert "a" in world.ready(home), "it is not READY elsewhere yet"
    world.work()
    world.pass_time(0.5)
    (other,) = {r.key.server for r in world.fleet.ready(unit("a"))}
    assert other != home
    world.drained("r")
    world.settle(2.0)
    assert not world.fleet.replicas[home]
    assert world.fleet.servers[home].restart_wanted


def test_the_idle_leave_a_drained_server_at_once() -> None:
    world = World(ABCD, servers(2), QUIET)
    home = world.resident("a").server
    world.settle(20.0)
    world.feed(ev.DrainWanted(home, "maintenance"))
    world.settle(2.0)
    assert world.ready() == set()
    assert not world.fleet.servers[home].restart_wanted, "nobody asked for a restart"


def test_where_there_is_nowhere_else_the_busy_leave_all_the_same() -> None:
    world = World(ABCD, servers(1), QUIET)
    home = drained_busy(world)
    world.pass_time(0.5)
    world.drained("r")
    world.settle(2.0)
    assert world.fleet.servers[home].restart_wanted


def test_what_is_kept_is_kept_elsewhere() -> None:
    world = World([spec("a", pinned=True)], servers(2), QUIET)
    world.settle(20.0)
    (home,) = world.fleet.where[unit("a")]
    world.feed(ev.DrainWanted(home, "maintenance"))
    world.settle(3.0)
    assert world.fleet.where[unit("a")] == set(world.fleet.servers) - {home}


def test_a_drained_server_is_given_nothing_until_it_is_taken_back() -> None:
    world = World(ABCD, servers(2), QUIET)
    world.feed(ev.DrainWanted("t0", "maintenance"))
    assert {world.resident(name).server for name in "abc"} == {"t1"}
    world.feed(ev.DrainWanted("t0", ""))
    world.feed(ev.DrainWanted("t1", "maintenance"))
    assert world.resident("d").server == "t0"


def test_a_restart_ends_the_drain_that_was_for_it_and_no_other() -> None:
    for restart in (True, False):
        world = World(ABCD, servers(1), QUIET)
        world.feed(ev.DrainWanted("t0", "maintenance", restart))
        world.feed(ev.ServerLost("t0", "killed"))
        world.feed(ev.ServerFound(world.fleet.servers["t0"], frozenset()))
        assert bool(world.fleet.servers["t0"].draining) != restart


def test_a_lost_server_is_not_to_be_restarted_any_more() -> None:
    world = World(ABCD, servers(1), QUIET)
    world.feed(ev.DrainWanted("t0", "maintenance", restart=True))
    world.pass_time(1.0)
    assert world.fleet.servers["t0"].restart_wanted
    world.feed(ev.ServerLost("t0", "killed"))
    assert not world.fleet.servers["t0"].restart_wanted


# --- leaks ----------------------------------------------------------------------------------------

LEAKS = replace(QUIET, leak_bytes=100 * MIB, leak_share=0.1)


def test_a_server_that_does_not_give_memory_back_is_drained_and_restarted() -> None:
    world = World(ABCD, servers(1), LEAKS)
    world.feed(ev.Measured("t0", {}, {"ram": 90 * MIB}))
    assert world.fleet.servers["t0"].leaked == {"ram": 90 * MIB}
    assert not world.reasons(ev.Kind.SERVER_DRAINING), "within what is tolerated"
    world.feed(ev.Measured("t0", {}, {"ram": 150 * MIB}))
    assert world.reasons(ev.Kind.SERVER_DRAINING) == [
        "ram 150 MiB not given back by models that are gone"
    ]
    world.pass_time(1.0)
    assert world.fleet.servers["t0"].restart_wanted


def test_what_models_take_is_no_leak() -> None:
    world = World(ABCD, servers(1), LEAKS)
    world.resident("a")
    world.resident("b")
    world.feed(ev.Measured("t0", {unit("a"): {"ram": 280 * MIB}}, {"ram": 380 * MIB}))
    assert world.fleet.servers["t0"].leaked == {}, "a as measured, b as reserved"


def test_while_a_load_is_under_way_nothing_can_be_said_of_leaks() -> None:
    world = World(ABCD, servers(1), LEAKS)
    world.ask("a")
    world.feed(ev.Measured("t0", {}, {"ram": 280 * MIB}))
    assert not world.fleet.servers["t0"].draining
    world.work()
    world.evict("a")
    world.feed(ev.Measured("t0", {}, {"ram": 280 * MIB}))
    assert not world.fleet.servers["t0"].draining, "nor while one leaves"
    world.work()
    world.feed(ev.Measured("t0", {}, {"ram": 280 * MIB}))
    assert world.fleet.servers["t0"].draining


# --- broken ---------------------------------------------------------------------------------------


def test_a_broken_replica_heals() -> None:
    world = World(ABCD, limits=QUIET)
    world.resident("a")
    world.feed(ev.ReplicaBroken(key("a"), "it does not answer"))
    assert world.ready() == set()
    waiter = world.ask("a")
    assert world.fleet.wants.by_unit[unit("a")].status == "a:1 is still on its way out of t0"
    world.work()
    assert world.granted(waiter).key == key("a")
    assert not world.replica("a").broken


def test_the_ensemble_of_a_broken_part_leaves_with_it() -> None:
    world = World([*ABCD, ensemble("e", "a")], limits=QUIET)
    world.resident("e")
    world.feed(ev.ReplicaBroken(key("a"), "it does not answer"))
    assert world.ready() == set()
    world.work()
    assert world.fleet.replicas["t0"] == {}
    world.resident("e")


def test_an_ensemble_that_loads_while_its_part_breaks_heals_too() -> None:
    world = World([*ABCD, ensemble("e", "a")], limits=QUIET)
    waiter = world.ask("e")
    load = world.take(ev.Load, "a")
    world.feed(ev.Loaded(load.key, load.attempt, 0.1))
    assert world.replica("e").state is State.LOADING
    world.feed(ev.ReplicaBroken(key("a"), "it does not answer"))
    world.settle(5.0)
    world.granted(waiter)
    assert world.ready() == {"a", "e"}
    assert not world.replica("a").broken


# --- Routers --------------------------------------------------------------------------------------


def test_a_router_that_falls_silent_after_many_heartbeats_is_not_waited_for() -> None:
    world = World(ABCD)
    world.feed(ev.RouterJoined("r", frozenset()))
    for name in "abc":
        world.resident(name)
    for _ in range(10):
        world.pass_time(0.5)
        world.feed(ev.RouterUsed("r", {}))
    waiter = world.ask("d")
    world.settle(3.0)
    world.granted(waiter)


def test_the_engine_asks_to_be_woken_when_a_router_would_be_lost() -> None:
    world = World(ABCD)
    world.feed(ev.RouterJoined("r", frozenset()))
    for _ in range(10):
        world.pass_time(0.5)
        world.feed(ev.RouterUsed("r", {}))
    for _ in range(4):
        when = world.engine.next_wake()
        if when is None:
            break
        world.now = when
        world.feed(ev.Due())
    assert world.reasons(ev.Kind.ROUTER_LOST) == ["r has not been heard from for 1.0 s"]
    assert world.engine.next_wake() is None


def test_use_of_a_replica_that_is_gone_is_not_counted_for_the_next_one() -> None:
    world = World([spec("a", 300), spec("b", 300)], limits=QUIET)
    world.resident("a")
    world.use("a", sequences=2, in_flight=3)
    world.feed(ev.ServerLost("t0", "killed"))
    world.feed(ev.ServerFound(world.fleet.servers["t0"], frozenset({unit("a")})))
    world.use("a", sequences=1)
    assert (world.fleet.use(key("a")).sequences, world.fleet.use(key("a")).in_flight) == (1, 0)
    world.ask("b")
    assert world.ready() == {"a"}, "a sequence is on it"


# --- prediction -----------------------------------------------------------------------------------


def test_nothing_is_predicted_unless_it_is_asked_for() -> None:
    world = World(ABCD, limits=replace(QUIET, predict=False))
    day = 86400.0
    for i in range(10):
        world.now = 10.0 + i * day
        world.feed(ev.Tick(1.7e9 + world.now))
        world.resident("a")
        world.evict("a")
        world.work()
    world.now = 10.0 + 10 * day - 30
    world.feed(ev.Tick(1.7e9 + world.now))
    assert not world.pending


def test_a_daily_habit_is_foreseen() -> None:
    world = World(ABCD, limits=Limits(router_seconds=1e9, predict=True, predict_seconds=120.0))
    day = 86400.0
    for i in range(12):
        world.now = 1000.0 + i * day
        world.feed(ev.Tick(1.7e9 + world.now))
        world.resident("a")
        world.evict("a")
        world.work()
    assert world.ready() == set()
    for minutes in range(20, 0, -1):
        world.now = 1000.0 + 12 * day - minutes * 60
        world.feed(ev.Tick(1.7e9 + world.now))
        world.work()
    assert world.ready() == {"a"}
    assert "expected" in world.replica("a").placed
