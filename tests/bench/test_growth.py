"""What the growth bench takes for growth; no process is measured."""

import csv
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from bench.growth import plot, report
from bench.growth.samples import Sample
from bench.growth.trend import MOST, Tolerance, slope, trend

TOLERANCE = Tolerance(amount=5, share=0.02)
TIMES = [2.0 * number for number in range(300)]  # ten minutes
NOISE = random.Random(7)


def grows(value: Callable[[float], float], times: Sequence[float] = TIMES) -> bool:
    return trend(times, [value(time) for time in times], TOLERANCE).grows


def noisy(value: float) -> float:
    """A tenth up or down, and one of ten far beyond."""
    return value * (NOISE.uniform(1.5, 3) if NOISE.random() < 0.1 else NOISE.uniform(0.9, 1.1))


def test_the_slope_is_that_of_a_line_whatever_a_few_samples_say() -> None:
    values = [100 + 0.25 * time for time in TIMES]
    assert slope(TIMES, values) == pytest.approx(0.25)
    for index in range(0, len(values), 5):
        values[index] = 10_000
    assert slope(TIMES, values) == pytest.approx(0.25, rel=0.2)


def test_many_samples_are_thinned_out_evenly() -> None:
    times = [float(number) for number in range(10 * MOST)]
    assert slope(times, [3 * time for time in times]) == pytest.approx(3)


@pytest.mark.parametrize("rate", [0.03, 0.1, 1.0])
def test_a_leak_is_caught(rate: float) -> None:
    """From 9 a second half on, where 5 are allowed."""
    assert grows(lambda time: 100 + rate * time)
    assert grows(lambda time: noisy(100) + rate * time)
    assert grows(lambda time: 100 + rate * (time - time % 60)), "also one that goes in steps"


@pytest.mark.parametrize(
    "value",
    [
        lambda time: 100.0,
        lambda time: noisy(100),
        lambda time: 100 + 20 * (time % 30 < 3),  # what comes and goes
        lambda time: 100 + time % 40,  # a saw
        lambda time: min(200.0, 100 + time),  # warming up
        lambda time: 100 - 0.1 * time,
        lambda time: 100 + 0.01 * time,  # 3 in the second half
        lambda time: 10_000 + 0.5 * time,  # 150 of 10,000
    ],
    ids=["still", "noise", "peaks", "saw", "warming up", "shrinking", "small", "small share"],
)
def test_noise_is_not(value: Callable[[float], float]) -> None:
    assert not grows(value)


def samples(leak: float) -> list[Sample]:
    return [
        Sample(time, part, "files", 20 + leak * time * (part == "triton-0" or leak > 1))
        for time in TIMES
        for part in ("router", "triton-0")
    ]


def test_only_what_is_ours_is_complained_of() -> None:
    found = report.verdicts(samples(1.0))
    assert [(one.part, one.trend.grows, one.grows) for one in found] == [
        ("router", False, False),
        ("triton-0", True, False),
    ]
    assert report.complaints(found) == []
    (complaint,) = report.complaints(report.verdicts(samples(2.0)))
    assert complaint.startswith("router grows: open files, by 596.0 in the second half")
    assert report.table(found).rows[0] == (
        *("open files", "router", "20.0", "20.0", "+0.00", "6.0", ""),
    )


def test_the_samples_are_written_and_drawn(tmp_path: Path) -> None:
    report.write_csv(tmp_path / "all.csv", samples(1.0))
    with (tmp_path / "all.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * len(TIMES)
    assert rows[0] == {"seconds": "0.00", "part": "router", "measure": "files", "value": "20"}
    if plot.available():
        paths = [tmp_path / "growth.svg", tmp_path / "growth.png"]
        plot.draw(samples(1.0), "drawn", *paths)
        assert all(path.stat().st_size > 1000 for path in paths)
