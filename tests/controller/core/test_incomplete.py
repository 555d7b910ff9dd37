"""Units whose configs must be completed by the server that loads them."""

from services.controller.core import events as ev
from tests.support.residency_world import World, servers, spec, unit


def wanted(world: World, name: str, waiter: int, *, urgent: bool) -> None:
    world.feed(ev.ResidentWanted(waiter, unit(name), world.now + 100.0, urgent=urgent))


def test_only_a_server_that_completes_configs_loads_them() -> None:
    plain, completes = servers(1), servers(2, auto_complete=True)[1:]
    world = World([spec("a", incomplete=True)], [*plain, *completes])
    assert world.resident("a").server == "t1"


def test_nowhere_is_it_loaded_where_none_completes_configs() -> None:
    world = World([spec("a", incomplete=True)], servers(1))
    refused = world.refusal(world.ask("a"))
    assert "t0 runs without auto-completion" in refused.message


def test_nothing_is_evicted_for_what_nobody_asks_for() -> None:
    world = World(
        [spec("used"), spec("a", incomplete=True)], servers(1, ram=150, auto_complete=True)
    )
    world.resident("used")
    wanted(world, "a", 1000, urgent=False)
    world.settle(5.0)
    assert world.ready() == {"used"}
    wanted(world, "a", 1001, urgent=True)
    world.settle(5.0)
    assert world.ready() == {"a"}
