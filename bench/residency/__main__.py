"""`python -m bench.residency`: cold answers, warm ones beside loads, no Controller, policies."""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

from rich.console import Console
from rich.progress import Progress

from bench import load, machine
from bench.__main__ import QUIET
from bench.residency import cold, loss, policies, report, warm
from bench.residency.report import Table
from bench.results import RESULTS, record
from services.simulator.world import ENGINE_POLICIES

MEASUREMENTS: Final = ("cold", "warm", "loss", "policies")
_TITLES: Final = {
    "cold": "what a cold answer costs beyond Triton's own loading",
    "warm": "warm models while others load",
    "loss": "resident models without the Controller",
    "policies": "eviction policies on real Tritons and in the simulator",
}


class Result(NamedTuple):
    tables: list[Table]
    samples: list[dict[str, Any]]


def main(words: Sequence[str]) -> int:
    given = _arguments(words)
    console = Console()
    for name in given.measurements:
        busy = machine.load_average()
        if busy > QUIET:
            console.print(f"The machine is busy (load average {busy:.1f}): expect noise.")
        try:
            found = _MEASURE[name](given, console)
        except (load.Failed, OSError, RuntimeError) as failed:
            console.print(f"bench: {failed}", style="red", markup=False)
            return 1
        about = _about(given, name, busy)
        for table in found.tables:
            console.print(report.shown(table), "")
        for key, text in about.items():
            console.print(f"{key}: {text}", highlight=False)
        if given.json:
            _keep(given.json, name, about, found)
        if given.record:
            record(report.section(f"{_today()}: {_TITLES[name]}", about, found.tables))
    return 0


def _cold(given: argparse.Namespace, console: Console) -> Result:
    pairs = _earlier(given, "cold", cold.Pair)
    for case in cold.CASES:
        if case.name in given.case:
            steps = cold.measure(case, given.pairs)
            pairs += _shown(console, f"cold: {case.title}", given.pairs, steps)
    groups = [(case, [pair for pair in pairs if pair.case == case.name]) for case in cold.CASES]
    found = [cold.summary(case, own) for case, own in groups if own]
    return Result(cold.tables(found), [one._asdict() for one in pairs])


def _warm(given: argparse.Namespace, console: Console) -> Result:
    samples = _earlier(given, "warm", warm.Sample)
    steps = warm.measure(given.generator, given.rounds, given.seconds, given.bounds)
    total = given.rounds * 2 * (6 + 2 * len(given.bounds))
    samples = _after(samples, _shown(console, "warm", total, steps))
    return Result(warm.tables(samples), [one._asdict() for one in samples])


def _loss(given: argparse.Namespace, console: Console) -> Result:
    samples = _earlier(given, "loss", loss.Sample)
    steps = loss.measure(given.generator, given.rounds, given.seconds)
    total = given.rounds * 4 * len(loss.WORKLOADS)
    samples = _after(samples, _shown(console, "loss", total, steps))
    return Result(loss.tables(samples), [one._asdict() for one in samples])


def _policies(given: argparse.Namespace, console: Console) -> Result:
    total = (2 + policies.OTHERS) * len(ENGINE_POLICIES)
    found = _shown(console, "policies", total, policies.measure())
    return Result(policies.tables(found), [one._asdict() for one in found])


def _earlier(given: argparse.Namespace, name: str, kind: Callable[..., Any]) -> list[Any]:
    """The samples that are to be added to."""
    if not given.add or not given.json.exists():
        return []
    content = json.loads(given.json.read_text())
    return [kind(**one) for one in content.get(name, {}).get("samples", [])]


def _after(earlier: list[Any], later: list[Any]) -> list[Any]:
    """The rounds of both, numbered through."""
    last = max((one.round for one in earlier), default=0)
    return earlier + [one._replace(round=one.round + last) for one in later]


_MEASURE: Final = {"cold": _cold, "warm": _warm, "loss": _loss, "policies": _policies}


def _shown(console: Console, what: str, total: int, steps: Iterable[Any]) -> list[Any]:
    """All of `steps`, counted while they come."""
    found = []
    # Nothing is drawn while there is something to measure: that would cost CPU, too.
    with Progress(console=console, transient=True, auto_refresh=False) as progress:
        task = progress.add_task(what, total=total)
        for step in steps:
            found.append(step)
            progress.update(task, advance=1, refresh=True)
            if not console.is_terminal and len(found) % 10 == 0:
                console.print(f"{what}: {len(found)} of {total}", highlight=False)
    return found


def _about(given: argparse.Namespace, name: str, busy: float) -> dict[str, str]:
    amount = f"{given.rounds} rounds there and back, {given.seconds:g} s each"
    if given.add:
        amount += ", and earlier ones"
    return {
        "machine": machine.describe(),
        "versions": machine.versions("2.51.0"),
        "load": f"load average before: {busy:.1f}"
        if name in ("cold", "policies")
        else f"{load.described(given.generator)}; {amount}; load average before: {busy:.1f}",
    }


def _keep(path: Path, name: str, about: Mapping[str, str], found: Result) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    at = datetime.now(UTC).isoformat(timespec="seconds")
    content[name] = {"at": at, **about, "samples": found.samples}
    path.write_text(json.dumps(content, indent=1) + "\n")


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.residency", description=__doc__)
    parser.add_argument(
        "measurements",
        nargs="*",
        metavar="MEASUREMENT",
        help=f"of {', '.join(MEASUREMENTS)} (all)",
    )
    parser.add_argument("--quick", action="store_true", help="a minute or two; noisier")
    cases = [case.name for case in cold.CASES]
    parser.add_argument("--case", nargs="+", choices=cases, default=cases, help="of cold (all)")
    parser.add_argument("--pairs", type=int, help="of cold answers, each case (100)")
    parser.add_argument("--rounds", type=int, help="of warm and loss, there and back (5)")
    parser.add_argument("--seconds", type=float, help="of each measurement (6)")
    parser.add_argument(
        "--bounds",
        type=int,
        nargs="+",
        default=[],
        help="loads of a server at a time that warm compares, such as 1 2 4 (the default alone)",
    )
    parser.add_argument(
        "--generator",
        choices=load.GENERATORS,
        default=load.available(),
        help="what sends the load (h2load where it is installed)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples there")
    parser.add_argument("--add", action="store_true", help="to the samples that FILE has")
    parser.add_argument(
        "--record", action="store_true", help=f"put the results into bench/{RESULTS.name}"
    )
    given = parser.parse_args(words)
    if unknown := set(given.measurements) - set(MEASUREMENTS):
        parser.error(f"no such measurement: {', '.join(sorted(unknown))}")
    if given.add and not given.json:
        parser.error("--add needs --json FILE")
    given.measurements = given.measurements or MEASUREMENTS
    given.pairs = given.pairs or (10 if given.quick else 100)
    given.rounds = given.rounds or (2 if given.quick else 5)
    given.seconds = given.seconds or (2.0 if given.quick else 6.0)
    return given


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
