"""What the engine says of itself when its state is broken by hand."""

from collections.abc import Callable

import pytest

from services.controller.core import events as ev
from services.controller.core.entities import Use
from services.controller.core.fleet import Fleet
from services.controller.core.routers import Drain
from services.controller.core.states import State
from services.controller.core.waiting import Purpose, Waiter, Want
from tests.support.residency_world import ABCD, World, key, servers, unit


def busy() -> World:
    """`a` and `b` are READY, `c` is being loaded, `a` is in use and leased."""
    world = World(ABCD)
    world.use("a")
    world.resident("b")
    world.resident("a", router="r")
    world.use("a", in_flight=2)
    world.ask("c")
    return world


def restate(fleet: Fleet) -> None:
    """As no transition would."""
    here = fleet.replicas["t0"]
    here[unit("a")] = here[unit("a")]._replace(state=State.DRAINING)


def rank_lower(fleet: Fleet) -> None:
    fleet.uses.on["t0"][unit("b")] = Use(0.0, 1.0, -5.0)


def queue_again(fleet: Fleet) -> None:
    fleet.wants.enqueue(fleet.wants.by_unit[unit("c")])


def wait_twice(fleet: Fleet) -> None:
    fleet.wants.wait(Waiter(99, 500.0, 0.0, None, ""), unit("c"))
    fleet.wants.wait_for_eviction(99, (key("a"),))


def forget_waiter(fleet: Fleet) -> None:
    fleet.wants.waiting[unit("c")].clear()


def want_more(fleet: Fleet) -> None:
    fleet.wants.put(Want(unit("d"), 0.0, Purpose.REQUEST))


def overbook(fleet: Fleet) -> None:
    fleet.accounts["t0"].staying["ram"] += 1 << 30


def overbook_before_a_load(fleet: Fleet) -> None:
    overbook(fleet)
    fleet.accounts["t0"].waiting += 1


def drain_for_a_stranger(fleet: Fleet) -> None:
    fleet.withdrawals.drains[key("b")] = Drain(1, frozenset({"nobody"}))


BROKEN: list[tuple[Callable[[Fleet], object], str]] = [
    (lambda f: f.agenda.look_at_want(unit("a")), "Wants, arrivals or departures are left to look"),
    (lambda f: f.out.append(ev.Evicted(1, ())), "1 instructions were not given."),
    (overbook, "The account of t0 says staying"),
    (overbook_before_a_load, "t0 is over its limit by"),
    (lambda f: f.where.pop(unit("a")), "The index of servers by unit does not match"),
    (lambda f: f.of_model.clear(), "The index of replicas by model does not match"),
    (lambda f: f.known.users.update({unit("a"): {unit("b")}}), "The index of users by part"),
    (lambda f: f.known.kept.add(unit("a")), "The index of kept units"),
    (lambda f: f.known.versions.update(a=(unit("a"),) * 2), "A version is listed twice."),
    (lambda f: f.known.versions.pop("a"), "The versions that are listed are not those"),
    (rank_lower, "The order of eviction on t0 is not that of its ranks."),
    (
        lambda f: f.uses.forget(f.replicas["t0"][unit("a")]),
        "The uses on t0 are not those of its replicas.",
    ),
    (lambda f: f.uses.count(key("a"), 1, 1), "a:1 on t0 is used by 3, 1, not (2, 0)."),
    (lambda f: f.pressures.queue_seen(key("d"), 1.0), "d:1 on t0 is known for its queue"),
    (restate, "a:1 on t0 is draining, and no drain ends it."),
    (restate, "a:1 on t0 has a use lease, and is not READY."),
    (drain_for_a_stranger, "A drain of b:1 on t0 goes on, which is not draining."),
    (drain_for_a_stranger, "The drain of b:1 on t0 waits for nobody, which is not alive."),
    (lambda f: f.withdrawals.lease_ends.clear(), "The use lease t0-1 of a:1 on t0 never runs out."),
    (wait_twice, "Waiter 99 waits for c:1, and for an eviction too."),
    (lambda f: f.wants.wait_for_eviction(9, (key("d"),)), "Waiter 9 waits for an eviction that is"),
    (lambda f: f.wants.deadlines.clear(), "Waiter 3 for c:1 has no deadline."),
    (forget_waiter, "Nobody waits for c:1, which is listed."),
    (queue_again, "c:1 has a place on t0, and waits in the queue."),
    (want_more, "d:1 is wanted, and neither has a place nor waits in the queue."),
    (lambda f: f.wants.claim("t0", unit("d")), "t0 is kept for d:1, which does not wait"),
]


@pytest.mark.parametrize(("breaks", "sentence"), BROKEN)
def test_what_is_broken_is_told(breaks: Callable[[Fleet], object], sentence: str) -> None:
    world = busy()
    assert world.engine.check() == []
    breaks(world.fleet)
    found = world.engine.check()
    assert [one for one in found if one.startswith(sentence)], found
    assert world.engine.check() == found, "asking changes nothing"


def test_a_wake_that_is_missing_is_told() -> None:
    world = busy()
    world.fleet.agenda.timers.due(1000.0)
    assert "The engine is not woken when the use lease t0-1 runs out." in world.engine.check()


def test_what_is_overdue_is_told() -> None:
    world = busy()
    world.engine.history.note(50.0, ev.Due(), [])
    assert any(
        one.startswith("It is ") and one.endswith(" when the use lease t0-1 runs out.")
        for one in world.engine.check()
    )


def test_a_roster_that_is_not_current_is_told() -> None:
    world = World(ABCD, servers(40))
    assert world.engine.check() == []
    world.fleet.roster.changed("t7", 0.25, 0.0)
    assert world.engine.check() == ["The roster has t7 with a room of 0.25, which is not so."]
