"""Models that call others without a version: which version answers does not depend on others."""

from dataclasses import replace

from services.controller.core import events as ev
from tests.support.residency_world import World, servers, spec, unit

CALLER = spec(
    "caller", 10, requires=(unit("m:2"),), unversioned=frozenset({unit("m:2")}), fingerprint="1"
)
M = [spec(f"m:{version}", 10) for version in (1, 2, 3)]


def test_a_newer_version_is_not_loaded_beside_a_caller() -> None:
    world = World([CALLER, *M], servers(2))
    home = world.resident("caller").server
    assert world.resident("m:1").server
    assert world.resident("m:3").server != home
    assert {"caller", "m:2"} <= world.ready(home)


def test_on_a_single_server_the_caller_and_a_newer_version_take_turns() -> None:
    world = World([CALLER, *M], servers(1))
    world.resident("caller")
    world.resident("m:3")
    assert world.ready() == {"m:3"}
    world.resident("caller")
    assert world.ready() == {"caller", "m:2"}


def test_an_older_version_stays_beside_a_caller() -> None:
    world = World([CALLER, *M], servers(1))
    world.resident("caller")
    world.resident("m:1")
    assert world.ready() == {"caller", "m:2", "m"}


def test_a_version_that_is_called_by_its_number_excludes_none() -> None:
    world = World([replace(CALLER, unversioned=frozenset()), *M], servers(1))
    world.resident("caller")
    world.resident("m:3")
    assert world.ready() == {"caller", "m:2", "m:3"}


def test_a_caller_that_turns_out_to_need_a_part_is_loaded_again_beside_it() -> None:
    alone = replace(CALLER, requires=(), unversioned=frozenset())
    world = World([alone, *M], servers(1))
    world.resident("caller")
    world.resident("m:3")
    world.register(CALLER)
    assert world.ready() == {"m:3"}
    assert "it needs m:2 beside it" in world.reasons(ev.Kind.EVICTING)
    world.resident("caller")
    assert world.ready() == {"caller", "m:2"}


def test_a_part_that_is_there_already_costs_no_reload() -> None:
    world = World([replace(CALLER, requires=(), unversioned=frozenset()), *M], servers(1))
    world.resident("caller")
    world.resident("m:2")
    world.register(CALLER)
    world.work()
    assert world.ready() == {"caller", "m:2"}
    assert world.reasons(ev.Kind.EVICTING) == []
