"""The samples over time, drawn; needs the extra `plot`."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from bench.growth.report import series
from bench.growth.samples import MEASURES, Sample

POINTS: Final = 300  # of a line: each the median of its time
_INCHES: Final = (9.0, 11.0)


def available() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def draw(samples: Sequence[Sample], title: str, *paths: Path) -> None:
    """A row for each measure, a line in it for each part. The format is each path's ending."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # Text stays text, and the same samples give the same file.
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "shoal"})
    figure = Figure(_INCHES, layout="constrained")
    figure.suptitle(title)
    lines = {measure: found for measure in MEASURES if (found := series(samples, measure))}
    rows: Any = figure.subplots(len(lines), sharex=True, squeeze=False)[:, 0]
    for axes, (measure, parts) in zip(rows, lines.items(), strict=True):
        for part, (times, values) in parts.items():
            points = [_median(times, values, at) for at in _ranges(len(times))]
            axes.plot([x / 60 for x, _ in points], [y for _, y in points], label=part, lw=1)
        axes.set_ylim(bottom=0)
        axes.set_title(MEASURES[measure].title, fontsize="medium", loc="left")
        axes.grid(alpha=0.3)
    rows[0].legend(ncols=4, fontsize="small")
    rows[-1].set_xlabel("minutes")
    for path in paths:
        figure.savefig(path, dpi=100, metadata={"Date": None} if path.suffix == ".svg" else None)


def _ranges(count: int) -> list[slice]:
    step = max(1, -(-count // POINTS))
    return [slice(at, at + step) for at in range(0, count, step)]


def _median(times: Sequence[float], values: Sequence[float], among: slice) -> tuple[float, float]:
    x, y = sorted(times[among]), sorted(values[among])
    return x[len(x) // 2], y[len(y) // 2]
