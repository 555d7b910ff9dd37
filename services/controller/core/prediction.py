"""Forecasts of when a model will be used next, learned from when it was used.

Two habits are looked for. *Daily*: on enough of the last days (or weekdays, or Mondays) the model
was used in this quarter of an hour. *Periodic*: the gaps between its visits are nearly the same.
Both are rows of trials, the newest first, each a hit or a miss (a day with a use or without, a gap
of the period's length or another). A row is a habit if it

- would hardly come about by use at random. By Chernoff's bound, k hits of n, where each comes by
  chance with probability q, have a probability of at most exp(-n · KL(k/n, q)), KL being the
  relative entropy of two Bernoulli distributions (Hoeffding 1963, "Probability inequalities for
  sums of bounded random variables", theorem 1). So a model that is used all the time has no habit;
- is likely to go on. The probability is the m-estimate of the hits, drawn to q (Cestnik 1990,
  "Estimating probabilities: a crucial task in machine learning"), where each trial counts less than
  the one after it. So old habits fade.

Time is wall-clock seconds since the epoch; days, weekdays and times of day are those of UTC.
"""

import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from services.controller.core.entities import Unit

THRESHOLD = 0.5
PROVEN = math.log(1000)  # a habit may come about by chance once in 1000 at most
UNLIKE = math.log(20)  # the same of a difference between kinds of days
DECAY = 0.5 ** (1 / 3)  # of a trial, with each that follows: three misses end the best of habits
PRIOR = 1.0  # trials: what q weighs in the m-estimate
MISSES = 4  # daily forecasts that come to nothing before there are none until the next use

VISIT_GAP = 60.0  # seconds: uses closer than this are one visit
SLOT = 900.0  # seconds
SLOTS = 96  # a day
DAYS = 30  # remembered; 30 bits are one digit of a Python integer
IDLE = 2 * SLOT  # seconds: a unit used within them needs no daily forecast
HORIZON = 3600.0  # seconds: no forecast looks further ahead
LOOKS = 2000  # units a call, for either habit; a call every 15 s is enough for 100,000 a slot
GAPS = 7  # from visit to visit, remembered
MIN_GAPS = 4  # fewer prove no period
MIN_PERIOD = 300.0  # seconds: what is used more often is resident anyway
MAX_PERIOD = 43200.0  # seconds: longer ones are daily habits, which know weekends

_COLUMN = (1 << DAYS) - 1
_ROW = sum(1 << DAYS * slot for slot in range(SLOTS))
_WEEK = ("Mondays", "Tuesdays", "Wednesdays", "Thursdays", "Fridays", "Saturdays", "Sundays")


def _kinds(today: int) -> list[tuple[str, list[int]]]:
    """The kinds of days that a day of the week (Monday is 0) belongs to, each with how many days
    ago the others of its kind were."""
    ago = range(1, DAYS)
    half = [days for days in ago if ((today - days) % 7 < 5) == (today < 5)]
    name = "weekdays" if today < 5 else "weekend days"
    return [("days", [*ago]), (name, half), (_WEEK[today], [*range(7, DAYS, 7)])]


_KINDS = [_kinds(today) for today in range(7)]

Row = tuple[str, int, int, int, int, float, float, list[float]]


@dataclass(frozen=True, slots=True)
class Forecast:
    """A use that is expected. `probability` is that of a use within the time that `reason`
    names."""

    unit: Unit
    probability: float
    reason: str


class _Expected(NamedTuple):
    opens: float
    closes: float
    forecast: Forecast


@dataclass(slots=True)
class _Habit:
    """The uses of a unit."""

    #: The day of the first use, counted from the epoch.
    first: int
    #: The slot of the last use, counted from the epoch.
    slot: int
    #: DAYS bits for each slot of the day, the lowest for the day of `slot`, the next for the day
    #: before.
    history: int
    #: When the last visit began.
    start: float
    #: When the last use was.
    last: float
    #: Seconds from visit to visit, the newest first.
    gaps: tuple[float, ...] = ()
    #: When its period is to be looked at.
    queued: float = math.inf
    #: Daily forecasts since the last use.
    missed: int = 0


class Patterns:
    """The habits of all units that were used in the last DAYS days.

    Each unit is looked at once a slot for its daily habits, and whenever its period suggests a use;
    at most LOOKS units a call for either habit."""

    def __init__(self) -> None:
        self._habits: dict[Unit, _Habit] = {}
        self._sweeps: dict[int, tuple[list[Unit], dict[Unit, _Expected]]] = {}  # to do, and found
        self._queue: list[tuple[float, Unit]] = []
        self._due: dict[Unit, _Expected] = {}

    def used(self, unit: Unit, wall: float) -> None:
        """Learn that a use began. For a unit in steady use a few calls a minute are enough."""
        slot = int(wall // SLOT)
        habit = self._habits.get(unit)
        if habit is None or slot < habit.slot - SLOTS:  # the clock was set back: learn anew
            self.forget(unit)
            self._habits[unit] = habit = _Habit(slot // SLOTS, slot, 0, wall, wall)
        if slot > habit.slot or not habit.history:
            days = min(slot // SLOTS - habit.slot // SLOTS, DAYS)
            if days > 0:
                kept = _ROW * (_COLUMN >> days << days)  # none moves into the bits of another slot
                habit.history = habit.history << days & kept
            habit.history |= 1 << slot % SLOTS * DAYS
            habit.slot = slot
        if not 0 <= wall - habit.last <= VISIT_GAP:
            if wall > habit.start:
                habit.gaps = (wall - habit.start, *habit.gaps[: GAPS - 1])
            habit.start = wall
            self._due.pop(unit, None)
            self._enqueue(unit, habit, wall + MIN_PERIOD - VISIT_GAP)
        habit.last = wall
        habit.missed = 0

    def forget(self, unit: Unit) -> None:
        """Forget a unit that is gone, or is to be learned anew."""
        self._habits.pop(unit, None)
        self._due.pop(unit, None)

    def forecast(self, wall: float, within: float) -> list[Forecast]:
        """The uses that are expected at a time that begins `within` so many seconds (HORIZON at
        most), is not over, and has not seen a use yet. The likeliest comes first, and none is below
        THRESHOLD."""
        horizon = wall + min(max(within, 0.0), HORIZON)
        found = self._daily(wall, horizon) + self._periodic(wall, horizon)
        best: dict[Unit, Forecast] = {}
        for one in sorted(found, key=lambda one: (-one.probability, one.unit)):
            best.setdefault(one.unit, one)
        return list(best.values())

    def dump(self) -> list[Row]:
        """The habits as plain data. The third integer of a row has DAYS · SLOTS bits."""
        return [
            (*unit, habit.first, habit.slot, habit.history, habit.start, habit.last, [*habit.gaps])
            for unit, habit in self._habits.items()
        ]

    def load(self, rows: Iterable[Row]) -> None:
        """Take over what `dump` returned, even after its way through JSON."""
        for model, version, first, slot, history, start, last, gaps in rows:
            unit = Unit(model, version)
            self._habits[unit] = _Habit(first, slot, history, start, last, tuple(gaps))
            self._enqueue(unit, self._habits[unit], last)

    def _daily(self, wall: float, horizon: float) -> list[Forecast]:
        first, last = int(wall // SLOT) - 1, int(horizon // SLOT)
        for slot in [slot for slot in self._sweeps if slot < first]:
            for unit in self._sweeps.pop(slot)[1]:
                if (habit := self._habits.get(unit)) and habit.last < slot * SLOT:
                    habit.missed += 1
        looks = LOOKS
        for slot in range(first + 1, last + 2):
            looks -= self._sweep(slot, looks)
        return [
            expected.forecast
            for slot in range(first, last + 1)
            for unit, expected in self._sweeps.get(slot, ([], {}))[1].items()
            if wall < expected.closes
            and (habit := self._habits.get(unit))
            and habit.missed < MISSES
            and not 0 <= wall - habit.last < IDLE
        ]

    def _sweep(self, slot: int, most: int) -> int:
        """Look at `most` of the units that are still to be looked at for the slot. Returns how
        many."""
        if slot not in self._sweeps:
            self._sweeps[slot] = list(self._habits), {}
        todo, found = self._sweeps[slot]
        looks = min(len(todo), most)
        for _ in range(looks):
            unit = todo.pop()
            habit = self._habits.get(unit)
            if habit and slot - habit.slot > DAYS * SLOTS:
                self.forget(unit)
            elif habit and (expected := _of_slot(unit, habit, slot)):
                found[unit] = expected
        return looks

    def _periodic(self, wall: float, horizon: float) -> list[Forecast]:
        for unit in [unit for unit, expected in self._due.items() if expected.closes < wall]:
            del self._due[unit]
            self._enqueue(unit, self._habits[unit], wall)
        for _ in range(LOOKS):
            if not self._queue or self._queue[0][0] > horizon:
                break
            when, unit = heapq.heappop(self._queue)
            habit = self._habits.get(unit)
            if habit is None or habit.queued != when:
                continue
            habit.queued = math.inf
            expected = _of_period(unit, habit, wall)
            if expected and expected.opens <= horizon:
                self._due[unit] = expected
            elif expected:
                self._enqueue(unit, habit, expected.opens)
        return [one.forecast for one in self._due.values() if one.opens <= horizon]

    def _enqueue(self, unit: Unit, habit: _Habit, when: float) -> None:
        if when < habit.queued and len(habit.gaps) >= MIN_GAPS:
            habit.queued = when
            heapq.heappush(self._queue, (when, unit))


def _evidence(trials: Sequence[int], chance: float) -> float:
    """The evidence against hits of probability `chance`: minus the logarithm of Chernoff's
    bound."""
    number, hits = len(trials), sum(trials)
    rows = (hits, number * chance), (number - hits, number * (1 - chance))
    return sum(seen * math.log(seen / mean) for seen, mean in rows if seen)


def _probability(trials: Sequence[int], chance: float) -> float:
    """The probability of one more hit after these trials; 0.0 where hits by `chance` explain
    them."""
    if sum(trials) <= len(trials) * chance or _evidence(trials, chance) < PROVEN:
        return 0.0
    weight, aged, total = 1.0, PRIOR * chance, PRIOR
    for hit in trials:
        aged += weight * hit
        total += weight
        weight *= DECAY
    return aged / total


def _of_slot(unit: Unit, habit: _Habit, slot: int) -> _Expected | None:
    """The use that a daily habit suggests for the slot; or for it and the next one, where the habit
    begins now in the one and now in the other."""
    day, column = divmod(slot, SLOTS)
    here = habit.history >> column * DAYS & _COLUMN
    after = habit.history >> (column + 1) * DAYS & _COLUMN
    if not here or (here | after).bit_count() < 3:  # two prove nothing, whatever days they are
        return None
    days = day - habit.first
    cells = SLOTS * min(max(days + 1, 1), DAYS)
    chance = min(habit.history.bit_count() / cells, 1 - 1 / SLOTS)
    shift = day - habit.slot // SLOTS
    here, after = (used << shift if shift >= 0 else used >> -shift for used in (here, after))
    best, slots = _of_days(here, day, days, chance), 1
    if after and _of_days(after, day, days, chance) is None:
        both = _of_days(here | after, day, days, 1 - (1 - chance) ** 2)
        if both and (best is None or both > best):
            best, slots = both, 2
    if best is None:
        return None
    opens, closes = slot * SLOT, (slot + slots) * SLOT
    reason = f"used on {best[1]} between {_clock(opens)} and {_clock(closes)} UTC"
    return _Expected(opens, closes, Forecast(unit, best[0], reason))


def _of_days(used: int, day: int, days: int, chance: float) -> tuple[float, str] | None:
    """The probability of a use on `day`, and the hits in words; None below THRESHOLD.

    `used` has a bit for each day, the lowest for `day`; `days` is for how many the unit is known.
    Of the kinds that `day` belongs to, the narrowest counts whose days are unlike those of the
    wider ones."""
    kind, trials, usual = "", [0], chance
    for name, ago in _KINDS[(day + 3) % 7]:  # the epoch began on a Thursday
        some = [used >> days_ago & 1 for days_ago in ago if days_ago <= days]
        if _evidence(some, usual) >= UNLIKE:
            kind, trials, usual = name, some, (sum(some) + 1) / (len(some) + 2)
    probability = _probability(trials, chance)
    if probability < THRESHOLD:
        return None
    return probability, f"{sum(trials)} of the last {len(trials)} {kind}"


def _of_period(unit: Unit, habit: _Habit, wall: float) -> _Expected | None:
    """The next use by the median gap, where each use that stayed away is a miss. A hit is a gap
    within a tenth of the median (a minute at least, a quarter of an hour at most). Of exponential
    gaps, those of use at random, sinh(ln 2 · tolerance / median) are hits."""
    gaps = sorted(habit.gaps)
    period = gaps[len(gaps) // 2]
    if not MIN_PERIOD <= period <= MAX_PERIOD:
        return None
    tolerance = min(max(period / 10, 60.0), SLOT)
    missed = max(int((wall - habit.start - tolerance) // period), 0)
    hits = [int(abs(gap - period) <= tolerance) for gap in habit.gaps]
    trials = [0] * min(missed, GAPS) + hits
    trials.remove(1)  # the median itself is a hit, and proves nothing
    probability = _probability(trials, math.sinh(math.log(2) * tolerance / period))
    if probability < THRESHOLD:
        return None
    due = habit.start + (missed + 1) * period
    every = f"every {period / 60:.0f} min in {sum(hits)} of the last {len(hits) + missed} times"
    reason = f"used {every}, next at about {_clock(due)} UTC"
    return _Expected(due - tolerance, due + tolerance, Forecast(unit, probability, reason))


def _clock(wall: float) -> str:
    return f"{int(wall // 3600) % 24:02}:{int(wall // 60) % 60:02}"
