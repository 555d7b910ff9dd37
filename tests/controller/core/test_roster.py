"""The few servers that are looked at out of many, against a sort of all of them."""

from collections.abc import Callable
from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from services.controller.core.roster import INFINITY, Roster

COUNT = 3
NAMES = [f"t{i}" for i in range(12)]
names = st.sampled_from(NAMES)
numbers = st.integers(0, 9).map(float)
changes = st.lists(st.tuples(names, numbers, numbers), min_size=1, max_size=200)


def best(values: dict[str, float], found: list[str], *, highest: bool) -> bool:
    """Whether `found` are the `COUNT` best of `values`, whichever of equals."""
    ranked = sorted(values.values(), reverse=highest)[:COUNT]
    return len(set(found)) == len(found) and [values[name] for name in found] == ranked


def cheap(roster: Roster, front: Callable[[str], float]) -> list[str]:
    """The first `COUNT` servers in the order of their next victims, each with its rank."""
    found = list(islice(roster.cheap(front), COUNT))
    assert [rank for rank, _ in found] == [front(name) for _, name in found]
    return [name for _, name in found]


@given(changes)
def test_the_servers_with_most_room(history: list[tuple[str, float, float]]) -> None:
    roster, rooms = Roster(), dict[str, float]()
    for name, room, front in history:
        roster.changed(name, room, front)
        rooms[name] = room
    assert best(rooms, roster.roomy(COUNT), highest=True)
    assert best(rooms, roster.roomy(COUNT), highest=True), "asking changes nothing"


@given(changes, st.dictionaries(names, numbers))
def test_the_servers_whose_next_victim_matters_least(
    history: list[tuple[str, float, float]], used: dict[str, float]
) -> None:
    """Use makes a victim matter more without a word to the roster."""
    roster, fronts = Roster(), dict[str, float]()
    for name, room, front in history:
        roster.changed(name, room, front)
        fronts[name] = front
    now = {name: front + used.get(name, 0.0) for name, front in fronts.items()}
    assert best(now, cheap(roster, now.__getitem__), highest=False)
    assert best(now, cheap(roster, now.__getitem__), highest=False), "asking changes nothing"


@given(changes, st.sets(names))
def test_busy_servers_are_named_only_for_their_room(
    history: list[tuple[str, float, float]], busy: set[str]
) -> None:
    roster, fronts = Roster(), dict[str, float]()
    for name, room, front in history:
        roster.changed(name, room, front)
        fronts[name] = front
    for name in sorted(busy & fronts.keys()):
        roster.changed(name, 0.0, INFINITY)
        del fronts[name]
    assert best(fronts, cheap(roster, fronts.__getitem__), highest=False)
    assert {*fronts, *busy} >= roster.rooms().keys()


def test_servers_where_nothing_may_leave_are_not_named() -> None:
    roster = Roster()
    for name in NAMES:
        roster.changed(name, 0.0, 0.0)
    free = {"t8", "t9"}
    found = cheap(roster, lambda name: 1.0 if name in free else float("inf"))
    assert set(found) == free
    assert len(found) == len(free)


@given(changes)
def test_it_does_not_grow_with_time(history: list[tuple[str, float, float]]) -> None:
    roster = Roster()
    for _ in range(5):
        for name, room, front in history:
            roster.changed(name, room, front)
    assert len(roster._roomy) <= 4 * len(NAMES) + 64
    assert len(roster._fronts) <= 4 * len(NAMES) + 64


def test_nothing_is_known_at_first() -> None:
    assert Roster().roomy(COUNT) == []
    assert cheap(Roster(), lambda _: 0.0) == []
