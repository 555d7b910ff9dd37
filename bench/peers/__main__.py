"""`python -m bench.peers`: direct Triton, a bare relay, Shoal and its peers, interleaved."""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

from rich.console import Console
from rich.progress import Progress

from bench import load, machine
from bench import report as plain
from bench.__main__ import QUIET
from bench.peers import environments, measure, plot, report
from bench.peers.catalog import PEERS
from bench.peers.subjects import WORKLOADS, Measured, running
from bench.results import RESULTS, record
from bench.rounds import Sample, summaries

PLOT: Final = RESULTS.with_name("peers.svg")


class Found(NamedTuple):
    """`about`: what it was measured on."""

    samples: list[Sample]
    rows: list[report.Row]
    about: dict[str, str]


def main(words: Sequence[str]) -> int:
    given = _arguments(words)
    console = Console()
    busy = machine.load_average()
    if busy > QUIET:
        console.print(f"The machine is busy (load average {busy:.1f}): expect noise.")
    try:
        found = _run(given, console)
    except (load.Failed, OSError, RuntimeError) as failed:
        console.print(f"bench: {failed}", style="red", markup=False)
        return 1
    found.about["load"] += f"; load average before: {busy:.1f}"
    _show(console, found)
    _keep(given, found)
    return 0


def _run(given: argparse.Namespace, console: Console) -> Found:
    peers = [peer for peer in PEERS if peer.name in given.only]

    def tell(text: str) -> None:
        console.print(text, highlight=False, markup=False)

    with running(peers, tell) as measured:
        tell("Warming up")
        rates = measure.warm_up(measured)
        idle = measure.idle(measured)
        samples = _measured(given, console, measured, rates)
    rows = []
    for peer in peers:
        reason = measured.left_out.get(peer.name, "")
        version = "" if reason else environments.version(peer)
        rows.append(report.Row(peer, version, idle.get(peer.name), reason))
    about = {
        "machine": machine.describe(),
        "versions": machine.versions(measured.triton_version),
        "load": f"{load.described('h2load')}; {given.rounds} rounds there and back, "
        f"{given.seconds:g} s each",
    }
    return Found([one for one in samples if one.variant not in measured.left_out], rows, about)


def _measured(
    given: argparse.Namespace, console: Console, measured: Measured, rates: measure.Rates
) -> list[Sample]:
    """All samples, counted while they come."""
    samples = []
    total = given.rounds * len(WORKLOADS) * 2 * len(measured.subjects)
    # Nothing is drawn while there is something to measure: that would cost CPU, too.
    with Progress(console=console, transient=True, auto_refresh=False) as progress:
        task = progress.add_task("Measuring", total=total)
        for sample in measure.measure(measured, given.rounds, given.seconds, rates):
            samples.append(sample)
            progress.update(task, advance=1, refresh=True)
            if not console.is_terminal and len(samples) % 18 == 0:
                console.print(f"{len(samples)} of {total}", highlight=False)
    return samples


def _show(console: Console, found: Found) -> None:
    for table in plain.tables(summaries(found.samples)):
        console.print(table, "")
    console.print(plain.LEGEND, report.NOTE, "", highlight=False)
    console.print(report.peers_table(found.rows), "")
    for name, text in found.about.items():
        console.print(f"{name}: {text}", highlight=False)


def _keep(given: argparse.Namespace, found: Found) -> None:
    sums = summaries(found.samples)
    if given.json:
        content = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            **found.about,
            "peers": [report.cells(row) for row in found.rows],
            "summaries": [one._asdict() for one in sums],
            "samples": [one._asdict() for one in found.samples],
        }
        given.json.write_text(json.dumps(content, indent=1) + "\n")
    if given.plot:
        plot.draw(given.plot, sums)
    if given.record:
        plot.draw(PLOT, sums)
        title = f"{datetime.now(UTC).date().isoformat()}: Shoal and its peers"
        section = report.section(title, found.about, sums, found.rows, PLOT.name)
        record(section)


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.peers",
        description=__doc__,
        epilog="Ray Serve and KServe listen on all interfaces while it runs: it cannot be changed.",
    )
    parser.add_argument("--quick", action="store_true", help="some two minutes; noisier")
    names = [peer.name for peer in PEERS]
    parser.add_argument(
        "--only", nargs="+", choices=names, default=names, metavar="PEER", help=", ".join(names)
    )
    parser.add_argument("--rounds", type=int, help="there and back, each (5)")
    parser.add_argument("--seconds", type=float, help="of each measurement (1.5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them there (.svg, .png)")
    parser.add_argument(
        "--record",
        action="store_true",
        help=f"put the results into bench/{RESULTS.name}, and draw bench/{PLOT.name}",
    )
    given = parser.parse_args(words)
    if not shutil.which("h2load"):
        parser.error("h2load is needed: apt-get install nghttp2-client")
    if (given.plot or given.record) and not plot.available():
        parser.error("matplotlib is needed: pip install 'shoal[plot]', or use make bench-peers")
    given.rounds = given.rounds or (1 if given.quick else 5)
    given.seconds = given.seconds or (0.7 if given.quick else 1.5)
    return given


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
