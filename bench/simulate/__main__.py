"""`python -m bench.simulate`: the residency engine under a trace, against other policies."""

import argparse
import json
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bench.results import RESULTS, record
from bench.simulate import compare, report, traces
from bench.simulate.compare import PEERS, Case, Row
from bench.simulate.traces import Shape
from services.simulator import costs, files, recorded, sheets
from services.simulator.costs import GIB, Costs
from services.simulator.world import ENGINE_POLICIES, Hardware, bytes_per_model
from shoal.sizes import parse_size

DEFAULTS: Final = {
    "trace": "zipf,diurnal,bursts,scans",
    "servers": 4,
    "models": 200,
    "requests": 50_000,
    "rate": 5.0,
    "alpha": 1.0,
    "warmup": 0.1,
    "peers": True,
}
SCALE: Final = {
    "trace": "zipf",
    "servers": 1000,
    "models": 100_000,
    "requests": 500_000,
    "rate": 20_000.0,
    "alpha": 1.1,
    "warmup": 0.2,
    "peers": False,
    "budget": 80 * GIB,
}
DAYS: Final = 4  # that a generated trace covers, where no period is given


def main(words: Sequence[str]) -> int:
    given = _arguments(words)
    console = Console()
    try:
        cases = list(_cases(given))
    except (files.Unreadable, OSError, ValueError) as error:
        console.print(f"bench.simulate: {error}", style="red", markup=False)
        return 1
    about = _about(given, cases)
    for name, text in about.items():
        console.print(f"{name}: {text}", highlight=False)
    rows = _run(cases, given, console)
    if given.scale:
        size = bytes_per_model(cases[0].hardware, cases[0].costs)
        about["memory"] = f"{size:.0f} bytes for each registered model (tracemalloc, a run apart)"
        console.print(f"memory: {about['memory']}", highlight=False)
    found = list(report.sheets(rows, events=given.events or given.scale))
    for sheet in found:
        console.print("", sheets.drawn(sheet))
    console.print("", report.LEGEND, report.SPEED_LEGEND, sep="\n", highlight=False)
    if given.json:
        given.json.write_text(json.dumps(report.content(about, rows), indent=1) + "\n")
    if given.record:
        day = datetime.now(UTC).date().isoformat()
        what = "the residency engine at scale" if given.scale else "residency policies, simulated"
        what += f" over {given.csv.name}" if given.csv else ""
        record(report.section(f"{day}: {what}", about, found))
    return 0


def _run(cases: Sequence[Case], given: argparse.Namespace, console: Console) -> list[Row]:
    names = PEERS if given.peers else ()
    columns = (
        TextColumn("{task.description}"),
        *(BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()),
    )
    rows: list[Row] = []
    # Drawn only when there is progress: a thread that draws would take time from what is timed.
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as progress:
        for case in cases:
            total = case.requests * (len(given.policy) + len(names))
            task = progress.add_task(case.name, total=total)

            def step(requests: int, task: "int" = task) -> None:
                progress.update(task, advance=requests, refresh=True)  # type: ignore[arg-type]

            rows += [compare.engine(case, policy, step) for policy in given.policy]
            rows += compare.pools(case, names, step)
    return rows


def _cases(given: argparse.Namespace) -> Iterator[Case]:
    """What is to be run. Raises Unreadable, OSError, ValueError."""
    if given.csv:
        options = {"warmup": given.warmup, "seed": given.seed}
        yield recorded.case(given.csv, given.costs, given.servers, given.budget, **options)
        return
    table = (
        files.costs(given.costs) if given.costs else costs.generated(given.models, given.seed, ())
    )
    models = len(table.names)
    period = given.period or given.requests / given.rate / DAYS
    shape = Shape(models, given.requests, given.rate, period, given.alpha, given.seed)
    hardware = recorded.hardware(given.servers, given.budget, table)
    resident = _resident(shape, table, hardware) if given.scale else []
    for name in given.trace:
        yield Case(
            name,
            lambda generate=traces.GENERATORS[name]: generate(shape),  # type: ignore[misc]
            given.requests,
            recorded.warm(given.warmup, given.requests),
            hardware,
            table,
            resident,
        )


def _resident(shape: Shape, table: Costs, hardware: Hardware) -> list[int]:
    """What least-recently-used servers would hold after a long time, the newest first: a model's
    last request was an exponentially distributed time ago, by its popularity. Only what fits."""
    random = np.random.default_rng([shape.seed, *b"resident"])
    newest = np.argsort(random.exponential(1 / shape.popularity))
    filled = np.cumsum(table.bytes[newest])
    room = hardware.servers * hardware.budget
    return list(map(int, newest[filled <= room]))


def _about(given: argparse.Namespace, cases: Sequence[Case]) -> dict[str, str]:
    about = recorded.about(cases[0])
    if not given.csv:
        about["trace"] += f"; {given.rate:g} a second, Zipf {given.alpha:g}, seed {given.seed}"
    return {**about, "machine": f"{platform.machine()}, Python {platform.python_version()}"}


def _size(text: str) -> int:
    """Bytes, such as 24GiB or 512M."""
    try:
        size = parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not size:
        raise argparse.ArgumentTypeError("0 is no size")
    return size


def _some_of(known: Sequence[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in known:
                message = f"{name!r} is not one of {', '.join(known)}"
                raise argparse.ArgumentTypeError(message)
        return names

    return parse


def _above_zero(kind: Callable[[str], float]) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise ValueError
        return value

    parse.__name__ = f"{kind.__name__} above 0"
    return parse


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.simulate", description=__doc__)
    some, count, real = _some_of, _above_zero(int), _above_zero(float)
    add = parser.add_argument
    add("--trace", type=some(list(traces.GENERATORS)), metavar="NAME,…", help="zipf, diurnal, …")
    add("--csv", type=Path, metavar="FILE", help="a trace instead: lines of time,model, or events")
    add("--costs", type=Path, metavar="FILE", help="lines of model,bytes,load_seconds")
    add("--servers", type=count)
    add("--budget", type=_size, help="bytes on each server, such as 24GiB (a third of all fits)")
    add("--policy", type=some(ENGINE_POLICIES), metavar="NAME,…", help="the engine's: lru, gdsf")
    add("--models", type=count)
    add("--requests", type=count)
    add("--rate", type=real, help="requests a second")
    add("--alpha", type=float, help="of Zipf's law: how much some are preferred to others")
    add("--period", type=real, help="seconds of a day, or between two scans (four in a trace)")
    add("--warmup", type=float, help="share of the requests that is not counted")
    add("--seed", type=int, default=0)
    add("--peers", action=argparse.BooleanOptionalAction, help="also other policies, in one pool")
    add("--scale", action="store_true", help="1,000 servers, 100,000 models; how fast it decides")
    add("--events", action="store_true", help="what the engine's time goes to")
    add("--json", type=Path, metavar="FILE", help="write all figures there")
    add("--record", action="store_true", help=f"put the tables into bench/{RESULTS.name}")
    preset = SCALE if "--scale" in words else DEFAULTS
    parser.set_defaults(policy=list(ENGINE_POLICIES), **preset)
    given = parser.parse_args(words)
    if isinstance(given.trace, str):
        given.trace = given.trace.split(",")
    if not 0 <= given.warmup < 1:
        parser.error("--warmup is a share, from 0 to less than 1")
    return given


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
