"""`python -m bench`: direct Triton, a bare relay and the Router, interleaved in one run."""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from bench import load, machine, report
from bench.rounds import Sample, Summary, order, summaries
from bench.subjects import Subjects, Variant, running
from bench.workloads import WORKLOADS, Workload, request

RESULTS = Path(__file__).with_name("RESULTS.md")
WARM_UP = 20  # requests for each that is in flight
QUIET = 0.5  # load average above which the figures are noisy from the start
COUNTED_WITHIN = 5.0  # seconds; Triton counts just after it has answered


def main(words: Sequence[str]) -> int:
    given = _arguments(words)
    console = Console()
    busy = machine.load_average()
    if busy > QUIET:
        console.print(f"The machine is busy (load average {busy:.1f}): expect noise.")
    samples = []
    try:
        with console.status("Starting the stack"), running(traced=given.otel) as subjects:
            with Progress(console=console, transient=True) as progress:
                count = len(subjects.variants)
                total = given.rounds * len(WORKLOADS) * 2 * count
                task = progress.add_task("Measuring", total=total)
                for sample in measure(subjects, given.generator, given.rounds, given.seconds):
                    samples.append(sample)
                    progress.advance(task)
            about = {
                "machine": machine.describe(),
                "versions": machine.versions(subjects.triton_version),
                "load": f"{given.generator}, {given.rounds} rounds there and back, "
                f"{given.seconds:g} s each; load average before: {busy:.1f}",
            }
    except load.Failed as failed:
        console.print(f"bench: {failed}", style="red", markup=False)
        return 1
    found = summaries(samples)
    for table in report.tables(found):
        console.print(table)
    console.print(report.LEGEND)
    for name, text in about.items():
        console.print(f"{name}: {text}", highlight=False)
    if given.json:
        given.json.write_text(json.dumps(_content(about, found, samples), indent=1))
    if given.record:
        _record(report.section(_title(given), about, found))
    return 0


def measure(subjects: Subjects, generator: str, rounds: int, seconds: float) -> Iterator[Sample]:
    """Every workload and variant twice a round, each for about so many seconds."""
    by_name = {variant.name: variant for variant in subjects.variants}
    rates = {}
    for workload in WORKLOADS:
        for name, variant in by_name.items():
            count = WARM_UP * workload.in_flight
            for _ in range(2):  # the first one also opens connections
                sample = _sample(subjects, generator, 0, workload, variant, count)
            rates[workload, name] = sample.rate
    for number in range(1, rounds + 1):
        for workload in WORKLOADS:
            for name in order(list(by_name)):
                count = max(int(rates[workload, name] * seconds), WARM_UP * workload.in_flight)
                sample = _sample(subjects, generator, number, workload, by_name[name], count)
                rates[workload, name] = sample.rate
                yield sample


def _sample(
    subjects: Subjects,
    generator: str,
    number: int,
    workload: Workload,
    variant: Variant,
    requests: int,
) -> Sample:
    message = request(workload.floats)
    answered = subjects.answered()
    triton = subjects.triton.seconds()
    proxy = variant.proxy.seconds() if variant.proxy else 0.0
    sent = load.send(generator, variant.address, workload, message, requests)
    proxy = variant.proxy.seconds() - proxy if variant.proxy else 0.0
    triton = subjects.triton.seconds() - triton
    _all_answered(subjects, answered + requests, variant)
    return Sample(
        number,
        workload.name,
        variant.name,
        rate=requests / sent.seconds,
        p50=sent.p50 * 1e6,
        p99=sent.p99 * 1e6,
        proxy_cpu=proxy / requests * 1e6 if variant.proxy else None,
        triton_cpu=triton / requests * 1e6,
        load_cpu=sent.cpu / requests * 1e6,
    )


def _all_answered(subjects: Subjects, expected: int, variant: Variant) -> None:
    """A gRPC error is an HTTP 200: only Triton's own count tells."""
    deadline = time.monotonic() + COUNTED_WITHIN
    while (found := subjects.answered()) != expected:
        if time.monotonic() > deadline:
            raise load.Failed(f"{variant.name}: Triton answered {found - expected:+} of the sent")
        time.sleep(0.02)


def _content(
    about: Mapping[str, str], found: Sequence[Summary], samples: Sequence[Sample]
) -> dict[str, object]:
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        **about,
        "summaries": [one._asdict() for one in found],
        "samples": [one._asdict() for one in samples],
    }


def _record(section: str) -> None:
    before = RESULTS.read_text().rstrip() if RESULTS.exists() else "# Results"
    RESULTS.write_text(f"{before}\n\n{section}")


def _title(given: argparse.Namespace) -> str:
    day = datetime.now(UTC).date().isoformat()
    return f"{day}: the Router's cost{', with tracing' if given.otel else ''}"


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under a minute; noisier")
    parser.add_argument("--otel", action="store_true", help="also Routers that trace 1 %% and all")
    parser.add_argument("--rounds", type=int, help="rounds there and back (5)")
    parser.add_argument("--seconds", type=float, help="of each measurement (2)")
    parser.add_argument(
        "--generator",
        choices=load.GENERATORS,
        default=load.available(),
        help="what sends the load (h2load where it is installed)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples there")
    parser.add_argument(
        "--record", action="store_true", help=f"append the results to bench/{RESULTS.name}"
    )
    given = parser.parse_args(words)
    given.rounds = given.rounds or (2 if given.quick else 5)
    given.seconds = given.seconds or (0.7 if given.quick else 2.0)
    return given


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
