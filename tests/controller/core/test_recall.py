"""Failures of loads outlive the Controller that saw them."""

from dataclasses import replace

import pytest

from services.common.errors import LoadFailed
from services.controller.core import events as ev
from services.controller.core.entities import UnitSpec
from services.controller.core.errors import SetAside
from services.controller.core.view import FleetView
from tests.support.residency_world import ABCD, LIMITS, World, ensemble, key, servers, spec, unit


def reported(world: World) -> dict[object, ev.Failing | None]:
    """The last word on each unit."""
    return {each.unit: each.failing for each in world.failed}


def after(world: World, *specs: UnitSpec, seconds: float = 0.0) -> World:
    """The next Controller, which starts `seconds` after the last word of `world`."""
    second = World(specs, (), world.fleet.limits)
    kept = {
        name: replace(failing, wait=failing.wait - seconds)
        for name, failing in reported(world).items()
        if failing is not None
    }
    second.feed(ev.FailuresRecalled(kept))  # type: ignore[arg-type]
    for server in servers(1):
        second.fleet.add_server(server)
        second.feed(ev.ServerFound(server, frozenset()))
    return second


def why_not_ready(world: World, name: str) -> str:
    return FleetView(world.fleet).failure(unit(name), world.now)


def test_what_failed_to_load_is_not_ready_for_the_next_controller_until_it_has_loaded() -> None:
    limits = replace(LIMITS, backoff_seconds=8.0)
    specs = [*ABCD, ensemble("e", "a", "b")]
    first = World(specs, servers(1), limits)
    waiter = first.ask("a")
    first.work(fail="a")
    assert isinstance(first.refusal(waiter), LoadFailed)
    why = why_not_ready(first, "a")
    assert why == "load failed: no weights"

    second = after(first, *specs, seconds=3.0)
    assert why_not_ready(second, "a") == why
    assert why_not_ready(second, "e") == "load failed: a:1: no weights"
    again = second.refusal(second.ask("a"))
    assert isinstance(again, LoadFailed)
    assert again.retry_after == pytest.approx(5.0)
    second.pass_time(5.1)
    assert why_not_ready(second, "a") == why, "it may be tried again, and has not loaded"
    second.resident("a")
    assert why_not_ready(second, "a") == ""
    assert reported(second) == {unit("a"): None}


def test_the_next_failure_counts_on() -> None:
    limits = replace(LIMITS, backoff_seconds=8.0)
    first = World(ABCD, servers(1), limits)
    first.ask("a")
    first.work(fail="a")
    second = after(first, *ABCD, seconds=9.0)
    waiter = second.ask("a")
    second.work(fail="a")
    assert second.refusal(waiter).retry_after == pytest.approx(16.0)


def test_a_failure_of_what_is_gone_or_incomplete_is_not_kept() -> None:
    first = World([*ABCD, spec("w", 0, incomplete=True)], servers(1, auto_complete=True))
    for name in "aw":
        first.ask(name)
    first.work(fail="aw")
    assert reported(first).keys() == {unit("a")}, "a server may lack what completes a config"
    second = after(first, *ABCD[1:])
    assert second.fleet.failures.by_unit == {}


def test_what_is_found_resident_has_loaded() -> None:
    """The word of it may have been lost with the Controller."""
    first = World(ABCD)
    first.ask("a")
    first.work(fail="a")
    second = after(first, *ABCD)
    (server,) = servers(1)
    second.feed(ev.ServerFound(server, frozenset({unit("a")})))
    assert second.fleet.failures.by_unit == {}
    assert reported(second) == {unit("a"): None}
    outdated = after(first, *ABCD)
    was = frozenset({unit("a")})
    outdated.feed(ev.ServerFound(server, was, outdated=was))
    assert outdated.fleet.failures.by_unit.keys() == {unit("a")}, "its former config has"


def test_what_is_set_aside_stays_so() -> None:
    limits = replace(LIMITS, set_aside_seconds=60.0)
    first = World(ABCD, servers(3), limits)
    home = first.resident("a")
    first.feed(ev.RouterJoined("r", frozenset({home})))
    first.feed(ev.RouterBroke("r", home, earlier=key("a", "t9")))
    assert isinstance(first.refusal(first.ask("a")), SetAside)
    second = after(first, *ABCD, seconds=30.0)
    assert isinstance(second.refusal(second.ask("a")), SetAside)
    later = after(first, *ABCD, seconds=61.0)
    later.resident("a")
