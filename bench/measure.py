"""One sample after the other, and the count that shows that every request was answered."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Final

from bench import load
from bench.rounds import Sample, order
from bench.subjects import Subjects, Variant
from bench.workloads import Workload, request

WARM_UP: Final = 50  # answers, and so many calls for each that is in flight
SETTLED: Final = 1.0  # seconds with hardly any CPU time, after which nothing more is to come
SETTLED_WITHIN: Final = 10.0
IDLE: Final = 0.05  # of a core
COUNTED_WITHIN: Final = 5.0  # seconds; Triton counts just after it has answered


def measure(
    subjects: Subjects,
    workloads: Sequence[Workload],
    generator: str,
    rounds: int,
    seconds: float,
) -> Iterator[Sample]:
    """Every workload and variant twice a round, each for about so many seconds after half of that
    uncounted; those that trace after the others. What one variant has driven out of the caches is
    back then: those at both ends of a round, measured twice in a row, would else look better.

    Raises load.Failed.
    """
    rates: dict[tuple[Workload, str], float] = {}
    for workload in workloads:
        for variant in subjects.of(workload, 0).values():
            calls = max(1, WARM_UP // workload.answers) * workload.in_flight
            rates[workload, variant.name] = _sample(generator, 0, workload, variant, calls).rate
    for number in range(1, rounds + 1):
        for workload in workloads:
            by_name = subjects.of(workload, number)
            traced = [name for name, variant in by_name.items() if variant.traced]
            others = [name for name in by_name if name not in traced]
            for name in (*order(others), *order(traced)):
                calls = int(rates[workload, name] / workload.answers * seconds)
                calls = max(calls, workload.in_flight)
                before = max(calls // 2, workload.in_flight)
                _sample(generator, number, workload, by_name[name], before)
                sample = _sample(generator, number, workload, by_name[name], calls)
                rates[workload, name] = sample.rate
                yield sample
            for name in traced:
                _settle(by_name[name])


def samples(subjects: Subjects, workloads: Sequence[Workload], rounds: int) -> int:
    """How many `measure` gives."""
    return 2 * rounds * sum(len(subjects.of(workload, 0)) for workload in workloads)


def _settle(variant: Variant) -> None:
    """Until it has told of its last requests: that would burden whoever is measured next."""
    assert variant.proxy is not None
    deadline = time.monotonic() + SETTLED_WITHIN
    busy = True
    while busy and time.monotonic() < deadline:
        before = variant.proxy.seconds()
        time.sleep(SETTLED)
        busy = variant.proxy.seconds() - before > IDLE * SETTLED


def _sample(
    generator: str, number: int, workload: Workload, variant: Variant, calls: int
) -> Sample:
    message = request(workload.floats, workload.model)
    address = variant.at(workload)
    behind = variant.triton
    answered = behind.answered()
    triton = behind.clock.seconds()
    proxy = variant.proxy.seconds() if variant.proxy else 0.0
    with behind.churn.going() if workload.churn else contextlib.nullcontext():
        sent = load.send(generator, address, workload, message, calls)
    proxy = variant.proxy.seconds() - proxy if variant.proxy else 0.0
    triton = behind.clock.seconds() - triton
    _all_answered(variant, answered + calls * workload.requests)
    answers = calls * workload.answers
    return Sample(
        number,
        workload.name,
        variant.name,
        rate=answers / sent.seconds,
        p50=sent.p50 * 1e6,
        p99=sent.p99 * 1e6,
        proxy_cpu=proxy / answers * 1e6 if variant.proxy else None,
        triton_cpu=triton / answers * 1e6,
        load_cpu=sent.cpu / answers * 1e6,
    )


def _all_answered(variant: Variant, expected: int) -> None:
    """A gRPC error is an HTTP 200: only Triton's own count tells."""
    deadline = time.monotonic() + COUNTED_WITHIN
    while (found := variant.triton.answered()) != expected:
        if time.monotonic() > deadline:
            raise load.Failed(
                f"{variant.name}: Triton's count of answers is off by {found - expected:+}"
            )
        time.sleep(0.02)
