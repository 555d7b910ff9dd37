"""Counts of the Router: by model and version, and of what it delayed or refused."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.router.admission.admission import Admission
from services.router.core.admission.priority import Priority
from services.router.core.admission.rate import RetryBudget
from services.router.core.routing.routes import Target


@dataclass(slots=True)
class VersionCount:
    """The requests to one version. Seconds are sums over all requests; `cold` counts those that
    waited until the model was resident, and `lane` those that did not pass through the Router."""

    requests: int = 0
    errors: int = 0
    cold: int = 0
    lane: int = 0
    seconds: float = 0.0
    cold_seconds: float = 0.0


class Statistics(Collector):
    """Counts requests in plain numbers, which become metrics only when they are read."""

    def __init__(self) -> None:
        self.counts: dict[Target, VersionCount] = {}
        #: Requests of streams that streams to servers answered.
        self.streamed = 0

    def add(
        self, target: Target, seconds: float, *, failed: bool, cold: bool, lane: bool = False
    ) -> None:
        """Count a request."""
        count = self.counts.get(target)
        if count is None:
            count = self.counts[target] = VersionCount()
        count.requests += 1
        count.seconds += seconds
        if failed:
            count.errors += 1
        if lane:
            count.lane += 1
        if cold:
            count.cold += 1
            count.cold_seconds += seconds

    def collect(self) -> Iterator[Metric]:
        for name, text, attribute in _FAMILIES:
            family = CounterMetricFamily(name, text, labels=("model", "version"))
            for target, count in list(self.counts.items()):
                family.add_metric((target.model, str(target.version)), getattr(count, attribute))
            yield family
        yield CounterMetricFamily(
            "shoal_router_streamed_requests",
            "Requests of clients' streams that were sent to servers on streams.",
            self.streamed,
        )


_FAMILIES: Final = (
    ("shoal_router_requests", "Requests answered, whatever the answer.", "requests"),
    ("shoal_router_errors", "Requests answered with an error.", "errors"),
    ("shoal_router_cold_requests", "Requests that waited until the model was resident.", "cold"),
    ("shoal_router_lane_requests", "Requests that the lane's proxy sent to a server.", "lane"),
    ("shoal_router_request_seconds", "Time taken by all requests.", "seconds"),
    ("shoal_router_cold_seconds", "Time taken by cold requests.", "cold_seconds"),
)


class LaneState(Protocol):
    """What is told about the lane."""

    #: Changes of the table that did not wait for the proxy any longer.
    overdue: int

    def __len__(self) -> int:
        """Return the number of models in the lane."""

    @property
    def refused(self) -> int:
        """Configurations that a proxy refused."""

    @property
    def proxies(self) -> int:
        """Proxies that are connected."""


class LaneMetrics(Collector):
    """The state of the `lane`."""

    def __init__(self, lane: LaneState) -> None:
        self._lane = lane

    def collect(self) -> Iterator[Metric]:
        lane = self._lane
        yield GaugeMetricFamily("shoal_router_lane_models", "Models in the lane.", len(lane))
        yield GaugeMetricFamily(
            "shoal_router_lane_proxies", "Proxies that follow this Router.", lane.proxies
        )
        yield CounterMetricFamily(
            "shoal_router_lane_overdue",
            "Changes of the table that did not wait for the proxy any longer.",
            lane.overdue,
        )
        yield CounterMetricFamily(
            "shoal_router_lane_refused", "Configurations that a proxy refused.", lane.refused
        )


class AdmissionMetrics(Collector):
    """What `admission` let through, keeps waiting and refused, and what `budget` allowed."""

    def __init__(self, admission: Admission, budget: RetryBudget) -> None:
        self._admission = admission
        self._budget = budget

    def collect(self) -> Iterator[Metric]:
        yield from self._of_models()
        yield from self._of_tenants()
        yield from self._of_memory()
        retries = CounterMetricFamily(
            "shoal_router_retries",
            "Requests that a server broke off, by whether they were sent again.",
            labels=("outcome",),
        )
        retries.add_metric(("sent",), self._budget.retried)
        retries.add_metric(("refused",), self._budget.refused)
        yield retries
        hedges = CounterMetricFamily(
            "shoal_router_hedges",
            "Requests also sent to a second replica because the first one took long.",
        )
        hedges.add_metric((), self._budget.hedged)
        yield hedges

    def _of_models(self) -> Iterator[Metric]:
        labels = ("model", "version")
        waiting = GaugeMetricFamily(
            "shoal_router_queue_requests",
            "Requests that wait in the Router for a resident model.",
            labels=(*labels, "priority"),
        )
        limit = GaugeMetricFamily(
            "shoal_router_in_flight_limit",
            "The most requests that one replica is sent at a time.",
            labels=labels,
        )
        in_flight = GaugeMetricFamily(
            "shoal_router_in_flight",
            "Requests sent and not answered yet.",
            labels=labels,
        )
        for target, gate in list(self._admission.gates.items()):
            key = (target.model, str(target.version))
            limit.add_metric(key, gate.limit.value)
            in_flight.add_metric(key, gate.in_flight)
            for priority in Priority:
                waiting.add_metric((*key, priority.label), gate.queue.count(priority))
        yield from (waiting, limit, in_flight)

    def _of_memory(self) -> Iterator[Metric]:
        memory_budget = self._admission.memory_budget
        yield GaugeMetricFamily(
            "shoal_router_held_bytes", "Bytes of all requests under way.", memory_budget.held
        )
        yield CounterMetricFamily(
            "shoal_router_memory_refused",
            "Requests refused because there was no memory to hold them.",
            memory_budget.refused,
        )

    def _of_tenants(self) -> Iterator[Metric]:
        admitted = CounterMetricFamily(
            "shoal_router_admitted",
            "Requests sent, at once or after waiting.",
            labels=("priority", "tenant"),
        )
        for tenant, numbers in list(self._admission.tenants.admitted.items()):
            for priority in Priority:
                admitted.add_metric((priority.label, tenant), numbers[priority])
        refused = CounterMetricFamily(
            "shoal_router_refused",
            "Requests not sent because of overload or a limit of their tenant.",
            labels=("reason", "priority", "tenant"),
        )
        for key, number in list(self._admission.refused.items()):
            refused.add_metric(key, number)
        queued = CounterMetricFamily(
            "shoal_router_queued", "Requests that had to wait.", labels=("priority",)
        )
        seconds = CounterMetricFamily(
            "shoal_router_queued_seconds", "Time that requests have waited.", labels=("priority",)
        )
        for priority in Priority:
            queued.add_metric((priority.label,), self._admission.queued[priority])
            seconds.add_metric((priority.label,), self._admission.queued_seconds[priority])
        yield from (admitted, refused, queued, seconds)
