"""When the engine asks to be woken."""

from hypothesis import given
from hypothesis import strategies as st

from services.controller.core.timers import STEP_SECONDS, Timers

times = st.floats(0, 1e6) | st.integers(0, 10**6).map(lambda n: n / 100)


@given(st.lists(times, min_size=1))
def test_it_is_never_too_early_and_hardly_late(whens: list[float]) -> None:
    timers = Timers()
    for when in whens:
        timers.at(when)
    for when in sorted(whens):
        due = timers.next()
        if due is None or due > when + STEP_SECONDS * 1.01:
            continue  # it was due with one before it
        assert due >= when
        assert timers.due(due)
        assert not timers.due(due), "once"
    assert timers.next() is None


def test_what_never_comes_is_not_waited_for() -> None:
    timers = Timers()
    timers.at(float("inf"))
    assert timers.next() is None
    assert not timers.due(1e9)


def test_what_is_over_wakes_nobody() -> None:
    timers = Timers()
    timers.at(1.0)
    timers.at(1.0)
    timers.at(2.0)
    timers.cancel(1.0)
    assert timers.next() == 1.0, "something else is due then"
    timers.cancel(1.0)
    assert timers.next() == 2.0
    timers.cancel(2.0)
    assert timers.next() is None
    timers.at(2.0)
    assert timers.next() == 2.0
    assert timers.due(2.0)
    timers.cancel(2.0)
    assert timers.next() is None
