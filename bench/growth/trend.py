"""Whether a measure grows: by the slope that half of all pairs of samples exceed.

A median of slopes (Theil 1950, Sen 1968) is moved neither by outliers nor by a jump at one end.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

SETTLED: Final = 0.5  # share of the time after which growth counts
MOST: Final = 500  # samples that are compared in pairs


class Tolerance(NamedTuple):
    """What a measure may grow by while it is judged: `amount`, or `share` of what it was at first,
    whichever is more."""

    amount: float
    share: float


class Trend(NamedTuple):
    """`first`, `last`: medians of the first and the last tenth of the judged samples. `growth`: by
    the slope, over the judged time. `allowed`: of it."""

    first: float
    last: float
    growth: float
    allowed: float

    @property
    def grows(self) -> bool:
        return self.growth > self.allowed


def slope(times: Sequence[float], values: Sequence[float]) -> float:
    """The median of the slopes between any two samples; at least two, at different times."""
    x, y = np.asarray(times, float), np.asarray(values, float)
    if len(x) > MOST:  # evenly: the number of pairs is its square
        kept = np.linspace(0, len(x) - 1, MOST).astype(int)
        x, y = x[kept], y[kept]
    later, earlier = np.triu_indices(len(x), 1)[::-1]
    apart = x[later] - x[earlier]
    return float(np.median((y[later] - y[earlier])[apart > 0] / apart[apart > 0]))


def trend(times: Sequence[float], values: Sequence[float], tolerance: Tolerance) -> Trend:
    """Of the samples after SETTLED of the time. `times` ascend; there are at least four."""
    from_ = times[0] + SETTLED * (times[-1] - times[0])
    judged = [(time, value) for time, value in zip(times, values, strict=True) if time >= from_]
    x, y = zip(*judged, strict=True)
    tenth = max(1, len(y) // 10)
    first, last = float(np.median(y[:tenth])), float(np.median(y[-tenth:]))
    allowed = max(tolerance.amount, tolerance.share * first)
    return Trend(first, last, slope(x, y) * (x[-1] - x[0]), allowed)
