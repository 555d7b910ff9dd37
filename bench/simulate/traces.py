"""Traces: who asks for which model when. Generators are seeded, and stream.

Models are numbers, from 0; which of them are popular is drawn. Times are seconds that never
decrease. `popularity` is Zipf's law: the k-th of n models is asked for in proportion to k^-alpha.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from services.simulator.requests import CHUNK, Numbers, Reals, Requests, Trace, chunks, whole

__all__ = [
    "GENERATORS",
    "Generator",
    "Requests",
    "Shape",
    "Trace",
    "bursts",
    "chunks",
    "diurnal",
    "scans",
    "whole",
    "zipf",
]


@dataclass(frozen=True, slots=True)
class Shape:
    """`rate`: requests a second, in the mean. `period`: seconds of a day, or between two scans."""

    models: int
    requests: int
    rate: float
    period: float
    alpha: float = 1.0
    seed: int = 0

    @property
    def popularity(self) -> Reals:
        """The share of the requests for each model; they add up to 1."""
        weights = np.arange(1, self.models + 1, dtype=np.float64) ** -self.alpha
        return _generator(self, "popularity").permutation(weights / weights.sum())


def zipf(shape: Shape) -> Trace:
    """The same popularity all the time; Poisson arrivals."""
    random = _generator(shape, "zipf")
    draw = _Draw(shape.popularity)
    now = 0.0
    for count in _counts(shape.requests):
        times = now + np.cumsum(random.exponential(1 / shape.rate, count))
        now = times[-1]
        yield Requests(times, draw(random, count))


ZONES: Final = ((0.0, 0.4), (1 / 3, 0.25), (2 / 3, 0.35))  # when its day peaks, share of models
DEPTH: Final = 0.95  # at night a zone has (1 - DEPTH) of its mean rate, at its peak (1 + DEPTH)


def diurnal(shape: Shape) -> Trace:
    """Each model lives in a time zone: its rate goes up and down with the time of day there.

    Arrivals are a Poisson process at the highest rate, thinned (Lewis and Shedler, 1979).
    """
    random = _generator(shape, "diurnal")
    draw = _Draw(shape.popularity)
    peaks, shares = zip(*ZONES, strict=True)
    peak_of = random.choice(peaks, size=shape.models, p=shares)

    def candidates() -> Trace:
        now = 0.0
        while True:
            gaps = random.exponential(1 / (shape.rate * (1 + DEPTH)), CHUNK)
            times = now + np.cumsum(gaps)
            now = times[-1]
            models = draw(random, CHUNK)
            angle = 2 * math.pi * (times / shape.period - peak_of[models])
            kept = random.random(CHUNK) * (1 + DEPTH) < 1 + DEPTH * np.cos(angle)
            yield Requests(times[kept], models[kept])

    return _first(shape.requests, candidates())


GROUPS: Final = 20
HOT_SHARE: Final = 0.5  # of the requests, while a group is hot
HOT_PERIODS: Final = 1 / 8  # how long a group is hot, in the mean


def bursts(shape: Shape) -> Trace:
    """Half of all requests go to one small group of models, and to another one a while later."""
    random = _generator(shape, "bursts")
    draw = _Draw(shape.popularity)
    size = max(1, shape.models // GROUPS)
    groups = np.stack(
        [random.choice(shape.models, size, replace=False) for _ in range(min(GROUPS, shape.models))]
    )
    group, until = 0, 0.0
    for chunk in zipf(shape):
        count = len(chunk.times)
        begins, hot = [-math.inf], [group]
        while until <= chunk.times[-1]:
            group = int(random.integers(len(groups)))
            begins.append(until)
            hot.append(group)
            until += random.exponential(shape.period * HOT_PERIODS)
        at = np.searchsorted(begins, chunk.times, side="right") - 1
        in_group = groups[np.array(hot)[at], random.integers(size, size=count)]
        burst = random.random(count) < HOT_SHARE
        yield Requests(chunk.times, np.where(burst, in_group, draw(random, count)))


def scans(shape: Shape) -> Trace:
    """Once a period, beside all the rest, every model is asked for once, one after the other.

    A scan has the rate of the rest, and a pause as long as itself after it.
    """
    spacing = max(shape.period, 2 * shape.models / shape.rate)

    def mixed() -> Trace:
        began, done = 0.0, 0
        for base in zipf(shape):
            ends = base.times[-1]
            most = done + math.ceil((ends - began) * shape.rate) + shape.models
            numbers = np.arange(done, most)
            nth, model = np.divmod(numbers, shape.models)
            at = spacing * (nth + 0.5) + model / shape.rate
            due = at <= ends
            done += int(due.sum())
            began = ends
            times = np.concatenate([base.times, at[due]])
            models = np.concatenate([base.models, model[due]])
            order = np.argsort(times, kind="stable")
            yield Requests(times[order], models[order])

    return _first(shape.requests, mixed())


Generator = Callable[[Shape], Trace]

GENERATORS: Final[dict[str, Generator]] = {
    "zipf": zipf,
    "diurnal": diurnal,
    "bursts": bursts,
    "scans": scans,
}


class _Draw:
    """Draws models by their popularity."""

    def __init__(self, popularity: Reals) -> None:
        self._cumulative = np.cumsum(popularity)
        self._cumulative[-1] = 1.0

    def __call__(self, random: np.random.Generator, count: int) -> Numbers:
        return np.searchsorted(self._cumulative, random.random(count), side="right")


def _generator(shape: Shape, purpose: str) -> np.random.Generator:
    return np.random.default_rng([shape.seed, *purpose.encode()])


def _counts(requests: int) -> Iterator[int]:
    for begin in range(0, requests, CHUNK):
        yield min(CHUNK, requests - begin)


def _first(count: int, trace: Trace) -> Trace:
    for chunk in trace:
        part = Requests(chunk.times[:count], chunk.models[:count])
        if len(part.times):
            yield part
        count -= len(part.times)
        if not count:
            return
