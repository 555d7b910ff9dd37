"""Who of those that want one model version may begin now, who waits, and who had better not.

A `Gate` is in front of all replicas of a version. It lets through what they work well on
(`limit.py`), keeps the rest in order (`queues.py`), and refuses at once whoever would wait in vain.
It knows neither futures nor a clock: what it decides is carried out by its owner.
"""

import enum
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from services.router.core.admission.limit import Limit, Trial, Window, back, measured, pays, prompt
from services.router.core.admission.priority import Priority
from services.router.core.admission.queues import AGING_TURNS, Queue, Waiting
from services.router.core.admission.rate import Meter

QUEUE_REQUESTS: Final = 1000
QUEUE_BYTES: Final = 512 << 20
QUEUE_SECONDS: Final = 60.0
MEMORY_SECONDS: Final = 10.0  # a class that nobody was of for so long is not reckoned with
LEAST_SECONDS: Final = 300.0  # the least latency is that of the last one to two times so long
STALE_SECONDS: Final = 5.0  # a trial that could not be measured for so long is given up
IDLE_SECONDS: Final = 60.0
RECKONED_SECONDS: Final = 0.005  # that a capacity holds while nobody waits
COLD_AT_ONCE: Final = 16  # ask the Controller for one version; the others wait behind them
COLD_MARGIN: Final = 0.02  # seconds before its deadline at which a cold one hears why
CAUTION: Final = 1.25  # times what is expected to take until the answer: it is an estimate
SHORTEST_RETRY: Final = 0.1  # seconds
WEIGHT: Final = 1 / 16  # of the newest in a moving average
# A window is over after so many answers and seconds, or for a slow model after fewer in more. And
# after so many times what is in flight: of a model that batches, answers come many at once.
ANSWERS, SHORT_SECONDS = 32, 0.1
TURNS: Final = 4
FEW_ANSWERS, LONG_SECONDS = 8, 1.0
MARKS: Final = 8  # parts of a window, whose differences are the noise
SLACK: Final = 0.25  # of the answers in a window
SOON_MARKS: Final = 2  # parts after which a trial may be given up
PLAIN: Final = 2.0  # times the noise, by which it must miss what it ought to give
QUIET: Final = 0.05  # noise beyond which a window takes longer, at most so many times
MOST_WINDOWS: Final = 4


class Refusal(enum.Enum):
    """FULL       as many wait as may, and none of them is to yield.
    LATE       its turn would come too late for its deadline.
    EXPIRED    it waited for as long as it made sense.
    DISPLACED  it waited, and a more urgent one needed the place."""

    FULL = "queue_full"
    LATE = "too_late"
    EXPIRED = "expired"
    DISPLACED = "displaced"


class Refused(NamedTuple):
    """`retry_after`: seconds until the queue as it is will have been worked off."""

    refusal: Refusal
    retry_after: float


@dataclass(slots=True)
class Bounds:
    """For all gates of a process. `requests`: that wait for one version. `size`: bytes of all that
    wait; `used`: of these. `patience`: seconds that one without a deadline waits. The first two are
    divided among `workers`."""

    requests: int = QUEUE_REQUESTS
    size: int = QUEUE_BYTES
    patience: float = QUEUE_SECONDS
    workers: int = 1
    used: int = 0

    def share(self, number: int) -> int:
        return max(1, number // self.workers)


class Gate:
    """`fixed`: requests in flight on one replica, divided among workers; None: as many as pay.
    Times in seconds. `latency`: mean time at Triton of late, 0 while there is none. `waiting`:
    how many are in the queue."""

    def __init__(self, bounds: Bounds, fixed: int | None = None) -> None:
        self._bounds = bounds
        self._fixed = fixed
        self.limit = Limit()
        self.queue = Queue()
        self.in_flight = 0
        self.latency = 0.0
        self.waiting = 0
        self._busy = 0.0  # mean number in flight of late
        self._least = self._least_before = math.inf
        self._least_since = -math.inf
        self._seen = [-math.inf] * len(Priority)
        self._overtook = [Meter() for _ in Priority]
        self._answers = 0
        self._slack = 0  # answers in the window after which nobody waited
        self._replicas = 0
        self._from = 0  # answers at the window's begin, or before which it doesn't begin
        self._marks: list[float] = []  # when the window began, and each of its parts ended
        self._tried = -math.inf
        self._room_is = 0
        self._room_for = (Priority.NORMAL, 0)
        self.divide()

    def divide(self) -> None:
        """The number of workers has changed."""
        if self._fixed is not None:
            self.limit = Limit(value=self._bounds.share(self._fixed))
        self._room_until = -math.inf

    # --- in and out -------------------------------------------------------------------------------

    def enter(self, priority: Priority, replicas: int, now: float) -> bool:
        """Whether a request may begin at once; it is in flight from then on, until `leave`."""
        self._seen[priority] = now
        in_flight = self.in_flight
        if self.waiting:
            if self.queue.any_up_to(priority) or in_flight >= self.capacity(
                priority, replicas, now
            ):
                return False
            self._overtook[priority].add(now)
        elif in_flight >= self.limit.value * replicas and in_flight >= self._room(
            priority, replicas, now
        ):
            return False
        self.in_flight = in_flight + 1
        return True

    def force(self) -> None:
        """A request begins whatever the limit says."""
        self.in_flight += 1

    def leave(self, seconds: float | None) -> None:
        """A request has ended. `seconds`: at Triton, None if they say nothing of the model."""
        if seconds is not None:
            if self._answers:
                self.latency += (seconds - self.latency) * WEIGHT
                self._busy += (self.in_flight - self._busy) * WEIGHT
            else:
                self.latency, self._busy = seconds, self.in_flight
            if seconds < self._least:
                self._least = seconds
            self._answers += 1
        self.in_flight -= 1
        if not self.waiting:
            self._slack += 1

    def offer(
        self, waiting: Waiting, deadline: float, replicas: int, now: float
    ) -> tuple[Refused | None, Waiting | None]:
        """Put one that could not enter in the queue: why it is refused, None if it waits now, and
        who had to yield to it. Sets `waiting.until`, from its `deadline`."""
        if replicas:
            behind = self.queue.ahead(waiting.priority, waiting.tenant)
            wait = self._wait(waiting.priority, behind, now)
            if now + CAUTION * (wait + self.latency) > deadline:
                return self.refused(Refusal.LATE, waiting.priority, now), None
        displaced = None
        bounds = self._bounds
        if not self._fits(waiting.size, 0, 0):
            displaced = self.queue.yielding(waiting.priority, waiting.tenant)
            if displaced is None or not self._fits(waiting.size, displaced.size, 1):
                return self.refused(Refusal.FULL, waiting.priority, now), None
            self.remove(displaced)
        waiting.until = deadline - (CAUTION * self.latency if replicas else COLD_MARGIN)
        self.queue.put(waiting)
        self.waiting += 1
        bounds.used += waiting.size
        self._overtook[waiting.priority].add(now)
        return None, displaced

    def remove(self, waiting: Waiting) -> None:
        """It does not wait any more. Raises KeyError if it did not."""
        self.queue.remove(waiting)
        self.waiting -= 1
        self._bounds.used -= waiting.size

    def release(self, replicas: int, now: float) -> Iterator[tuple[Waiting, Refused | None]]:
        """Those whose turn has come: they are in flight now, or refused as it is too late."""
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
        """How many may be in flight for one of the class to begin.

        As long as more urgent ones come, only what the replicas need to be busy: another one at
        Triton would stand before the next urgent one. The most urgent class may have more, and what
        is prompt: it has nobody to wait for here, and must not suffer from a limit that is too low,
        or on trial.
        """
        if not replicas:
            return self._bounds.share(COLD_AT_ONCE)
        value = self.limit.value
        if self._fixed is not None:
            return value * replicas
        since = now - MEMORY_SECONDS
        for seen in self._seen[:priority]:
            if seen > since:
                return value * replicas
        if any(seen > since for seen in self._seen[priority + 1 :]):
            value = 2 * max(value, self.limit.held) + 1
        return max(value * replicas, prompt(self.rate))

    def _room(self, priority: Priority, replicas: int, now: float) -> int:
        """`capacity`, reckoned anew only now and then: a fast model has more in flight than its
        limit most of the time, and yet nobody has to wait."""
        if now >= self._room_until or self._room_for != (priority, replicas):
            self._room_for = priority, replicas
            self._room_until = now + RECKONED_SECONDS
            self._room_is = self.capacity(priority, replicas, now)
        return self._room_is

    @property
    def rate(self) -> float:
        """Answers a second of all replicas, by Little's law."""
        return self._busy / self.latency if self.latency else 0.0

    def idle(self, now: float) -> bool:
        """Whether nothing is lost when it is forgotten."""
        return not self.in_flight and not self.waiting and max(self._seen) < now - IDLE_SECONDS

    # --- within -----------------------------------------------------------------------------------

    def _fits(self, size: int, freed: int, places: int) -> bool:
        bounds = self._bounds
        return self.waiting - places < bounds.share(
            bounds.requests
        ) and bounds.used - freed + size <= bounds.share(bounds.size)

    def _wait(self, priority: Priority, behind: int, now: float) -> float:
        """Seconds until the turn of one of the class, `behind` others of it and above."""
        rate = self.rate
        if not rate:
            return 0.0
        above = sum(self.queue.count(one) for one in Priority if one < priority)
        aged = (above + AGING_TURNS * (behind - above)) / rate
        left = rate - sum(meter.rate(now) for meter in self._overtook[:priority])
        return min(aged, behind / left) if left > 0.0 else aged

    def refused(self, refusal: Refusal, priority: Priority, now: float) -> Refused:
        """For one of the class."""
        backlog = sum(self.queue.count(one) for one in Priority if one <= priority)
        return Refused(refusal, max(SHORTEST_RETRY, self._wait(priority, backlog, now)))

    def _measure(self, replicas: int, now: float) -> None:
        """Called with a queue, so that all that may be in flight is or will be at once. Where that
        was not so for much of a window, nothing can be learned from it."""
        seen = max(ANSWERS, self._answers - self._from)
        if self._slack > SLACK * seen or replicas != self._replicas:
            self._replicas = replicas
            if now - self._tried > STALE_SECONDS:
                self.limit = back(self.limit)
            self._begin()
        if self.limit.held and self.limit.trial is Trial.LEAP_UP and self._mixed(now):
            self.limit = back(self.limit)
            self._begin()
        if self._answers < self._from:
            return
        if not self._marks:
            self._marks, self._from, self._slack = [now], self._answers, 0
        enough = max(ANSWERS, TURNS * self.limit.value * replicas)
        if self.limit.noise > QUIET:
            enough *= min(MOST_WINDOWS, round((self.limit.noise / QUIET) ** 2))
        answers, seconds = self._answers - self._from, now - self._marks[0]
        if seconds > 0.0 and answers >= enough * len(self._marks) // MARKS:
            self._marks.append(now)
            if self._hopeless(answers / seconds / replicas):
                enough = 0
        if (answers >= enough and seconds >= SHORT_SECONDS) or (
            answers >= FEW_ANSWERS and seconds >= LONG_SECONDS
        ):
            self._decide(answers / seconds / replicas, replicas, now)

    def _hopeless(self, rate: float) -> bool:
        """Whether it is plain before the window is over that a trial is in vain: as long as it is
        on, somebody has to bear it."""
        if not self.limit.held or len(self._marks) <= SOON_MARKS:
            return False
        noise = max(self.limit.noise, _noise(self._marks))
        return not pays(self.limit, rate * (1.0 + PLAIN * noise), self._bounds.workers)

    def _decide(self, rate: float, replicas: int, now: float) -> None:
        mixed = self._mixed(now)
        window = Window(
            rate=rate,
            latency=self.latency,
            least=self._least_of_late(now),
            noise=_noise(self._marks),
            floor=1 if mixed else max(1, prompt(self.rate) // replicas),
            urgent=mixed,
        )
        before = self.limit
        self.limit = measured(before, window, self._bounds.workers)
        self._tried = now
        if self.limit.value == before.value:
            self._marks, self._from, self._slack = [now], self._answers, 0
        else:
            self._begin()

    def _begin(self) -> None:
        """The next window, when what is in flight now has gone: it began under other conditions."""
        self._marks, self._from, self._slack = [], self._answers + self.in_flight, 0

    def _mixed(self, now: float) -> bool:
        """Whether there are requests of several classes."""
        since = now - MEMORY_SECONDS
        return sum(seen > since for seen in self._seen) > 1

    def _least_of_late(self, now: float) -> float:
        least = min(self._least, self._least_before)
        if now - self._least_since > LEAST_SECONDS:
            self._least_before, self._least = self._least, math.inf
            self._least_since = now
        return least


def _noise(marks: list[float]) -> float:
    """The relative standard error of a rate, from times between which there were equally many."""
    parts = [after - before for before, after in itertools.pairwise(marks)]
    mean = sum(parts) / len(parts) if parts else 0.0
    if len(parts) < 2 or not mean:
        return 0.0
    variance = sum((part - mean) ** 2 for part in parts) / (len(parts) - 1)
    return math.sqrt(variance / len(parts)) / mean
