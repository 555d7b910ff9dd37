"""Resident models while the Controller is down: the same rate, or not."""

import contextlib
import os
import signal
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

import psutil

from bench.load import Failed
from bench.residency.load import ALONE, MANY, WARM, Loop
from bench.residency.models import write_repository
from bench.residency.report import Table
from bench.residency.shoal import running
from bench.rounds import order
from bench.workloads import Workload
from services.embedded.background import Announced, BackgroundStack

WORKLOADS: Final = (ALONE, MANY)
UP, DOWN = "up", "down"
_READY_WITHIN: Final = 60.0  # seconds


class Sample(NamedTuple):
    """`rate`: requests per second; latencies in µs."""

    round: int
    workload: str
    controller: str
    rate: float
    p50: float
    p99: float


def measure(generator: str, rounds: int, seconds: float) -> Iterator[Sample]:
    """With the Controller up, down, down, up in each round. Raises Failed."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="shoal-bench-")))
        write_repository(folder, (WARM,))
        shoal = stack.enter_context(running(folder))
        shoal.infer(WARM)
        (metrics,) = shoal.stack.announced().endpoints["triton_metrics"].values()
        loop = Loop(generator, shoal.address, metrics)
        for workload in WORKLOADS:
            loop.send(workload, 0.2)
        for number in range(1, rounds + 1):
            yield from _phase(number, UP, loop, WORKLOADS, seconds)
            with controller_down(shoal.stack):
                both = order([str(at) for at in range(len(WORKLOADS))])
                twice = [WORKLOADS[int(at)] for at in both]
                yield from _phase(number, DOWN, loop, twice, seconds)
            yield from _phase(number, UP, loop, WORKLOADS[::-1], seconds)


def _phase(
    number: int, controller: str, loop: Loop, workloads: Sequence[Workload], seconds: float
) -> Iterator[Sample]:
    for workload in workloads:
        sent = loop.send(workload, seconds)
        yield Sample(
            number,
            workload.title,
            controller,
            sent.calls / sent.seconds,
            sent.p50 * 1e6,
            sent.p99 * 1e6,
        )


@contextlib.contextmanager
def controller_down(stack: BackgroundStack) -> Iterator[None]:
    """SIGKILL, and nobody to start it again: the stack's supervisor is frozen meanwhile."""
    before = stack.announced()
    controller = psutil.Process(before.pid_of("controller"))
    os.kill(before.pid, signal.SIGSTOP)
    try:
        controller.kill()
        yield
        if controller.is_running() and controller.status() != psutil.STATUS_ZOMBIE:
            raise Failed("the Controller came back by itself")
    finally:
        os.kill(before.pid, signal.SIGCONT)

    def back(now: Announced) -> bool:
        return now.all_ready() and now.starts("controller") > before.starts("controller")

    stack.wait_for(back, _READY_WITHIN)


def tables(samples: Sequence[Sample]) -> list[Table]:
    rows = []
    for workload in dict.fromkeys(one.workload for one in samples):
        ratios = ratios_of(samples, workload)
        cells = [
            f"{median(value):.0f}"
            for field in ("rate", "p99")
            for controller in (UP, DOWN)
            if (value := [getattr(one, field) for one in _of(samples, workload, controller)])
        ]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        rows.append([workload, *cells, f"{median(ratios):.3f}", spread])
    columns = ("load", "req/s up", "down", "p99 µs up", "down", "rate down by up", "range")
    return [Table("A resident model while the Controller is down", columns, rows)]


def ratios_of(samples: Sequence[Sample], workload: str) -> list[float]:
    """The mean rate while it is down by that while it is up, of each round."""
    return [
        _mean(samples, workload, DOWN, number) / _mean(samples, workload, UP, number)
        for number in sorted({one.round for one in samples})
    ]


def _of(samples: Sequence[Sample], workload: str, controller: str) -> list[Sample]:
    return [one for one in samples if (one.workload, one.controller) == (workload, controller)]


def _mean(samples: Sequence[Sample], workload: str, controller: str, number: int) -> float:
    rates = [one.rate for one in _of(samples, workload, controller) if one.round == number]
    return sum(rates) / len(rates)
