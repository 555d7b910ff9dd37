"""Dated results of the long runs, in bench/RESULTS.md."""

import datetime as dt
import platform
from collections.abc import Mapping
from pathlib import Path

RESULTS = Path(__file__).resolve().parents[2] / "bench" / "RESULTS.md"


def record(title: str, figures: Mapping[str, object]) -> None:
    """Append a section: what ran, when, on what, and its figures."""
    today = dt.datetime.now(dt.UTC).date()
    machine = f"{platform.machine()}, Python {platform.python_version()}"
    lines = [f"\n## {title}\n\n{today}, {machine}\n", "| figure | value |", "|---|---|"]
    lines += [f"| {name.replace('_', ' ')} | {value} |" for name, value in figures.items()]
    with RESULTS.open("a") as file:
        file.write("\n".join(lines) + "\n")
