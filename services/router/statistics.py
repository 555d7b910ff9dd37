"""What the Router counted, by model and version."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from services.router.core.routes import Target


@dataclass(slots=True)
class Count:
    """Seconds are sums over all requests. `cold`: had to wait until the model was resident."""

    requests: int = 0
    errors: int = 0
    cold: int = 0
    seconds: float = 0.0
    cold_seconds: float = 0.0


class Statistics(Collector):
    """Plain numbers on the way of a request; made into metrics only when they are read."""

    def __init__(self) -> None:
        self.counts: dict[Target, Count] = {}

    def add(self, target: Target, seconds: float, *, failed: bool, cold: bool) -> None:
        count = self.counts.get(target)
        if count is None:
            count = self.counts[target] = Count()
        count.requests += 1
        count.seconds += seconds
        if failed:
            count.errors += 1
        if cold:
            count.cold += 1
            count.cold_seconds += seconds

    def collect(self) -> Iterator[Metric]:
        for name, text, attribute in _FAMILIES:
            family = CounterMetricFamily(name, text, labels=("model", "version"))
            for target, count in list(self.counts.items()):
                family.add_metric((target.model, str(target.version)), getattr(count, attribute))
            yield family


_FAMILIES: Final = (
    ("shoal_router_requests", "Requests answered, whatever the answer.", "requests"),
    ("shoal_router_errors", "Requests answered with an error.", "errors"),
    ("shoal_router_cold_requests", "Requests that waited until it was resident.", "cold"),
    ("shoal_router_request_seconds", "Time taken by all requests.", "seconds"),
    ("shoal_router_cold_seconds", "Time taken by the cold ones.", "cold_seconds"),
)
