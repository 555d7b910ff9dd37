"""The verdict over all measures of all parts, as a table and as CSV."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from bench.growth.samples import JUDGED, MEASURES, Sample
from bench.growth.trend import Trend, trend
from bench.residency.report import Table

Series = tuple[list[float], list[float]]


class Verdict(NamedTuple):
    part: str
    measure: str
    trend: Trend
    judged: bool

    @property
    def grows(self) -> bool:
        return self.judged and self.trend.grows


def series(samples: Sequence[Sample], measure: str) -> dict[str, Series]:
    """Times and values by part."""
    found: dict[str, Series] = {}
    for sample in samples:
        if sample.measure == measure:
            times, values = found.setdefault(sample.part, ([], []))
            times.append(sample.at)
            values.append(sample.value)
    return found


def verdicts(samples: Sequence[Sample]) -> list[Verdict]:
    return [
        Verdict(part, measure, trend(*own, about.allowed(part)), part in JUDGED)
        for measure, about in MEASURES.items()
        for part, own in series(samples, measure).items()
    ]


def table(found: Sequence[Verdict]) -> Table:
    rows = [
        (
            MEASURES[one.measure].title,
            one.part,
            f"{one.trend.first:.1f}",
            f"{one.trend.last:.1f}",
            f"{one.trend.growth:+.2f}",
            f"{one.trend.allowed:.1f}" if one.judged else "",
            "grows" if one.grows else "",
        )
        for one in found
    ]
    columns = ("measure", "part", "at half time", "at the end", "trend", "allowed", "")
    return Table("The second half", columns, rows)


def complaints(found: Sequence[Verdict]) -> list[str]:
    return [
        f"{one.part} grows: {MEASURES[one.measure].title}, by {one.trend.growth:.1f} in the second "
        f"half, where {one.trend.allowed:.1f} is allowed"
        for one in found
        if one.grows
    ]


def state(samples: Sequence[Sample], counts: Mapping[str, int], problems: int) -> str:
    """In a line, what the samples of one moment say of the Router."""
    own = [one for one in samples if one.part == "router"]
    values = ", ".join(f"{one.measure} {one.value:.0f}" for one in own)
    return f"router: {values}; {sum(counts.values())} done, {problems} wrong"


def done(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def write_csv(path: Path, samples: Sequence[Sample]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("seconds", "part", "measure", "value"))
        for sample in samples:
            writer.writerow((f"{sample.at:.2f}", sample.part, sample.measure, f"{sample.value:g}"))
