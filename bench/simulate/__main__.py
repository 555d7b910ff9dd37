"""`python -m bench.simulate`: the residency engine under a trace, against other policies."""

import argparse
import json
import platform
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bench.simulate import advice, compare, costs, files, journal, report, traces
from bench.simulate.compare import PEERS, Case, Row
from bench.simulate.costs import GIB, Costs
from bench.simulate.traces import Shape
from bench.simulate.world import ENGINE_POLICIES, Hardware, bytes_per_model

RESULTS: Final = Path(__file__).parents[1] / "RESULTS.md"
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
ROOM: Final = 1 / 3  # of all models' bytes, where no budget is given
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
    if given.memory:
        _advise(cases, given, console)
        return 0
    rows = _run(cases, given, console)
    if given.scale:
        size = bytes_per_model(cases[0].hardware, cases[0].costs)
        about["memory"] = f"{size:.0f} bytes for each registered model (tracemalloc, a run apart)"
        console.print(f"memory: {about['memory']}", highlight=False)
    sheets = list(report.sheets(rows, events=given.events or given.scale))
    for sheet in sheets:
        console.print("", report.drawn(sheet))
    console.print("", report.LEGEND, report.SPEED_LEGEND, sep="\n", highlight=False)
    if given.json:
        given.json.write_text(json.dumps(report.content(about, rows), indent=1) + "\n")
    if given.record:
        day = datetime.now(UTC).date().isoformat()
        what = "the residency engine at scale" if given.scale else "residency policies, simulated"
        what += f" over {given.csv.name}" if given.csv else ""
        report.record(RESULTS, report.section(f"{day}: {what}", about, sheets))
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


def _advise(cases: Sequence[Case], given: argparse.Namespace, console: Console) -> None:
    for case in cases:
        found = advice.outcomes(case, given.policy, lambda requests: None)
        console.print("", report.drawn(advice.sheet(case.name, found)))
        if given.plot:
            advice.plot(given.plot, case.name, found)
    console.print(
        "\ncold s: seconds, over all requests that waited for a load; saved: of those of the first "
        "row; p99.9, max: the wait that one in a thousand exceeded, and the longest, in seconds.",
        highlight=False,
    )


def _cases(given: argparse.Namespace) -> Iterator[Case]:
    """What is to be run. Raises Unreadable, OSError, ValueError."""
    if given.csv:
        if journal.is_journal(given.csv):
            found, table = journal.read(given.csv)
            if given.costs:
                table = files.costs(given.costs, found.names)
        else:
            found = files.trace(given.csv)
            table = _costs(given, found.names)
        requests = len(found.requests.times)
        yield Case(
            given.csv.name,
            lambda: traces.chunks(found.requests),
            requests,
            _warm(given, requests),
            _hardware(given, table),
            table,
        )
        return
    table = _costs(given, None)
    models = len(table.names)
    period = given.period or given.requests / given.rate / DAYS
    shape = Shape(models, given.requests, given.rate, period, given.alpha, given.seed)
    hardware = _hardware(given, table)
    resident = _resident(shape, table, hardware) if given.scale else []
    for name in given.trace:
        yield Case(
            name,
            lambda generate=traces.GENERATORS[name]: generate(shape),  # type: ignore[misc]
            given.requests,
            _warm(given, given.requests),
            hardware,
            table,
            resident,
        )


def _costs(given: argparse.Namespace, names: Sequence[str] | None) -> Costs:
    if given.costs:
        return files.costs(given.costs, names)
    return costs.generated(given.models if names is None else len(names), given.seed, names or ())


def _hardware(given: argparse.Namespace, table: Costs) -> Hardware:
    largest = int(table.bytes.max())
    budget = given.budget or max(largest, round(ROOM * int(table.bytes.sum()) / given.servers))
    if largest > budget:
        name = table.names[int(table.bytes.argmax())]
        raise ValueError(f"{name} has {largest} bytes, a server {budget}: raise --budget")
    return Hardware(given.servers, budget)


def _resident(shape: Shape, table: Costs, hardware: Hardware) -> list[int]:
    """What least-recently-used servers would hold after a long time, the newest first: a model's
    last request was an exponentially distributed time ago, by its popularity. Only what fits."""
    random = np.random.default_rng([shape.seed, *b"resident"])
    newest = np.argsort(random.exponential(1 / shape.popularity))
    filled = np.cumsum(table.bytes[newest])
    room = hardware.servers * hardware.budget
    return list(map(int, newest[filled <= room]))


def _warm(given: argparse.Namespace, requests: int) -> int:
    return min(requests - 1, int(given.warmup * requests))


def _about(given: argparse.Namespace, cases: Sequence[Case]) -> dict[str, str]:
    case = cases[0]
    total = int(case.costs.bytes.sum())
    budget = case.hardware.budget
    share = case.hardware.servers * budget / total
    generated = f", {given.rate:g} a second, Zipf {given.alpha:g}, seed {given.seed}"
    return {
        "fleet": f"{case.hardware.servers} servers of {budget / GIB:.1f} GiB: "
        f"{min(1.0, share):.0%} of {len(case.costs.names)} models' {total / GIB:.0f} GiB",
        "trace": f"{case.requests} requests{'' if given.csv else generated}; "
        f"the first {case.warm} are not counted",
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
    }


SUFFIXES: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def _size(text: str) -> int:
    """Bytes, such as 24GiB or 512M."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if found is None or not float(found[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 24GiB")
    return round(float(found[1]) * SUFFIXES[found[2].upper()])


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
    add("--memory", action="store_true", help="what 10 to 50 %% more memory would save, instead")
    add(
        "--plot", type=Path, metavar="FILE", help="with --memory: draw cold seconds by memory (SVG)"
    )
    add("--scale", action="store_true", help="1,000 servers, 100,000 models; how fast it decides")
    add("--events", action="store_true", help="what the engine's time goes to")
    add("--json", type=Path, metavar="FILE", help="write all figures there")
    add("--record", action="store_true", help=f"write the tables into bench/{RESULTS.name}")
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
