"""How many copies a unit gets: more when it is busy for long, and no swinging."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from services.controller.core.copies import Adjustment, Pressure, adjustment, again, step
from services.controller.core.entities import Batching
from services.controller.core.limits import Limits

LIMITS = Limits(
    copy_in_flight=4.0, copy_queue_seconds=0.1, copy_up_seconds=3.0, copy_down_seconds=60.0
)
TICK = 0.5


class Copies:
    """A unit whose copies come and go as they are called for."""

    def __init__(self, least: int = 0, most: int = 4, batching: Batching | None = None) -> None:
        self.batching = batching
        self.now, self.replicas, self.least, self.most = 0.0, max(1, least), least, most
        self.pressure = Pressure(0.0)
        self.changes: list[tuple[float, int]] = []

    def go_on(self, seconds: float, in_flight: int, queue: float = 0.0) -> None:
        until = self.now + seconds
        while self.now < until:
            self.now += TICK
            self.pressure = step(
                self.pressure, in_flight, queue, self.replicas, LIMITS, self.now, self.batching
            )
            found = adjustment(
                self.pressure,
                self.replicas,
                self.least,
                self.most,
                LIMITS,
                self.now,
                self.batching,
            )
            if found is not None:
                self.pressure = again(self.pressure)
                self.replicas += found.by
                self.changes.append((self.now, found.by))


def test_a_busy_unit_gets_copies_until_each_has_few_in_flight() -> None:
    copies = Copies()
    copies.go_on(30, in_flight=10)
    assert copies.replicas == 3
    times = [when for when, _ in copies.changes]
    assert times[0] >= LIMITS.copy_up_seconds
    assert all(later - earlier >= LIMITS.copy_up_seconds for earlier, later in pairwise(times))


def test_a_long_queue_calls_for_a_copy_though_few_are_in_flight() -> None:
    copies = Copies()
    copies.go_on(6, in_flight=1, queue=0.5)
    assert copies.replicas == 2


def test_a_wait_for_a_batch_calls_for_no_copy() -> None:
    for in_flight, queue in ((1, 5.0), (4, 2.0), (30, 4.9)):
        copies = Copies(batching=Batching(size=4, delay=5.0))
        copies.go_on(120, in_flight=in_flight, queue=queue)
        assert copies.changes == []


def test_a_wait_beyond_that_for_a_batch_calls_for_a_copy() -> None:
    copies = Copies(batching=Batching(size=4, delay=0.2))
    copies.go_on(6, in_flight=16, queue=0.5)
    assert copies.replicas == 2


def test_a_second_copy_leaves_when_one_batch_would_hold_all_requests() -> None:
    copies = Copies(batching=Batching(size=4, delay=0.2))
    copies.go_on(6, in_flight=16, queue=0.5)
    copies.go_on(90, in_flight=5, queue=0.2)
    assert copies.replicas == 2
    copies.go_on(90, in_flight=4, queue=0.2)
    assert copies.replicas == 1


def test_a_short_burst_makes_no_copy() -> None:
    copies = Copies()
    for _ in range(20):
        copies.go_on(1, in_flight=30)
        copies.go_on(15, in_flight=0)
    assert copies.changes == []


def test_a_load_that_swings_does_not_make_copies_come_and_go() -> None:
    copies = Copies()
    for _ in range(30):
        copies.go_on(10, in_flight=7)
        copies.go_on(10, in_flight=3)
    assert [by for _, by in copies.changes] == [1], "one comes, and stays"


def test_copies_leave_when_the_others_would_be_idle() -> None:
    copies = Copies()
    copies.go_on(30, in_flight=15)
    assert copies.replicas == 4
    before = copies.now
    copies.go_on(400, in_flight=0)
    assert copies.replicas == 1
    downs = [when for when, by in copies.changes if by < 0]
    assert downs[0] - before >= LIMITS.copy_down_seconds
    assert all(later - earlier >= LIMITS.copy_down_seconds for earlier, later in pairwise(downs))


def test_between_half_and_whole_nothing_changes() -> None:
    copies = Copies()
    copies.go_on(10, in_flight=5)
    assert copies.replicas == 2
    copies.go_on(1000, in_flight=3)  # one alone would have 3: more than half of 4
    assert copies.replicas == 2


@given(
    least=st.integers(0, 3),
    most=st.integers(1, 4),
    loads=st.lists(st.tuples(st.sampled_from([1, 10, 100]), st.integers(0, 40)), max_size=12),
)
def test_never_beyond_the_bounds(least: int, most: int, loads: list[tuple[int, int]]) -> None:
    copies = Copies(least, max(least, most))
    for seconds, in_flight in loads:
        copies.go_on(seconds, in_flight)
        assert max(1, least) <= copies.replicas <= max(least, most)


def test_more_than_are_allowed_leave_at_once() -> None:
    found = adjustment(Pressure(0.0, in_flight=100.0, busy_since=0.0), 3, 0, 2, LIMITS, 10.0)
    assert found == Adjustment(-1, "3 copies, but at most 2 are allowed")
    assert adjustment(Pressure(0.0), 3, 3, 2, LIMITS, 0.0) is None, "the minimum counts for more"


def test_none_are_allowed_and_one_stays_all_the_same() -> None:
    assert adjustment(Pressure(0.0), 1, 0, 0, LIMITS, 0.0) is None


def test_a_reason_has_its_numbers() -> None:
    busy = Pressure(0.0, in_flight=9.0, queue=0.02, busy_since=0.0)
    found = adjustment(busy, 2, 0, 4, LIMITS, 5.0)
    assert found is not None
    assert found.reason == (
        "4.5 requests in flight on each of 2 (more than 4), 20 ms in its queue, for 5.0 s"
    )
