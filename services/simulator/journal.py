"""A trace and a cost table from what the Controller's journal recorded (`shoal events --json`).

The journal knows the requests that were cold: those for which something had to be loaded. It says
how long each load took, and how much was reserved for it.
"""

import json
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np

from services.simulator.costs import GIB, MIB, Costs, unloading
from services.simulator.files import NamedTrace, Unreadable
from services.simulator.requests import Requests

UNITS: Final = {"MiB": MIB, "GiB": GIB}


def is_journal(path: Path) -> bool:
    """Return whether a file holds events and not lines of `time,model`."""
    with path.open(encoding="utf-8-sig") as file:
        return file.read(256).lstrip().startswith("{")


def read(path: Path) -> tuple[NamedTrace, Costs]:
    """Read events, as one document or one on each line. A model's cost is that of its last load.
    Raises Unreadable."""
    asked: list[tuple[float, str]] = []
    sizes: dict[str, int] = {}
    seconds: dict[str, float] = {}
    for line, event in _events(path):
        kind, version, reason = event.get("kind"), event.get("version"), event.get("reason", "")
        if kind not in ("QUEUED", "LOADING", "READY") or not version:
            continue
        try:
            at = datetime.fromisoformat(str(event["time"])).timestamp()
        except (KeyError, ValueError) as error:
            raise Unreadable(path, line, f"an event has no time: {error}") from error
        name = "{1}:{3}".format(*str(version).split("/"))
        if kind == "QUEUED":
            asked.append((at, name))
        elif kind == "LOADING":
            found = re.findall(r"([\d.]+) (MiB|GiB)", reason)
            sizes[name] = round(sum(float(size) * UNITS[unit] for size, unit in found))
        elif match := re.search(r"loaded in ([\d.]+) s", reason):
            seconds[name] = float(match[1])
    asked = sorted(each for each in asked if sizes.get(each[1]) and each[1] in seconds)
    if not asked:
        raise Unreadable(path, 1, "there is no load from its request to READY")
    names = list(dict.fromkeys(name for _, name in asked))
    number = {name: index for index, name in enumerate(names)}
    times = np.array([at for at, _ in asked]) - asked[0][0]
    requests = Requests(times, np.array([number[name] for _, name in asked], np.int64))
    loads = np.array([seconds[name] for name in names])
    bytes_ = np.array([sizes[name] for name in names], np.int64)
    return NamedTrace(requests, tuple(names)), Costs(names, bytes_, loads, unloading(loads))


def _events(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    text = path.read_text(encoding="utf-8-sig")
    try:
        document = json.loads(text)
    except ValueError:
        for line, row in enumerate(text.splitlines(), 1):
            if row.strip():
                yield line, _parsed(path, line, row)
    else:
        events = document.get("events", [document])
        yield from ((1, event) for event in sorted(events, key=lambda each: str(each.get("time"))))


def _parsed(path: Path, line: int, row: str) -> Mapping[str, Any]:
    try:
        found = json.loads(row)
    except ValueError as error:
        raise Unreadable(path, line, f"no event in JSON: {error}") from error
    if not isinstance(found, dict):
        raise Unreadable(path, line, "no event in JSON")
    return found
