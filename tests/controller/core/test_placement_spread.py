"""Herds of newcomers, and more servers than are looked at one by one."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from services.controller.core import events as ev
from services.controller.core import placement, reconcile
from services.controller.core.entities import (
    ReplicaKey,
    Server,
    UnitSpec,
)
from services.controller.core.fleet import Fleet
from services.controller.core.limits import Limits
from services.controller.core.placement import Place, place
from services.controller.core.roster import STEPS
from services.controller.core.victims import Terms, front
from tests.support.placement_views import NOW, There, put, server, spec
from tests.support.residency_world import World

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
    least, most = draw(st.sampled_from([(0, 3), (0, 8), (20, 30)]))  # the last: full
    for i in range(40):
        fleet.add_server(server(100, id=f"t{i:02}"))
    for i in range(40):
        for each in random.sample(listed, random.randint(least, most)):
            key = ReplicaKey(f"t{i:02}", each.unit)
            taken = fleet.accounts[key.server].staying.get("ram", 0)
            if taken + each.declared["ram"] <= 100:
                there = There(each, NOW - random.randint(1, 500))
                put(fleet, key, there, {})
    for name in fleet.servers:
        fleet.roster.changed(name, placement.room(fleet, name), placement.lowest(fleet, name))
    return fleet, listed


@settings(max_examples=25)
@given(crowds(), st.integers(0, 199))
def test_many_servers_get_the_answer_that_a_look_at_all_gives(
    case: tuple[Fleet, list[UnitSpec]], index: int
) -> None:
    """The same kind of place: room where there is any, and victims that are worth as little."""
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
            assert front(fleet, quick.server) <= lowest[STEPS[0][1] - 1], "one of the least"
            assert quick.cost == max(fleet.uses.on[quick.server][u].rank for u in quick.victims)
