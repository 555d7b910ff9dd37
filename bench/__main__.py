"""`python -m bench`: direct Triton, a bare relay, Router and lane, interleaved in one run."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import Progress

from bench import load, machine, report
from bench.measure import measure, samples
from bench.results import RESULTS, record
from bench.rounds import Sample, Summary, summaries
from bench.subjects import running
from bench.workloads import WORKLOADS

PROCESSES: Final = 3
QUIET: Final = 0.5  # load average above which the figures are noisy from the start


def main(words: Sequence[str]) -> int:
    given = _arguments(words)
    console = Console()
    busy = machine.load_average()
    if busy > QUIET:
        console.print(f"The machine is busy (load average {busy:.1f}): expect noise.")
    try:
        measured, about = _run(given, console)
    except (load.Failed, OSError, RuntimeError) as failed:
        console.print(f"bench: {failed}", style="red", markup=False)
        return 1
    about["load"] += f"; load average before: {busy:.1f}"
    found = summaries(measured)
    for table in report.tables(found):
        console.print(table, "")
    console.print(report.LEGEND, highlight=False)
    for name, text in about.items():
        console.print(f"{name}: {text}", highlight=False)
    if given.json:
        given.json.write_text(json.dumps(_content(about, found, measured), indent=1) + "\n")
    if given.record:
        record(report.section(_title(given), about, found))
    return 0


def _run(given: argparse.Namespace, console: Console) -> tuple[list[Sample], dict[str, str]]:
    """All samples, and what they were measured on."""
    console.print("Starting Triton, Shoal and the relay.")
    # Nothing is drawn while there is something to measure: that would cost CPU, too.
    progress = Progress(console=console, transient=True, auto_refresh=False)
    processes = min(given.processes, given.rounds)
    chosen = [
        one
        for one in WORKLOADS
        if one.name in (given.only or (one.name,))
        and (given.generator == "h2load" or not one.http)  # bench/generator.py speaks HTTP/2 alone
    ]
    models = dict.fromkeys(one.model for one in chosen)
    with (
        running(
            processes,
            models,
            traced=given.otel,
            registered=given.registered,
            resident=given.resident,
        ) as subjects,
        progress,
    ):
        task = progress.add_task("Measuring", total=samples(subjects, chosen, given.rounds))
        measured = []
        for sample in measure(subjects, chosen, given.generator, given.rounds, given.seconds):
            measured.append(sample)
            progress.update(task, advance=1, refresh=True)
        generator = load.described(given.generator)
        return measured, {
            "machine": machine.describe(),
            "versions": machine.versions(subjects.triton_version),
            "load": f"{generator}; {given.rounds} rounds there and back, {given.seconds:g} s each "
            f"after half of that to warm up, by turns to {processes} processes of each relay and "
            "Router",
            **(
                {"churn": f"{rate:.1f} loads and evictions a second"}
                if (rate := subjects.churned())
                else {}
            ),
        }


def _content(
    about: Mapping[str, str], found: Sequence[Summary], measured: Sequence[Sample]
) -> dict[str, object]:
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        **about,
        "summaries": [one._asdict() for one in found],
        "samples": [one._asdict() for one in measured],
    }


def _title(given: argparse.Namespace) -> str:
    day = datetime.now(UTC).date().isoformat()
    more = [
        *(["with tracing"] if given.otel else []),
        *([f"with {given.registered} models registered"] if given.registered else []),
        *([f"{given.resident} of them resident"] if given.resident > 1 else []),
        *([f"only {' and '.join(given.only)}"] if given.only else []),
    ]
    return ", ".join((f"{day}: what the Router and the lane cost", *more))


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under a minute; noisier")
    parser.add_argument(
        "--otel", action="store_true", help="also Routers that trace 1 %% and 100 %% of requests"
    )
    parser.add_argument(
        "--registered",
        type=int,
        default=0,
        metavar="N",
        help="also Router and lane of a stack that has N models registered, instead of 10",
    )
    parser.add_argument(
        "--resident",
        type=int,
        default=1,
        metavar="N",
        help="so many of the models of --registered are loaded: all but one are ensembles (1)",
    )
    parser.add_argument("--rounds", type=int, help="there and back, each (5)")
    parser.add_argument(
        "--processes",
        type=int,
        default=PROCESSES,
        metavar="N",
        help="of each relay and Router, one a round: some are a tenth slower than others alike (3)",
    )
    parser.add_argument(
        "--only",
        action="append",
        choices=[one.name for one in WORKLOADS],
        help="this workload; can be given more than once",
    )
    parser.add_argument("--seconds", type=float, help="of each measurement (2)")
    parser.add_argument(
        "--generator",
        choices=load.GENERATORS,
        default=load.available(),
        help="what sends the load (h2load where it is installed)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples there")
    parser.add_argument(
        "--record", action="store_true", help=f"put the results into bench/{RESULTS.name}"
    )
    given = parser.parse_args(words)
    given.rounds = given.rounds or (2 if given.quick else 5)
    given.seconds = given.seconds or (0.7 if given.quick else 2.0)
    return given


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
