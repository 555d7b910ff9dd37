"""Uses that outlive a residence, and a Controller."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.controller.core import events as ev
from services.controller.core.entities import Unit
from services.controller.core.fame import Faded, Fame
from services.controller.core.limits import Limits
from services.controller.core.upkeep import TOLD_AT_A_TICK
from services.controller.core.uses import TELL_SECONDS
from tests.support.residency_world import World, key, servers, spec, unit

HALF_LIFE = 100.0
GDSF = Limits(policy="gdsf", half_life_seconds=HALF_LIFE)


def test_uses_fade_by_half_after_each_half_life() -> None:
    fame = Fame(HALF_LIFE)
    fame.keep(unit("a"), Faded(8.0, 0.0))
    assert fame.take(unit("a"), 2 * HALF_LIFE) == pytest.approx(2.0)
    assert fame.take(unit("a"), 2 * HALF_LIFE) == 0.0, "its replica has them"


@given(st.lists(st.tuples(st.floats(0.1, 9), st.floats(0, 500)), min_size=1, max_size=9))
def test_uses_of_several_replicas_add_up_in_any_order(left: list[tuple[float, float]]) -> None:
    fame = Fame(HALF_LIFE)
    for uses, at in left:
        fame.keep(unit("a"), Faded(uses, at))
    expected = sum(uses * 0.5 ** ((500 - at) / HALF_LIFE) for uses, at in left)
    assert fame.take(unit("a"), 500.0) == pytest.approx(expected)


def test_the_table_is_bounded_and_forgets_what_is_used_least() -> None:
    fame = Fame(HALF_LIFE, most=100)
    for number in range(50):
        fame.keep(Unit("famous", number), Faded(50.0, 0.0))
    for number in range(1000):
        fame.keep(Unit("rare", number), Faded(1.0, 0.1 * number))
        assert len(fame.by_unit) <= 100
    assert sum(one.model == "famous" for one in fame.by_unit) == 50


def uses(world: World, name: str) -> float:
    return world.fleet.use(key(name)).uses


def test_a_model_that_comes_back_counts_on() -> None:
    world = World([spec("a", 200), spec("b", 200)], servers(1), GDSF)
    world.resident("a")
    world.use("a", requests=9)
    assert uses(world, "a") == pytest.approx(10.0, rel=0.01)
    world.evict("a")
    world.drained("r")
    world.work()
    assert "a" not in world.ready()
    world.now += HALF_LIFE
    world.resident("a")
    assert uses(world, "a") == pytest.approx(5.0 + 1.0, rel=0.01)


def test_a_place_that_is_given_up_is_no_use() -> None:
    world = World([spec("busy", 10), spec("a", 10)], servers(1), Limits(loads_per_server=1))
    world.ask("busy")
    for _ in range(5):
        waiter = world.ask("a")
        world.feed(ev.WaiterGone(waiter))
        assert unit("a") not in world.fleet.where
    assert world.fleet.uses.fame.take(unit("a"), world.now) == 0.0


def test_what_leaves_the_catalogue_is_forgotten() -> None:
    world = World([spec("a")], servers(1), GDSF)
    world.resident("a")
    world.feed(ev.CatalogueChanged(frozenset({"a"}), ()))
    world.work()
    assert not world.fleet.uses.fame.by_unit


def told(world: World, seconds: float) -> dict[Unit, ev.Used]:
    """What is told within `seconds`, the last word on each unit."""
    found: dict[Unit, ev.Used] = {}
    for _ in range(round(2 * seconds)):
        world.now += 0.5
        out = world.engine.handle(ev.Tick(), world.now)
        found |= {each.unit: each for each in out if isinstance(each, ev.Used)}
    return found


def test_uses_survive_a_takeover() -> None:
    """The next Controller ranks what it finds resident as the last one did."""
    specs = [spec(name, 100, load_seconds=0.1) for name in "abcd"]
    first = World(specs, servers(1), GDSF)
    for name in "ab":
        first.resident(name)
    first.use("a", requests=20)
    first.resident("c")
    first.evict("c")
    first.drained("r")
    first.work()
    found = told(first, TELL_SECONDS + 2)
    assert found.keys() == {unit(name) for name in "abc"}
    assert not told(first, 2 * TELL_SECONDS), "nothing has changed since"

    second = World(specs, (), GDSF)
    recalled = {each.unit: (each.uses, each.idle) for each in found.values()}
    second.feed(ev.UsesRecalled({**recalled, unit("gone"): (5.0, 1.0)}))
    (server,) = servers(1)
    second.fleet.add_server(server)
    second.feed(ev.ServerFound(server, frozenset({unit("a"), unit("b")})))
    assert uses(second, "a") == pytest.approx(20.0, rel=0.6)
    assert uses(second, "b") == pytest.approx(1.0, rel=0.6)
    assert set(second.fleet.uses.fame.by_unit) == {unit("c")}
    second.now = 50.0
    second.resident("c")
    second.resident("d")
    assert second.ready() == {"a", "c", "d"}, "b is worth least"


def test_what_is_told_at_once_is_bounded() -> None:
    count = 3 * TOLD_AT_A_TICK
    world = World([spec(f"m{i}", 1) for i in range(count)], servers(1, models=0), GDSF)
    for i in range(count):
        world.resident(f"m{i}")
    world.now += TELL_SECONDS
    most = 0
    found: set[Unit] = set()
    for _ in range(8):
        world.now += 0.5
        out = world.engine.handle(ev.Tick(), world.now)
        units = [each.unit for each in out if isinstance(each, ev.Used)]
        most = max(most, len(units))
        found.update(units)
    assert most == TOLD_AT_A_TICK
    assert len(found) == count
