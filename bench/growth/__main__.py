"""`python -m bench.growth`: all that clients do, for long, and whether a service grows by it."""

import argparse
import asyncio
import contextlib
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

import psutil
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from bench import machine
from bench.growth import models, plot, report
from bench.growth.load import Load
from bench.growth.samples import JUDGED, Sample, Sampler
from bench.residency.report import section, shown
from bench.results import RESULTS, record
from services.embedded.background import BackgroundStack

EVERY: Final = 2.0  # seconds between samples
LINE_EVERY: Final = 30.0  # seconds between two lines where nobody watches a bar
INTERRUPTED: Final = 130  # exit status, as of a shell's child that SIGINT has ended
PLOT: Final = RESULTS.with_name("growth.svg")


class Run(NamedTuple):
    samples: list[Sample]
    done: Counter[str]
    problems: list[str]


def main(words: Sequence[str]) -> int:
    given = _arguments(words)
    console = Console()
    try:
        run = _run(60 * given.minutes, console)
    except KeyboardInterrupt:
        console.print("Interrupted; everything is stopped.")
        return INTERRUPTED
    except (OSError, RuntimeError, psutil.Error) as failed:
        console.print(f"growth: {failed}", style="red", markup=False)
        return 1
    found = report.verdicts(run.samples)
    console.print(shown(report.table(found)), "")
    about = {
        "machine": machine.describe(),
        "versions": machine.versions("2.51.0"),
        "load": f"{given.minutes:g} minutes: {report.done(run.done)}",
    }
    for name, text in about.items():
        console.print(f"{name}: {text}", highlight=False)
    _keep(given, run.samples, about, console)
    if given.record:
        record(section(_title(), about, [report.table(found)]))
    complaints = [*(f"wrong: {problem}" for problem in run.problems), *report.complaints(found)]
    for complaint in complaints:
        console.print(complaint, style="red", markup=False)
    return int(bool(complaints))


def _run(seconds: float, console: Console) -> Run:
    console.print("Starting Shoal.")
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="shoal-growth-"))
        models.write(Path(folder))
        up = BackgroundStack(f"--repository={folder}", f"--max-models={models.PLACES}")
        load = Load(stack.enter_context(up))
        samples = asyncio.run(_watched(load, Sampler(up), seconds, console))
        announced = up.announced()
        again = [part for part in JUDGED if announced.starts(part) != 1]
        problems = [*load.problems, *(f"{part} was started again" for part in again)]
        return Run(samples, load.done, problems)


async def _watched(load: Load, sampler: Sampler, seconds: float, console: Console) -> list[Sample]:
    """The samples that are taken while it is loaded for so long."""
    loop = asyncio.get_running_loop()
    began = said = loop.time()
    samples: list[Sample] = []
    columns = (BarColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("", total=seconds)
        loading = asyncio.create_task(load.run())
        while (gone := loop.time() - began) < seconds:
            await asyncio.wait((loading,), timeout=EVERY)
            if loading.done():
                loading.result()  # why, for it does not end by itself
            fresh = await asyncio.to_thread(sampler.take)
            samples += fresh
            state = report.state(fresh, load.done, len(load.problems))
            progress.update(bar, completed=gone, description=state)
            if not console.is_terminal and loop.time() - said > LINE_EVERY:
                said = loop.time()
                console.print(f"{gone:.0f} of {seconds:.0f} s: {state}", highlight=False)
        loading.cancel()
        await asyncio.wait((loading,))
    return samples


def _keep(
    given: argparse.Namespace, samples: Sequence[Sample], about: dict[str, str], console: Console
) -> None:
    """What is asked for as files."""
    if given.csv:
        report.write_csv(given.csv, samples)
    paths = [given.plot.with_suffix(ending) for ending in (".svg", ".png")] if given.plot else []
    if given.record:
        paths.append(PLOT)
    if paths and plot.available():
        plot.draw(samples, f"Mixed load, {about['load'].partition(':')[0]}", *paths)
    elif paths:
        console.print("Nothing is drawn: that needs `pip install 'shoal[plot]'`.", markup=False)


def _title() -> str:
    return f"{datetime.now(UTC).date().isoformat()}: whether anything grows under mixed load"


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.growth", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="of load (60)")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write all samples there")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw them there, as .svg and as .png"
    )
    parser.add_argument(
        "--record",
        action="store_true",
        help=f"put the results into bench/{RESULTS.name}, and draw bench/{PLOT.name}",
    )
    given = parser.parse_args(words)
    if given.minutes < 0.5:
        parser.error("--minutes: at least 0.5, or there are too few samples to tell")
    return given


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
