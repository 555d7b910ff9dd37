"""In what order variants are measured, and what their samples say together."""

from collections.abc import Iterable, Sequence
from math import comb
from statistics import fmean, median
from typing import Any, Final, NamedTuple

CONFIDENCE: Final = 0.95
DIRECT: Final = "direct"
RELAY: Final = "relay"


class Sample(NamedTuple):
    """One measurement. `rate`: answers per second. `p50`, `p99`: of a call, in µs. The rest: CPU µs
    per answer, of the proxy (None: there is none), of Triton with its models, and of the load
    generator."""

    round: int
    workload: str
    variant: str
    rate: float
    p50: float
    p99: float
    proxy_cpu: float | None
    triton_cpu: float
    load_cpu: float


class Summary(NamedTuple):
    """Medians over rounds of what Sample has, and ratios to other variants of the same round.

    `of_direct`, `of_relay`: rate by direct Triton's and by the bare relay's; `times_direct`: median
    latency by direct Triton's; `spread`: the lowest and highest `of_direct` of a round; `certain`:
    the `interval` of `of_relay`; `over_relay`: proxy CPU by the relay's. None where there is
    nothing to compare with.
    """

    workload: str
    variant: str
    rate: float
    p50: float
    p99: float
    proxy_cpu: float | None
    triton_cpu: float
    load_cpu: float
    of_direct: float | None
    of_relay: float | None
    spread: tuple[float, float] | None
    certain: tuple[float, float] | None
    times_direct: float | None
    over_relay: float | None


def order(variants: Sequence[str]) -> list[str]:
    """One round, there and back: what drifts steadily meets all variants alike."""
    return [*variants, *reversed(variants)]


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value that `share` of the `ordered` ones do not exceed (nearest rank)."""
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Where the median lies of all the rounds that there could be, with a confidence of 95 %, or
    that of the lowest to the highest value where there are fewer than six.

    By order statistics, whatever the distribution: W. J. Conover, Practical Nonparametric
    Statistics, 3.2."""
    ordered = sorted(values)
    number = len(ordered)
    below, chance = 0, 0.5**number  # of at most `below` values below the median
    while (more := chance + comb(number, below + 1) * 0.5**number) <= (1 - CONFIDENCE) / 2:
        below, chance = below + 1, more
    return ordered[below], ordered[-1 - below]


def summaries(samples: Sequence[Sample]) -> list[Summary]:
    """By workload and variant, in the order in which these appear."""
    groups = dict.fromkeys((sample.workload, sample.variant) for sample in samples)
    return [_summary(samples, workload, variant) for workload, variant in groups]


def _summary(samples: Sequence[Sample], workload: str, variant: str) -> Summary:
    own = [one for one in samples if (one.workload, one.variant) == (workload, variant)]
    of_direct = _ratios(samples, workload, variant, DIRECT, "rate")
    times_direct = _ratios(samples, workload, variant, DIRECT, "p50")
    of_relay = _ratios(samples, workload, variant, RELAY, "rate")
    over_relay = _ratios(samples, workload, variant, RELAY, "proxy_cpu")
    return Summary(
        workload,
        variant,
        rate=median(one.rate for one in own),
        p50=median(one.p50 for one in own),
        p99=median(one.p99 for one in own),
        proxy_cpu=_median(one.proxy_cpu for one in own if one.proxy_cpu is not None),
        triton_cpu=median(one.triton_cpu for one in own),
        load_cpu=median(one.load_cpu for one in own),
        of_direct=_median(of_direct),
        of_relay=_median(of_relay),
        spread=(min(of_direct), max(of_direct)) if of_direct else None,
        certain=interval(of_relay) if of_relay else None,
        times_direct=_median(times_direct),
        over_relay=_median(over_relay),
    )


def _ratios(
    samples: Sequence[Sample], workload: str, variant: str, base: str, field: str
) -> list[float]:
    """The means of each round, `variant`'s by `base`'s."""
    found = []
    for number in sorted({sample.round for sample in samples}):
        mine, theirs = (
            [
                getattr(one, field)
                for one in samples
                if (one.round, one.workload, one.variant) == (number, workload, name)
            ]
            for name in (variant, base)
        )
        if mine and theirs and None not in (*mine, *theirs):
            found.append(fmean(mine) / fmean(theirs))
    return found


def _median(values: Iterable[Any]) -> float | None:
    found = list(values)
    return median(found) if found else None
