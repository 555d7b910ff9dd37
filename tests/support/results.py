"""Dated results of the long runs, in bench/RESULTS.md."""

import datetime as dt
import platform
from collections.abc import Mapping

from bench import results


def record(title: str, figures: Mapping[str, object]) -> None:
    """Add a section, in the place of one with the same title: what ran, when, on what, figures."""
    today = dt.datetime.now(dt.UTC).date()
    machine = f"{platform.machine()}, Python {platform.python_version()}"
    lines = [f"## {title}\n\n{today}, {machine}\n", "| figure | value |", "|---|---|"]
    lines += [f"| {name.replace('_', ' ')} | {value} |" for name, value in figures.items()]
    results.record("\n".join(lines))
