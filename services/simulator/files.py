"""Traces and cost tables from CSV files."""

import csv
import math
from array import array
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np

from services.simulator.costs import Costs, unloading
from services.simulator.requests import Requests


class Unreadable(Exception):
    """A file that is not what it should be; the text says where and why."""

    def __init__(self, path: Path, line: int, reason: str) -> None:
        super().__init__(f"{path}, line {line}: {reason}")


class NamedTrace(NamedTuple):
    """`names`: of the models, in the order in which they were first asked for."""

    requests: Requests
    names: tuple[str, ...]


def trace(path: Path) -> NamedTrace:
    """Read lines of `time,model`; a first line of titles and empty lines are passed over.

    A time is a number of seconds, or a date and time as in ISO 8601 (UTC where it names no zone),
    and none is before the one above it. Times are counted from the first. Raises Unreadable.
    """
    times, models = array("d"), array("q")
    numbers: dict[str, int] = {}
    first: float | None = None
    dated = False
    for line, row in _rows(path, ("time", "model"), number=0):
        at, iso = _time(path, line, row[0])
        if first is None:
            first, dated = at, iso
        if iso is not dated:
            raise Unreadable(path, line, f"{row[0]!r} and the times above differ in kind")
        if times and at - first < times[-1]:
            raise Unreadable(path, line, f"{row[0]!r} is before the time above: sort by time")
        if not row[1]:
            raise Unreadable(path, line, "the model has no name")
        times.append(at - first)
        models.append(numbers.setdefault(row[1], len(numbers)))
    if not times:
        raise Unreadable(path, 1, "there is no request: expected lines of time,model")
    found = Requests(np.frombuffer(times, np.float64), np.frombuffer(models, np.int64))
    return NamedTrace(found, tuple(numbers))


def costs(path: Path, names: Sequence[str] | None = None) -> Costs:
    """Read lines of `model,bytes,load_seconds[,unload_seconds]`, in the order of `names` where they
    are given. Raises Unreadable, also where one of `names` has no line."""
    rows: dict[str, tuple[int, float, float]] = {}
    last = 1
    for line, row in _rows(
        path, ("model", "bytes", "load_seconds", "unload_seconds"), number=1, least=3
    ):
        last = line
        if row[0] in rows:
            raise Unreadable(path, line, f"{row[0]!r} has a line already")
        size = round(_number(path, line, row[1], "bytes"))
        if not size:
            raise Unreadable(path, line, "bytes is 0: what does it take when it is resident?")
        seconds = _number(path, line, row[2], "load_seconds")
        unload = float(unloading(np.float64(seconds)))  # type: ignore[arg-type]
        if len(row) > 3 and row[3]:
            unload = _number(path, line, row[3], "unload_seconds")
        rows[row[0]] = (size, seconds, unload)
    wanted = list(rows) if names is None else list(names)
    missing = [name for name in wanted if name not in rows]
    if missing or not rows:
        what = f"{len(missing)} models of the trace, {missing[0]!r} first" if missing else "models"
        raise Unreadable(path, last, f"no line for {what}")
    sizes, loads, unloads = zip(*(rows[name] for name in wanted), strict=True)
    return Costs(wanted, np.array(sizes, np.int64), np.array(loads), np.array(unloads))


def _rows(
    path: Path, columns: Sequence[str], number: int, least: int | None = None
) -> Iterator[tuple[int, list[str]]]:
    """The lines that say something, with their numbers. The first is one of titles where its
    field `number` holds no digit."""
    least = len(columns) if least is None else least
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        try:
            for row in reader:
                cells = [cell.strip() for cell in row]
                if not any(cells):
                    continue
                if not least <= len(cells) <= len(columns):
                    expected = ",".join(columns[:least])
                    reason = f"expected {expected}, found {len(cells)} fields: {','.join(cells)!r}"
                    raise Unreadable(path, reader.line_num, reason)
                if reader.line_num == 1 and not any(map(str.isdigit, cells[number])):
                    continue
                yield reader.line_num, cells
        except (csv.Error, UnicodeDecodeError) as error:
            raise Unreadable(path, reader.line_num + 1, str(error)) from error


def _time(path: Path, line: int, text: str) -> tuple[float, bool]:
    """Seconds, and whether it is a date."""
    try:
        seconds = float(text)
    except ValueError:
        try:
            at = datetime.fromisoformat(text)
        except ValueError:
            reason = f"{text!r} is neither a number of seconds nor a date and time (ISO 8601)"
            raise Unreadable(path, line, reason) from None
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp(), True
    if not math.isfinite(seconds):
        raise Unreadable(path, line, f"{text!r} is no time")
    return seconds, False


def _number(path: Path, line: int, text: str, column: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise Unreadable(path, line, f"{column} is {text!r}, expected a number from 0 up")
    return value
