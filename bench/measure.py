"""One sample after the other, and the count that shows that every request was answered."""

import time
from collections.abc import Iterator
from typing import Final

from bench import load
from bench.rounds import Sample, order
from bench.subjects import Subjects, Variant
from bench.workloads import WORKLOADS, Workload, request

WARM_UP: Final = 50  # requests for each that is in flight
COUNTED_WITHIN: Final = 5.0  # seconds; Triton counts just after it has answered


def measure(subjects: Subjects, generator: str, rounds: int, seconds: float) -> Iterator[Sample]:
    """Every workload and variant twice a round, each for about so many seconds.

    Raises load.Failed.
    """
    by_name = {variant.name: variant for variant in subjects.variants}
    rates: dict[tuple[Workload, str], float] = {}
    for workload in WORKLOADS:
        for name, variant in by_name.items():
            count = WARM_UP * workload.in_flight
            rates[workload, name] = _sample(subjects, generator, 0, workload, variant, count).rate
    for number in range(1, rounds + 1):
        for workload in WORKLOADS:
            for name in order(list(by_name)):
                count = max(int(rates[workload, name] * seconds), workload.in_flight)
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
            raise load.Failed(
                f"{variant.name}: Triton's count of answers is off by {found - expected:+}"
            )
        time.sleep(0.02)
