"""Loads that take far longer than expected, and those that others then need not wait for."""

from dataclasses import replace

import pytest

from services.common.errors import LoadFailed
from services.controller.core import events as ev
from services.controller.core.entities import Server
from services.controller.core.states import State
from tests.support.residency_world import LIMITS, MIB, World, servers, spec, unit

SLOW = replace(LIMITS, slow_load_seconds=5.0)
ROOMY = servers(1, 800)


def state(world: World, name: str) -> State:
    return world.replica(name).state


def test_a_hung_load_of_unknown_size_does_not_keep_others_waiting() -> None:
    world = World([spec("hung", 0), spec("new", 0), spec("known", 10)], ROOMY, SLOW)
    world.ask("hung")
    asked = [world.ask("new"), world.ask("known")]
    world.take(ev.Load, "hung")
    world.pass_time(4.9)
    assert not world.pending
    assert world.replica("new").reason == "the size of hung:1 is unknown, so it loads alone"
    world.now = 15.01
    world.feed(ev.Due())
    assert len(world.pending) == 1
    world.work()
    for waiter in asked:
        world.granted(waiter)
    assert world.replica("hung").reason == "loading for 5 s, far longer than expected"


def test_hung_loads_of_known_size_do_not_keep_others_waiting() -> None:
    bound = replace(SLOW, loads_per_server=2, loads_per_host=2)
    world = World([*(spec(f"hung{i}", 10) for i in range(2)), spec("a", 10)], ROOMY, bound)
    world.ask("hung0")
    world.ask("hung1")
    waiter = world.ask("a")
    assert [order.key.unit.model for order in world.pending] == ["hung0", "hung1"]
    world.pending.clear()
    world.pass_time(5.01)
    world.work()
    world.granted(waiter)


def test_a_load_that_hangs_on_one_server_frees_the_slot_of_its_host() -> None:
    both = [replace(server, host="x") for server in servers(2)]
    limits = replace(SLOW, loads_per_host=1)
    world = World([spec("hung", 250), spec("a", 250)], both, limits)
    world.ask("hung")
    waiter = world.ask("a")
    world.take(ev.Load, "hung")
    world.pass_time(5.01)
    world.work()
    world.granted(waiter)


def test_what_is_known_to_load_slowly_is_given_its_time() -> None:
    slowly = [spec("slow", 10, load_seconds=20.0), spec("a", 10)]
    limits = replace(SLOW, loads_per_server=1)
    world = World(slowly, ROOMY, limits)
    world.ask("slow")
    world.ask("a")
    world.take(ev.Load, "slow")
    world.settle(79.0)
    assert state(world, "a") is State.QUEUED
    world.settle(2.0)
    assert "a" in world.ready()


def test_where_every_load_is_slow_it_takes_ever_longer_until_one_more_begins() -> None:
    """A server on which nothing is fast would get slower by more loads at a time."""
    limits = replace(SLOW, loads_per_server=1)
    world = World([spec(f"m{i}", 1) for i in range(9)], ROOMY, limits)
    for i in range(9):
        world.ask(f"m{i}")
    began = world.now
    starts = []
    for _ in range(1000):
        world.pass_time(0.1)
        if world.pending:
            starts += [round(world.now - began) for _ in world.pending]
            world.pending.clear()
    assert starts == [0, 5, 15, 30, 50, 75]


def test_what_an_overdue_load_reserved_stays_reserved() -> None:
    world = World([spec("hung", 0), spec("a", 500), spec("b", 200)], ROOMY, SLOW)
    world.ask("hung")
    load = world.take(ev.Load, "hung")
    world.pass_time(5.01)
    world.resident("a")
    world.ask("b")
    assert state(world, "a") is State.UNLOADING, "there is no room for both beside what hangs"
    assert state(world, "b") is State.QUEUED
    world.work()
    assert world.ready() == {"b"}
    assert world.fleet.accounts["t0"].occupied == {"ram": 400 * MIB}
    world.feed(ev.Loaded(load.key, load.attempt, 60.0))
    assert not world.replica("hung").overdue


def test_what_is_measured_beyond_the_guess_is_reserved_for_an_overdue_load() -> None:
    """It may be the load that has outgrown its guess, and what loads beside it needs room."""
    world = World([spec("hung", 0), spec("a", 100), spec("b", 500)], ROOMY, SLOW)
    world.resident("a")
    world.ask("hung")
    world.take(ev.Load, "hung")
    assert world.replica("hung").reserved == {"ram": 200 * MIB}
    world.pass_time(5.01)
    world.feed(ev.Measured("t0", {unit("a"): {"ram": 80 * MIB}}, {"ram": 630 * MIB}))
    assert world.replica("hung").reserved == {"ram": 550 * MIB}
    world.ask("b")
    assert [order.key.unit.model for order in world.pending] == []
    assert world.fleet.accounts["t0"].occupied == {"ram": 650 * MIB}


def test_an_overdue_load_is_no_leak() -> None:
    world = World([spec("hung", 0)], servers(1, 4000), SLOW)
    world.ask("hung")
    world.take(ev.Load, "hung")
    world.pass_time(5.01)
    world.feed(ev.Measured("t0", {}, {"ram": 3000 * MIB}))
    assert world.fleet.servers["t0"].accepting


def test_a_load_found_under_way_may_be_overdue() -> None:
    world = World([spec("hung", 0), spec("a", 0)], ROOMY, SLOW)
    server = Server("t0", "h:1", {"ram": 800 * MIB})
    world.feed(ev.ServerFound(server, frozenset(), loading=frozenset({unit("hung")})))
    world.take(ev.Settle, "hung")
    waiter = world.ask("a")
    assert not world.pending
    world.pass_time(5.01)
    world.work()
    world.granted(waiter)


def test_a_load_that_ends_frees_others_to_the_last() -> None:
    world = World([spec("hung", 0), spec("a", 0), spec("b", 0)], ROOMY, SLOW)
    world.ask("hung")
    load = world.take(ev.Load, "hung")
    world.pass_time(5.01)
    world.ask("a")
    world.ask("b")
    assert [order.key.unit.model for order in world.pending] == ["a"], "one by one all the same"
    world.feed(ev.LoadFailedOnServer(load.key, load.attempt, "no"))
    assert world.fleet.accounts["t0"].overdue == 0
    world.work()
    assert world.ready() == {"a", "b"}


def test_a_unit_whose_load_hung_is_left_alone_for_longer_than_that_each_time() -> None:
    """Each hung load may cost a server its restart, so it must not be given the next one."""
    world = World([spec("hung")], servers(2), replace(SLOW, backoff_seconds=5.0))
    waits = []
    for _ in range(3):
        waiter = world.ask("hung", deadline=10_000.0)
        load = world.pending.pop()
        world.now += 300.0
        world.feed(ev.LoadHung(load.key, load.attempt, "still LOADING after 300 s"))
        assert isinstance(world.refusal(waiter), LoadFailed)
        unload = world.take(ev.Unload, "hung")
        world.feed(ev.Unloaded(unload.key, unload.attempt))
        again = world.refusal(world.ask("hung"))
        assert isinstance(again, LoadFailed)
        assert again.retry_after is not None
        assert not world.pending, "it is given no other server"
        waits.append(again.retry_after)
        world.now += again.retry_after + 0.1
    assert waits == pytest.approx([600.0, 1200.0, 2400.0])
