"""One sample after the other, there and back, each with all its answers counted."""

import contextlib
import subprocess
import time
from collections.abc import Iterator
from typing import Final

from bench import load
from bench.peers.asking import spread
from bench.peers.subjects import WORKLOADS, Measured, Subject
from bench.rounds import Sample, order
from bench.workloads import Workload

FIRST: Final = 2  # requests for each that is in flight, which tell how many make a warm-up
WARM_UP: Final = 0.5  # seconds
IDLE: Final = 3.0  # seconds

Rates = dict[tuple[str, str], float]  # requests per second, by workload and subject


def measure(measured: Measured, rounds: int, seconds: float, rates: Rates) -> Iterator[Sample]:
    """Every workload and subject twice a round, each for about so many seconds. A peer that fails
    is left out from there on; raises load.Failed when it is another."""
    for number in range(1, rounds + 1):
        for workload in WORKLOADS:
            for name in order([subject.name for subject in measured.subjects]):
                if sample := _tried(measured, number, workload, name, rates, seconds):
                    yield sample


def warm_up(measured: Measured) -> Rates:
    """Raises as `measure` does."""
    rates: Rates = {}
    for workload in WORKLOADS:
        for name in [subject.name for subject in measured.subjects]:
            rates[workload.name, name] = FIRST * workload.in_flight
            for seconds in (1.0, WARM_UP):
                _tried(measured, 0, workload, name, rates, seconds)
    return rates


def idle(measured: Measured) -> dict[str, float]:
    """What each peer takes of a core while nothing is asked."""
    clocks = {one.name: one.clock() for one in measured.subjects if one.peer and one.clock}
    before = {name: clock.seconds() for name, clock in clocks.items()}
    time.sleep(IDLE)
    found = {}
    for name, clock in clocks.items():
        with contextlib.suppress(OSError):  # one of its processes has ended
            found[name] = (clock.seconds() - before[name]) / IDLE
    return found


def _tried(
    measured: Measured, number: int, workload: Workload, name: str, rates: Rates, seconds: float
) -> Sample | None:
    subject = next((one for one in measured.subjects if one.name == name), None)
    if subject is None:
        return None
    requests = max(int(rates[workload.name, name] * seconds), workload.in_flight)
    try:
        sample = _sample(measured, number, workload, subject, requests)
    except (load.Failed, OSError, subprocess.SubprocessError) as failed:
        if subject.peer is None:
            raise
        measured.subjects.remove(subject)
        measured.left_out[name] = f"{workload.title}: {failed}"
        return None
    rates[workload.name, name] = sample.rate
    return sample


def _sample(
    measured: Measured, number: int, workload: Workload, subject: Subject, requests: int
) -> Sample:
    call = subject.calls[workload.name]
    clock = subject.clock() if subject.clock else None
    triton, server = measured.triton.seconds(), clock.seconds() if clock else 0.0
    sent, received = load.h2load(call, spread(workload, call.http1), requests)
    server = clock.seconds() - server if clock else 0.0
    triton = measured.triton.seconds() - triton
    # A gRPC error is an HTTP 200, but one without a message.
    if received != (right := requests * subject.sizes[workload.name]):
        raise load.Failed(
            f"{subject.name}: {requests} right answers have {right} bytes, but {received} came"
        )
    return Sample(
        number,
        workload.name,
        subject.name,
        rate=requests / sent.seconds,
        p50=sent.p50 * 1e6,
        p99=sent.p99 * 1e6,
        proxy_cpu=server / requests * 1e6 if clock else None,
        triton_cpu=triton / requests * 1e6,
        load_cpu=sent.cpu / requests * 1e6,
    )
