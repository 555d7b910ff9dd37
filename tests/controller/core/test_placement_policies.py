"""Which victims the eviction policies choose."""

import pytest

from services.controller.core.entities import (
    ReplicaKey,
    Server,
)
from services.controller.core.fleet import Fleet
from services.controller.core.limits import Limits
from services.controller.core.placement import place
from services.controller.core.victims import Terms, front
from tests.support.placement_views import (
    NOW,
    A,
    There,
    decide,
    fleet_of,
    server,
    spec,
    victims,
    view,
)
from tests.support.residency_world import World, unit

GDSF = Limits(policy="gdsf", half_life_seconds=600.0)


def used(fleet: Fleet, name: str, *when: float) -> None:
    for at in when:
        fleet.touch(ReplicaKey("t0", unit(name)), at, 1)


def test_gdsf_takes_the_least_uses_times_seconds_by_size() -> None:
    """Of 100 bytes: cheap 3 uses * 1 s / 0.5 = 6; dear 1 use * 10 s / 0.2 = 50; rare 2 uses *
    0.5 s / 0.1 = 10. By last use it would be dear, rare, cheap."""
    listed = [
        spec("cheap", 50, load_seconds=1.0),
        spec("dear", 20, load_seconds=10.0),
        spec("rare", 10, load_seconds=0.5),
    ]
    here = view(
        server(100), There(listed[1], NOW - 2), There(listed[2], NOW - 1), There(listed[0], NOW)
    )
    fleet = fleet_of([here], listed, GDSF)
    used(fleet, "cheap", NOW, NOW)
    used(fleet, "rare", NOW - 1)
    ranks = {each.model: fleet.uses.on["t0"][each].rank for each in fleet.replicas["t0"]}
    assert ranks == pytest.approx({"cheap": 6.0, "dear": 50.0, "rare": 10.0})
    everything = ["cheap", "dear", "rare"]
    for size, gone in [(20, []), (30, ["cheap"]), (75, ["cheap", "rare"]), (100, everything)]:
        assert victims(place(fleet, spec("n", size), Terms(), NOW)) == gone


def test_gdsf_counts_a_use_half_after_a_half_life() -> None:
    fleet = fleet_of([view(server(100), There(A, NOW))], [A], GDSF)
    used(fleet, "a", NOW + 600.0)
    assert fleet.use(ReplicaKey("t0", A.unit)).uses == pytest.approx(1.5)
    used(fleet, "a", NOW + 1800.0)
    assert fleet.use(ReplicaKey("t0", A.unit)).uses == pytest.approx(1.375)


@pytest.mark.parametrize("pinned", [False, True])
def test_gdsf_lets_old_fame_fade_as_others_come_and_go(pinned: bool) -> None:
    """What was used much once leaves when the server's clock has passed its rank; also where
    something stays that is worth less than all others and may not leave."""
    famous = spec("famous", 50, load_seconds=1.0)
    world = World(
        [famous, *(spec(f"n{i}", 50, load_seconds=1.0) for i in range(30))],
        [Server("t0", "h:1", {"ram": 140 if pinned else 100})],
        Limits(policy="gdsf"),
    )
    if pinned:
        world.register(spec("pinned", 40, pinned=True))
        world.work()
    world.resident("famous")
    for _ in range(9):
        used(world.fleet, "famous", world.now)
    evicted_at = None
    for i in range(30):
        world.resident(f"n{i}")
        if "famous" not in world.ready():
            evicted_at = i
            break
    # Each newcomer's rank is clock + 2, and the clock becomes that of the last victim: 0, 2, 4, …
    # until it exceeds famous' own (1 + 9) * 1 / 0.5 = 20.
    assert evicted_at is not None
    assert 8 <= evicted_at <= 12


def test_gdsf_has_the_big_unused_leave_before_the_small_expensive_used() -> None:
    big = spec("big", 60, load_seconds=0.5)
    small = [spec(f"s{i}", 10, load_seconds=20.0) for i in range(4)]
    here = view(
        server(100), There(big, NOW), *(There(each, NOW - 100 - i) for i, each in enumerate(small))
    )
    listed = [big, *small]
    assert victims(decide(spec("n", 30), here, more=listed, limits=GDSF)) == ["big"]
    assert "big" not in victims(decide(spec("n", 30), here, more=listed))


def test_by_last_use_a_victim_is_as_old_on_one_server_as_on_another() -> None:
    """However much was evicted from either: there is no clock in it."""
    world = World(
        [spec(f"m{i}", 60) for i in range(8)], [Server(f"t{i}", "h", {"ram": 100}) for i in (0, 1)]
    )
    for i in range(8):
        world.resident(f"m{i}")
        world.pass_time(1.0)
    assert world.fleet.uses.clock == 0.0
    assert world.ready() == {"m6", "m7"}
    assert front(world.fleet, world.granted(7).key.server) < front(
        world.fleet, world.granted(8).key.server
    )
