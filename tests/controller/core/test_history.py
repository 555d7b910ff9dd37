"""The ring of the last events: bounded, readable, and nothing large stays alive in it."""

import gc
import weakref

from services.controller.core import events as ev
from services.controller.core.errors import NoRoom
from services.controller.core.history import KEPT, KEPT_INSTRUCTIONS, LARGE, History, text
from tests.support.residency_world import ABCD, World, key, unit


class Caller:
    """Something that a frame of the shell holds."""


def test_the_last_events_are_kept_with_their_instructions() -> None:
    world = World(ABCD)
    world.resident("a")
    lines = world.engine.history.lines()
    assert [line.event for line in lines[-2:]] == [
        "ResidentWanted(waiter=1, unit=a:1, deadline=110.000, waited=0.000, urgent=True)",
        "Loaded(key=a:1 on t0, attempt=1, seconds=0.100)",
    ]
    asked, loaded = lines[-2:]
    assert (asked.now, loaded.now) == (10.0, 10.1)
    assert "Load(key=a:1 on t0, attempt=1, versions=[1])" in asked.instructions
    assert "Granted(waiter=1, key=a:1 on t0, revision=3)" in loaded.instructions


def test_the_ring_is_bounded_and_the_count_is_not() -> None:
    history = History(5.0)
    assert (history.now, history.lines()) == (5.0, [])
    for second in range(KEPT + 10):
        history.note(float(second), ev.Due(), [])
    assert [line.now for line in history.lines()] == list(range(10, KEPT + 10))
    assert (history.events, history.now) == (KEPT + 10, KEPT + 9)


def test_of_a_large_event_only_the_text_is_kept() -> None:
    history = History(0.0)
    usage = {key(f"m{number}"): ev.Usage(0.0) for number in range(LARGE + 1)}
    event = ev.RouterUsed("r", usage)
    history.note(1.0, event, [])
    history.note(2.0, ev.RouterUsed("r", {key("m"): ev.Usage(0.0, 1)}), [])
    large, small = history.lines()
    assert large.event.startswith("RouterUsed(router=r, usage=[m0:1 on t0: ")
    assert large.event.endswith(f"{LARGE + 1 - 4} more])")
    assert small.event == (
        "RouterUsed(router=r, usage=[m:1 on t0: "
        "Usage(age=0.0, in_flight=1, requests=1, sequences=0)])"
    )
    assert not [one for one in gc.get_referrers(event) if isinstance(one, tuple)]


def test_many_instructions_are_counted() -> None:
    history = History(0.0)
    out = [ev.Unload(key(f"m{number}"), number, ()) for number in range(KEPT_INSTRUCTIONS + 5)]
    history.note(1.0, ev.Due(), out)
    (line,) = history.lines()
    assert len(line.instructions) == KEPT_INSTRUCTIONS + 1
    assert line.instructions[-1] == "5 more"


def test_a_refusal_keeps_nothing_of_the_caller_alive() -> None:
    history = History(0.0)
    message = NoRoom(model="a", version=1, shortage="t0 is full").message

    def answer() -> "weakref.ref[Caller]":
        caller, error = Caller(), NoRoom(model="a", version=1, shortage="t0 is full")
        history.note(1.0, ev.Due(), [ev.Refused(3, error)])
        try:
            raise error
        except NoRoom:
            return weakref.ref(caller)

    caller = answer()
    gc.collect()
    assert caller() is None
    (line,) = history.lines()
    assert line.instructions == (f"Refused(waiter=3, error=NoRoom: {message})",)


def test_texts_are_short() -> None:
    record = ev.Record(ev.Kind.EVICTING, "room", "t0", unit("a"), why=ev.Why.ROOM)
    assert text(record) == "Record(kind=EVICTING, reason=room, server=t0, unit=a:1, why=ROOM)"
    publish = ev.Publish(7, frozenset("abcdefg"))
    assert text(publish) == "Publish(revision=7, models=[a, b, c, d, 3 more])"
