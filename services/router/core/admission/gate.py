"""Decides which requests for a model version may start, which wait, and which are refused.

A `Gate` stands in front of all replicas of a version. It admits as many requests as they handle
well (`limit.py`), keeps the others in order (`queues.py`), and refuses at once those that would
wait in vain. It knows neither futures nor a clock: its owner carries out what it decides."""

import enum
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from services.router.core.admission.limit import (
    Limit,
    Trial,
    Window,
    after_window,
    pays,
    prompt_limit,
    without_trial,
)
from services.router.core.admission.priority import Priority
from services.router.core.admission.queues import AGING_TURNS, Queue, QueuedRequest
from services.router.core.admission.rate import Meter

EVERY_MODEL: Final = "*"  # stands for every model without a bound of its own
QUEUE_REQUESTS: Final = 1000
QUEUE_BYTES: Final = 512 << 20
QUEUE_SECONDS: Final = 60.0
MEMORY_SECONDS: Final = 10.0  # without a request of a class, until it no longer counts
LEAST_SECONDS: Final = 300.0  # the least latency covers the last one to two such spans
STALE_SECONDS: Final = 5.0  # without a measurement, until a trial is given up
IDLE_SECONDS: Final = 60.0
CAPACITY_SECONDS: Final = 0.005  # for which a computed capacity is used while nobody waits
COLD_AT_ONCE: Final = 16  # requests that ask the Controller for a version; others wait for them
COLD_MARGIN: Final = 0.02  # seconds in which to tell a cold request why, before its deadline
CAUTION: Final = 1.25  # factor on the expected time until the answer, which is an estimate
SHORTEST_RETRY: Final = 0.1  # seconds
WEIGHT: Final = 1 / 16  # of the newest value in a moving average
# A window ends after so many answers and seconds, or for a slow model after fewer answers and more
# seconds. It also covers several times what is in flight, since a model that batches answers many
# requests at once.
ANSWERS, SHORT_SECONDS = 32, 0.1
WINDOW_TURNS: Final = 4
FEW_ANSWERS, LONG_SECONDS = 8, 1.0
MARKS: Final = 8  # parts of a window, whose differences give the noise
SLACK: Final = 0.25  # of a window's answers may leave nobody waiting
HOPELESS_MARKS: Final = 2  # parts of a window after which a trial may be given up
HOPELESS_NOISE: Final = 2.0  # times the noise, by which such a trial must miss its mark
QUIET_NOISE: Final = 0.05  # above which a window is extended
LONGEST_WINDOW: Final = 4  # times its length


class Refusal(enum.Enum):
    """Why a request is not sent.

    FULL       The queue is full, and no request in it gives way.
    LATE       Its turn would come too late for its deadline.
    EXPIRED    It waited for as long as that made sense.
    DISPLACED  It waited, and a more urgent request took its place."""

    FULL = "queue_full"
    LATE = "too_late"
    EXPIRED = "expired"
    DISPLACED = "displaced"


class Refused(NamedTuple):
    """A refusal. `retry_after` is the time in seconds until the present queue will be worked
    off."""

    refusal: Refusal
    retry_after: float


@dataclass(slots=True)
class Bounds:
    """The bounds of all queues of a process."""

    #: Requests that may wait for one version, divided among the workers.
    requests: int = QUEUE_REQUESTS
    #: Bytes of all requests that may wait, divided among the workers.
    size: int = QUEUE_BYTES
    #: Seconds that a request without a deadline may wait.
    patience: float = QUEUE_SECONDS
    workers: int = 1
    #: Bytes of the requests that wait at present.
    used: int = 0

    def share(self, number: int) -> int:
        """Return this worker's share of `number`, at least 1."""
        return max(1, number // self.workers)


class Gate:
    """Admits requests to the replicas of one model version. Times are in seconds.

    `fixed` is the number of requests in flight on one replica, divided among the workers. If it is
    None, the gate finds the number that pays off."""

    def __init__(self, bounds: Bounds, fixed: int | None = None) -> None:
        self._bounds = bounds
        self._fixed = fixed
        self.limit = Limit()
        self.queue = Queue()
        self.in_flight = 0
        #: The recent mean time at Triton; 0 before the first answer.
        self.latency = 0.0
        #: The number of requests in the queue.
        self.waiting = 0
        self._mean_in_flight = 0.0
        self._least = self._least_before = math.inf
        self._least_since = -math.inf
        self._last_seen = [-math.inf] * len(Priority)
        #: How often requests of each class went ahead of others.
        self._overtook = [Meter() for _ in Priority]
        self._answers = 0
        #: Answers of this window after which nobody waited.
        self._slack_answers = 0
        self._replicas = 0
        #: The number of answers at which the window began, or before which it does not begin.
        self._window_start = 0
        #: When the window began, and when each of its parts ended.
        self._marks: list[float] = []
        self._decided_at = -math.inf
        self._capacity = 0
        self._capacity_for = (Priority.NORMAL, 0)
        self.divide()

    def divide(self) -> None:
        """Apply a new number of workers."""
        if self._fixed is not None:
            self.limit = Limit(value=self._bounds.share(self._fixed))
        self._capacity_until = -math.inf

    # --- in and out -------------------------------------------------------------------------------

    def enter(self, priority: Priority, replicas: int, now: float) -> bool:
        """Return whether a request may start at once. If so, it is in flight until `leave`."""
        self._last_seen[priority] = now
        in_flight = self.in_flight
        if self.waiting:
            if self.queue.any_up_to(priority) or in_flight >= self.capacity(
                priority, replicas, now
            ):
                return False
            self._overtook[priority].add(now)
        elif in_flight >= self.limit.value * replicas and in_flight >= self._recent_capacity(
            priority, replicas, now
        ):
            return False
        self.in_flight = in_flight + 1
        return True

    def force(self) -> None:
        """Start a request regardless of the limit."""
        self.in_flight += 1

    def leave(self, seconds: float | None) -> None:
        """End a request. `seconds` is its time at Triton, or None if that says nothing about the
        model."""
        if seconds is not None:
            if self._answers:
                self.latency += (seconds - self.latency) * WEIGHT
                self._mean_in_flight += (self.in_flight - self._mean_in_flight) * WEIGHT
            else:
                self.latency, self._mean_in_flight = seconds, self.in_flight
            if seconds < self._least:
                self._least = seconds
            self._answers += 1
        self.in_flight -= 1
        if not self.waiting:
            self._slack_answers += 1

    def offer(
        self, waiting: QueuedRequest, deadline: float, replicas: int, now: float
    ) -> tuple[Refused | None, QueuedRequest | None]:
        """Queue a request that could not enter, and set its `until` from `deadline`.

        Returns why it is refused, or None if it waits, and the request that had to give way to
        it."""
        if replicas:
            behind = self.queue.ahead(waiting.priority, waiting.tenant)
            wait = self._expected_wait(waiting.priority, behind, now)
            if now + CAUTION * (wait + self.latency) > deadline:
                return self.refused(Refusal.LATE, waiting.priority, now), None
        displaced = None
        bounds = self._bounds
        if not self._fits(waiting.size, 0, 0):
            displaced = self.queue.to_displace(waiting.priority, waiting.tenant)
            if displaced is None or not self._fits(waiting.size, displaced.size, 1):
                return self.refused(Refusal.FULL, waiting.priority, now), None
            self.remove(displaced)
        waiting.until = deadline - (CAUTION * self.latency if replicas else COLD_MARGIN)
        self.queue.put(waiting)
        self.waiting += 1
        bounds.used += waiting.size
        self._overtook[waiting.priority].add(now)
        return None, displaced

    def remove(self, waiting: QueuedRequest) -> None:
        """Take a request out of the queue. Raises KeyError if it is not there."""
        self.queue.remove(waiting)
        self.waiting -= 1
        self._bounds.used -= waiting.size

    def release(self, replicas: int, now: float) -> Iterator[tuple[QueuedRequest, Refused | None]]:
        """Yield the requests whose turn has come: each is in flight now, or is refused because it
        is too late."""
        if self.waiting and replicas and self._fixed is None:
            self._measure(replicas, now)
        while self.waiting:
            if self.in_flight >= self.capacity(self.queue.most_urgent(), replicas, now):
                break
            waiting = self.queue.take()
            self.waiting -= 1
            self._bounds.used -= waiting.size
            if now > waiting.until:
                yield waiting, self.refused(Refusal.EXPIRED, waiting.priority, now)
            else:
                self.in_flight += 1
                yield waiting, None

    # --- what may be in flight --------------------------------------------------------------------

    def capacity(self, priority: Priority, replicas: int, now: float) -> int:
        """Return how many requests may be in flight for one more of the class to start.

        While more urgent requests arrive, it is only what keeps the replicas busy: anything beyond
        would be ahead of the next urgent request at Triton. The most urgent class gets more, as
        does whatever is prompt: it waits for nobody here, and must not suffer from a limit that is
        too low or on trial."""
        if not replicas:
            return self._bounds.share(COLD_AT_ONCE)
        value = self.limit.value
        if self._fixed is not None:
            return value * replicas
        since = now - MEMORY_SECONDS
        for seen in self._last_seen[:priority]:
            if seen > since:
                return value * replicas
        if any(seen > since for seen in self._last_seen[priority + 1 :]):
            value = 2 * max(value, self.limit.fallback) + 1
        return max(value * replicas, prompt_limit(self.rate))

    def _recent_capacity(self, priority: Priority, replicas: int, now: float) -> int:
        """Return `capacity`, computed only now and then. A fast model is above its limit most of
        the time, yet nobody has to wait."""
        if now >= self._capacity_until or self._capacity_for != (priority, replicas):
            self._capacity_for = priority, replicas
            self._capacity_until = now + CAPACITY_SECONDS
            self._capacity = self.capacity(priority, replicas, now)
        return self._capacity

    @property
    def rate(self) -> float:
        """Answers a second of all replicas, by Little's law."""
        return self._mean_in_flight / self.latency if self.latency else 0.0

    def idle(self, now: float) -> bool:
        """Return whether nothing is lost if the gate is forgotten."""
        return not self.in_flight and not self.waiting and max(self._last_seen) < now - IDLE_SECONDS

    # --- within -----------------------------------------------------------------------------------

    def _fits(self, size: int, freed: int, places: int) -> bool:
        bounds = self._bounds
        return self.waiting - places < bounds.share(
            bounds.requests
        ) and bounds.used - freed + size <= bounds.share(bounds.size)

    def _expected_wait(self, priority: Priority, behind: int, now: float) -> float:
        """Return the seconds until the turn of a request that has `behind` others of its class or
        above ahead of it."""
        rate = self.rate
        if not rate:
            return 0.0
        above = sum(self.queue.count(one) for one in Priority if one < priority)
        aged = (above + AGING_TURNS * (behind - above)) / rate
        left = rate - sum(meter.rate(now) for meter in self._overtook[:priority])
        return min(aged, behind / left) if left > 0.0 else aged

    def refused(self, refusal: Refusal, priority: Priority, now: float) -> Refused:
        """Return a refusal of a request of the class."""
        backlog = sum(self.queue.count(one) for one in Priority if one <= priority)
        return Refused(refusal, max(SHORTEST_RETRY, self._expected_wait(priority, backlog, now)))

    def _measure(self, replicas: int, now: float) -> None:
        """Advance the measurement. It is called while there is a queue, so that all that may be in
        flight is, or will be at once. Nothing can be learned from a window in which that often was
        not so."""
        seen = max(ANSWERS, self._answers - self._window_start)
        if self._slack_answers > SLACK * seen or replicas != self._replicas:
            self._replicas = replicas
            if now - self._decided_at > STALE_SECONDS:
                self.limit = without_trial(self.limit)
            self._start_window()
        if self.limit.fallback and self.limit.trial is Trial.LEAP_UP and self._mixed(now):
            self.limit = without_trial(self.limit)
            self._start_window()
        if self._answers < self._window_start:
            return
        if not self._marks:
            self._marks, self._window_start, self._slack_answers = [now], self._answers, 0
        enough = max(ANSWERS, WINDOW_TURNS * self.limit.value * replicas)
        if self.limit.noise > QUIET_NOISE:
            enough *= min(LONGEST_WINDOW, round((self.limit.noise / QUIET_NOISE) ** 2))
        answers, seconds = self._answers - self._window_start, now - self._marks[0]
        if seconds > 0.0 and answers >= enough * len(self._marks) // MARKS:
            self._marks.append(now)
            if self._hopeless(answers / seconds / replicas):
                enough = 0
        if (answers >= enough and seconds >= SHORT_SECONDS) or (
            answers >= FEW_ANSWERS and seconds >= LONG_SECONDS
        ):
            self._end_window(answers / seconds / replicas, replicas, now)

    def _hopeless(self, rate: float) -> bool:
        """Return whether a trial has clearly failed before its window is over. Requests suffer for
        as long as it lasts."""
        if not self.limit.fallback or len(self._marks) <= HOPELESS_MARKS:
            return False
        noise = max(self.limit.noise, _noise(self._marks))
        return not pays(self.limit, rate * (1.0 + HOPELESS_NOISE * noise), self._bounds.workers)

    def _end_window(self, rate: float, replicas: int, now: float) -> None:
        """Draw the conclusion from a complete window."""
        mixed = self._mixed(now)
        window = Window(
            rate=rate,
            latency=self.latency,
            least=self._least_of_late(now),
            noise=_noise(self._marks),
            floor=1 if mixed else max(1, prompt_limit(self.rate) // replicas),
            urgent=mixed,
        )
        before = self.limit
        self.limit = after_window(before, window, self._bounds.workers)
        self._decided_at = now
        if self.limit.value == before.value:
            self._marks, self._window_start, self._slack_answers = [now], self._answers, 0
        else:
            self._start_window()

    def _start_window(self) -> None:
        """Start the next window once the requests in flight have left: they started under other
        conditions."""
        self._marks, self._window_start, self._slack_answers = [], self._answers + self.in_flight, 0

    def _mixed(self, now: float) -> bool:
        """Return whether there are requests of several classes."""
        since = now - MEMORY_SECONDS
        return sum(seen > since for seen in self._last_seen) > 1

    def _least_of_late(self, now: float) -> float:
        """Return the least latency seen lately."""
        least = min(self._least, self._least_before)
        if now - self._least_since > LEAST_SECONDS:
            self._least_before, self._least = self._least, math.inf
            self._least_since = now
        return least


def _noise(marks: list[float]) -> float:
    """Return the relative standard error of a rate, given times between which equal numbers of
    events lie."""
    parts = [after - before for before, after in itertools.pairwise(marks)]
    mean = sum(parts) / len(parts) if parts else 0.0
    if len(parts) < 2 or not mean:
        return 0.0
    variance = sum((part - mean) ** 2 for part in parts) / (len(parts) - 1)
    return math.sqrt(variance / len(parts)) / mean
