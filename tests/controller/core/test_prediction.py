"""What is used by habit is forecast, what is used at random or no longer is not."""

import json
import random
import tracemalloc
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.controller.core.entities import Unit
from services.controller.core.prediction import (
    DAYS,
    HORIZON,
    LOOKS,
    THRESHOLD,
    Forecast,
    Patterns,
)

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
MONDAY = 20458 * DAY  # 5 January 2026
SOON = 2 * MINUTE
UNIT = Unit("report", 1)


def at(day: int, hour: float) -> float:
    return MONDAY + day * DAY + hour * HOUR


def learned(*times: float, unit: Unit = UNIT) -> Patterns:
    patterns = Patterns()
    for wall in times:
        patterns.used(unit, wall)
    return patterns


def ninth_hours(days: Iterable[int]) -> list[float]:
    """Uses at five past nine, give or take three minutes."""
    return [at(day, 9) + 300 + (day * 7 % 13 - 6) * 30 for day in days]


def before_nine(patterns: Patterns, day: int) -> list[Forecast]:
    return patterns.forecast(at(day, 9) - MINUTE, SOON)


def episodes(
    uses: dict[Unit, list[float]], days: int, step: float = 2 * MINUTE
) -> Iterator[tuple[bool, Forecast]]:
    """Every stretch of time in which a unit is forecast; whether a use ended it."""
    patterns, running = Patterns(), dict[Unit, Forecast]()
    left = sorted(((wall, unit) for unit, times in uses.items() for wall in times), reverse=True)
    wall = MONDAY
    while wall < MONDAY + days * DAY:
        while left and left[-1][0] <= wall:
            when, unit = left.pop()
            patterns.used(unit, when)
            if unit in running:
                yield True, running.pop(unit)
        now = {forecast.unit: forecast for forecast in patterns.forecast(wall, SOON)}
        for unit in running.keys() - now.keys():
            yield False, running.pop(unit)
        running = now | running
        wall += step


def poisson(draw: random.Random, mean: float, days: int) -> list[float]:
    times = [MONDAY + draw.expovariate(1 / mean)]
    while times[-1] < MONDAY + days * DAY:
        times.append(times[-1] + draw.expovariate(1 / mean))
    return times


class TestPeriodic:
    @pytest.mark.parametrize("period", [10 * MINUTE, HOUR, 6 * HOUR])
    def test_a_job_is_forecast_after_a_few_runs(self, period: float) -> None:
        patterns = Patterns()
        forecast = []
        for run in range(8):
            start = MONDAY + run * period + run * 17 % 7  # seconds late
            forecast.append(bool(patterns.forecast(start - MINUTE, SOON)))
            patterns.used(UNIT, start)
        assert forecast == [False] * 5 + [True] * 3

    def test_it_is_forecast_about_when_it_is_due_and_not_between(self) -> None:
        patterns = learned(*(MONDAY + run * HOUR for run in range(6)))
        due = MONDAY + 6 * HOUR
        said = [m for m in range(-55, 50) if patterns.forecast(due + m * MINUTE, SOON)]
        assert said == list(range(-8, 7))  # a tenth of the period, and two minutes ahead

    def test_a_use_ends_the_forecast_until_the_next_is_due(self) -> None:
        patterns = learned(*(MONDAY + run * HOUR for run in range(6)))
        due = MONDAY + 6 * HOUR
        assert patterns.forecast(due - MINUTE, SOON)
        patterns.used(UNIT, due)
        assert patterns.forecast(due + MINUTE, SOON) == []
        assert patterns.forecast(due + 59 * MINUTE, SOON)

    def test_a_stopped_job_is_forecast_at_most_twice_more(self) -> None:
        patterns = learned(*(MONDAY + run * HOUR for run in range(12)))
        said = [
            [one.probability for one in patterns.forecast(MONDAY + run * HOUR, SOON)]
            for run in range(12, 24)
        ]
        assert [len(found) for found in said] == [1, 1] + [0] * 10
        assert said[1] < said[0]

    def test_after_days_of_it_a_stopped_job_is_no_daily_habit_for_long(self) -> None:
        runs = [MONDAY + run * HOUR + 7 * MINUTE for run in range(10 * 24)]
        patterns = learned(*runs)
        wall, said = runs[-1], 0
        while wall < runs[-1] + 4 * DAY:
            wall += 5 * MINUTE
            found = bool(patterns.forecast(wall, SOON))
            said += found
            assert not (found and wall > runs[-1] + 6 * HOUR)
        assert said

    def test_one_missed_run_is_forgiven(self) -> None:
        patterns = learned(*(MONDAY + run * HOUR for run in range(12) if run != 9))
        assert patterns.forecast(MONDAY + 12 * HOUR, SOON)

    def test_another_period_is_learned_anew(self) -> None:
        hourly = [MONDAY + run * HOUR for run in range(10)]
        quick = [hourly[-1] + run * 20 * MINUTE for run in range(1, 7)]
        patterns = learned(*hourly, *quick)
        (forecast,) = patterns.forecast(quick[-1] + 19 * MINUTE, SOON)
        assert forecast.reason.startswith("used every 20 min in 6 of the last 7 times")

    def test_uses_within_a_minute_are_one_visit(self) -> None:
        burst = (0.0, 20.0, 70.0, 125.0)
        patterns = learned(*(MONDAY + run * HOUR + late for run in range(6) for late in burst))
        (forecast,) = patterns.forecast(MONDAY + 6 * HOUR, SOON)
        assert forecast.reason == (
            "used every 60 min in 5 of the last 5 times, next at about 06:00 UTC"
        )

    def test_what_is_used_every_few_minutes_is_not_forecast(self) -> None:
        patterns = Patterns()
        for step in range(int(2 * DAY / (4 * MINUTE))):
            wall = MONDAY + step * 4 * MINUTE
            assert patterns.forecast(wall, SOON) == []
            patterns.used(UNIT, wall)


class TestDaily:
    def test_a_daily_use_is_forecast_before_it_and_at_no_other_time(self) -> None:
        patterns = learned(*ninth_hours(range(7)))
        (forecast,) = before_nine(patterns, 7)
        assert forecast.unit == UNIT
        assert forecast.probability > 0.75
        assert forecast.reason == "used on 7 of the last 7 days between 09:00 and 09:15 UTC"
        said = [m for m in range(24 * 60) if patterns.forecast(at(7, 0) + m * MINUTE, SOON)]
        assert said == list(range(9 * 60 - 2, 9 * 60 + 15))

    def test_it_takes_three_days(self) -> None:
        days = ninth_hours(range(3))
        assert before_nine(learned(*days[:1]), 1) == []
        assert before_nine(learned(*days[:2]), 2) == []
        assert before_nine(learned(*days), 3)

    def test_once_it_was_used_it_is_not_forecast_that_day(self) -> None:
        patterns = learned(*ninth_hours(range(7)))
        patterns.used(UNIT, at(7, 9) + MINUTE)
        assert [m for m in range(2, 60) if patterns.forecast(at(7, 9) + m * MINUTE, SOON)] == []

    def test_it_fades_when_it_stops(self) -> None:
        patterns = learned(*ninth_hours(range(28)))
        said = [[one.probability for one in before_nine(patterns, day)] for day in range(28, 35)]
        assert [len(found) for found in said] == [1, 1, 1, 0, 0, 0, 0]
        assert said[0] > said[1] > said[2]

    def test_what_is_used_on_weekdays_is_not_forecast_on_weekends(self) -> None:
        workdays = [day for day in range(28) if day % 7 < 5]
        patterns = learned(*ninth_hours(workdays[:10]))
        for day in range(14, 28):
            found = before_nine(patterns, day)
            assert bool(found) == (day in workdays), day
            if found:
                assert "weekdays between 09:00" in found[0].reason
                patterns.used(UNIT, at(day, 9) + 5 * MINUTE)

    def test_what_is_used_on_weekends_is_not_forecast_on_weekdays(self) -> None:
        patterns = learned(*ninth_hours(day for day in range(28) if day % 7 >= 5))
        assert [day for day in range(28, 35) if before_nine(patterns, day)] == [33, 34]

    def test_what_is_used_on_mondays_is_forecast_on_mondays(self) -> None:
        patterns = learned(*ninth_hours([0, 7, 14, 21]))
        assert [day for day in range(22, 29) if before_nine(patterns, day)] == [28]
        (forecast,) = before_nine(patterns, 28)
        assert forecast.reason == "used on 4 of the last 4 Mondays between 09:00 and 09:15 UTC"

    def test_a_habit_on_the_edge_of_two_slots_is_seen_across_both(self) -> None:
        patterns = learned(*(at(day, 9) + (300 if day % 2 else -300) for day in range(12)))
        (forecast,) = patterns.forecast(at(12, 8.75), SOON)
        assert forecast.reason == "used on 12 of the last 12 days between 08:45 and 09:15 UTC"
        assert before_nine(patterns, 12) == [forecast]

    def test_office_hours_are_forecast_when_they_begin(self) -> None:
        patterns = Patterns()
        for day in (day for day in range(21) if day % 7 < 5):
            for step in range(int(10 * HOUR / (5 * MINUTE))):
                patterns.used(UNIT, at(day, 8) + step * 5 * MINUTE)
        (forecast,) = patterns.forecast(at(21, 8) - MINUTE, SOON)
        assert "weekdays between 08:00 and 08:15" in forecast.reason
        assert patterns.forecast(at(20, 10), SOON) == []

    def test_how_far_ahead_is_the_callers_choice_up_to_an_hour(self) -> None:
        days = ninth_hours(range(7))
        for minutes, within in ((14, 15), (45, 50), (59, 24 * 60)):
            wall = at(7, 9) - minutes * MINUTE
            assert learned(*days).forecast(wall, within * MINUTE)
            assert learned(*days).forecast(wall, (minutes - 1) * MINUTE) == []
        assert learned(*days).forecast(at(7, 9) - HORIZON - MINUTE, DAY) == []


class TestRandomUse:
    def test_it_gives_few_forecasts(self) -> None:
        """At most one in ten model-days, whatever the rate: from a use each 5 minutes to one each
        day. Whatever they are worth, they cost no more than that."""
        draw, days = random.Random(7), 21
        means = [5 * MINUTE, 10 * MINUTE, 20 * MINUTE, 40 * MINUTE, HOUR, 2 * HOUR, 6 * HOUR, DAY]
        for mean in means:
            uses = {Unit(f"m{n}", 1): poisson(draw, mean, days) for n in range(6)}
            assert len(list(episodes(uses, days, 5 * MINUTE))) <= 0.1 * len(uses) * days, mean

    def test_among_models_with_habits_nine_of_ten_forecasts_come_true(self) -> None:
        draw, days = random.Random(11), 21
        uses = {}
        for n in range(8):
            hour = draw.uniform(0.5, 23.0)
            start, period = MONDAY + draw.uniform(0, HOUR), draw.choice([30 * MINUTE, HOUR])
            uses[Unit("daily", n)] = [at(day, hour) + draw.gauss(0, 60) for day in range(days)]
            uses[Unit("periodic", n)] = [
                start + run * period + draw.gauss(0, 30) for run in range(int(days * DAY / period))
            ]
            uses[Unit("random", n)] = poisson(draw, draw.choice([HOUR, 6 * HOUR]), days)
        found = list(episodes(uses, days))
        for model in ("daily", "periodic"):
            mine = [good for good, one in found if one.unit.model == model]
            visits = sum(len(times) for unit, times in uses.items() if unit.model == model)
            assert sum(mine) >= 0.9 * len(mine)
            assert sum(mine) >= 0.75 * visits, model
        assert sum(good for good, _ in found) >= 0.9 * len(found)

    def test_what_is_always_used_and_what_is_used_once_is_not_forecast(self) -> None:
        always, once = Unit("always", 1), Unit("once", 1)
        patterns = Patterns()
        patterns.used(once, at(0, 9))
        wall = MONDAY
        while wall < MONDAY + 8 * DAY:
            patterns.used(always, wall)
            wall += MINUTE / 2
            if wall % (5 * MINUTE) == 0:
                assert patterns.forecast(wall, SOON) == []


class TestMany:
    def test_the_likeliest_comes_first(self) -> None:
        patterns = Patterns()
        for day in range(14):
            patterns.used(Unit("b", 1), at(day, 9.1))
            patterns.used(Unit("a", 2), at(day, 9.1))
            if day not in (8, 12):
                patterns.used(Unit("a", 1), at(day, 9.1))
        units = [forecast.unit for forecast in before_nine(patterns, 14)]
        assert units == [Unit("a", 2), Unit("b", 1), Unit("a", 1)]

    def test_a_unit_with_two_habits_is_forecast_once(self) -> None:
        patterns = learned(*(MONDAY + run * HOUR + 5 * MINUTE for run in range(8 * 24)))
        assert [one.unit for one in patterns.forecast(at(8, 0) + 4 * MINUTE, SOON)] == [UNIT]

    def test_a_forgotten_unit_is_not_forecast(self) -> None:
        patterns = learned(*ninth_hours(range(7)))
        hourly = Unit("hourly", 1)
        for run in range(6):
            patterns.used(hourly, at(7, 3 + run))
        assert {one.unit for one in before_nine(patterns, 7)} == {UNIT, hourly}
        patterns.forget(UNIT)
        patterns.forget(hourly)
        patterns.forget(Unit("never seen", 1))
        assert before_nine(patterns, 7) == []
        assert patterns.dump() == []

    def test_more_units_than_a_call_looks_at_are_found_by_the_next_calls(self) -> None:
        units = [Unit("m", version) for version in range(LOOKS + LOOKS // 2)]
        patterns = Patterns()
        for day in range(4):
            for unit in units:
                patterns.used(unit, at(day, 9.1))
        assert len(patterns.forecast(at(4, 9), SOON)) == LOOKS
        assert len(patterns.forecast(at(4, 9), SOON)) == len(units)

    def test_they_are_looked_at_ahead_of_time(self) -> None:
        units = [Unit("m", version) for version in range(LOOKS + LOOKS // 2)]
        patterns = Patterns()
        for day in range(4):
            for unit in units:
                patterns.used(unit, at(day, 9.1))
        for minute in range(4):
            assert patterns.forecast(at(4, 8.8) + minute * MINUTE, SOON) == []
        assert len(before_nine(patterns, 4)) == len(units)

    def test_a_unit_takes_about_a_kilobyte_and_nothing_once_it_is_not_used(self) -> None:
        draw, units = random.Random(3), [Unit("m", version) for version in range(100)]
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            patterns = Patterns()
            for day in range(DAYS):
                for unit in units:
                    for hour in sorted(draw.uniform(0, 24) for _ in range(6)):
                        patterns.used(unit, at(day, hour))
                patterns.forecast(at(day + 1, 0), SOON)
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert len(patterns.dump()) == len(units)
        assert (after - before) / len(units) < 1100
        patterns.forecast(at(2 * DAYS + 1, 0), SOON)
        assert patterns.dump() == []


USES = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from([1.0, 59.0, 600.0, 3600.0, DAY, 7 * DAY])),
    max_size=60,
)
WALLS = st.floats(-1e12, 1e12)


def walls(uses: Sequence[tuple[int, float]]) -> Iterator[tuple[Unit, float]]:
    wall = MONDAY
    for version, gap in uses:
        wall += gap
        yield Unit("m", version), wall


def told(uses: Sequence[tuple[int, float]], patterns: Patterns) -> list[list[Forecast]]:
    said = []
    for unit, wall in walls(uses):
        said.append(patterns.forecast(wall - MINUTE, SOON))
        patterns.used(unit, wall)
    return said


class TestProperties:
    @given(USES)
    def test_the_same_uses_give_the_same_forecasts(self, uses: list[tuple[int, float]]) -> None:
        assert told(uses, Patterns()) == told(uses, Patterns())

    @given(USES, st.floats(0, DAY))
    def test_what_is_kept_elsewhere_forecasts_the_same(
        self, uses: list[tuple[int, float]], later: float
    ) -> None:
        patterns, copy = Patterns(), Patterns()
        for unit, wall in walls(uses):
            patterns.used(unit, wall)
        copy.load(json.loads(json.dumps(patterns.dump())))
        assert copy.dump() == patterns.dump()
        wall = MONDAY + sum(gap for _, gap in uses) + later
        assert copy.forecast(wall, SOON) == patterns.forecast(wall, SOON)

    @given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), WALLS), max_size=40))
    def test_whatever_the_clock_says_it_holds(self, steps: list[tuple[int, int, float]]) -> None:
        patterns = Patterns()
        for what, version, wall in steps:
            unit = Unit("m", version)
            if what == 0:
                patterns.forget(unit)
            elif what == 1:
                self.check(patterns.forecast(wall, abs(wall) % (2 * HORIZON)))
            else:
                patterns.used(unit, wall)
        assert len(patterns.dump()) <= 3

    @given(USES, st.floats(-3 * DAY, 3 * DAY), st.floats(-HOUR, 2 * HORIZON))
    def test_probabilities_are_such(
        self, uses: list[tuple[int, float]], shift: float, within: float
    ) -> None:
        patterns = Patterns()
        for unit, wall in walls(uses):
            self.check(patterns.forecast(wall + shift, within))
            patterns.used(unit, wall)

    def check(self, found: list[Forecast]) -> None:
        assert all(THRESHOLD <= one.probability <= 1 and one.reason for one in found)
        assert all(a.probability >= b.probability for a, b in pairwise(found))
        assert len({one.unit for one in found}) == len(found)
