"""The Prometheus metrics of the fleet, computed when they are read."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final

from prometheus_client import Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.controller.core.entities import Health, Server
from services.controller.core.memory import Memory
from services.controller.core.states import State
from services.controller.core.view import FleetView
from services.controller.telemetry.journal import Journal

LOAD_SECONDS: Final = Histogram(
    "shoal_load_seconds",
    "Time from the order to load until its end, by outcome: ready, failed, hung.",
    ["outcome"],
    buckets=(0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0),
)


class FleetMetrics(Collector):
    """The state of the fleet, and counts of the journal, as Prometheus metrics.

    The exporter's thread reads them, so every container is copied before it is walked.
    """

    def __init__(self, view: FleetView, journal: Journal) -> None:
        self._view = view
        self._journal = journal

    def collect(self) -> Iterator[Metric]:
        yield from self._servers()
        yield from self._replicas()
        yield from self._waiting()
        yield from self._counters()

    def _servers(self) -> Iterator[Metric]:
        healthy = GaugeMetricFamily(
            "shoal_server_healthy", "1 when the server is healthy and in use.", labels=("server",)
        )
        draining = GaugeMetricFamily(
            "shoal_server_draining",
            "1 when nothing new is placed on the server.",
            labels=("server",),
        )
        models = GaugeMetricFamily(
            "shoal_server_models", "Units that count against max_models.", labels=("server",)
        )
        memory = GaugeMetricFamily(
            "shoal_server_memory_bytes",
            "Bytes for models: budget, soft limit, reserved, measured, leaked.",
            labels=("server", "resource", "what"),
        )
        for server in list(self._view.servers.values()):
            healthy.add_metric((server.id,), server.health is Health.HEALTHY)
            draining.add_metric((server.id,), bool(server.draining))
            models.add_metric((server.id,), self._view.occupied_slots(server.id))
            for what, amounts in self._memory(server).items():
                for resource, amount in list(amounts.items()):
                    memory.add_metric((server.id, resource, what), amount)
        yield from (healthy, draining, models, memory)

    def _memory(self, server: Server) -> Mapping[str, Memory]:
        return {
            "budget": server.budget,
            "soft_limit": server.soft,
            "reserved": self._view.reserved(server.id),
            "measured": server.measured,
            "leaked": server.leaked,
        }

    def _replicas(self) -> Iterator[Metric]:
        states = GaugeMetricFamily(
            "shoal_replicas", "Replicas by server and state.", labels=("server", "state")
        )
        replicas = list(self._view.replicas())
        counts = Counter((replica.key.server, replica.state) for replica in replicas)
        for (server, state), count in counts.items():
            states.add_metric((server, state.value), count)
        ready = Counter(replica.unit for replica in replicas if replica.state is State.READY)
        yield states
        yield _gauge("shoal_resident_versions", "Versions that are READY somewhere.", len(ready))
        copies = sum(count - 1 for count in ready.values())
        yield _gauge("shoal_copies", "READY replicas beyond the first of their version.", copies)

    def _waiting(self) -> Iterator[Metric]:
        yield _gauge("shoal_waiters", "Callers that wait for a load.", self._view.waiters())
        wants = GaugeMetricFamily(
            "shoal_wants",
            "Versions that are to be loaded, by purpose and by whether they have a place.",
            labels=("purpose", "placed"),
        )
        counts = Counter(
            (want.purpose.name.lower(), "yes" if want.server is not None else "no")
            for want in self._view.wants()
        )
        for labels, count in counts.items():
            wants.add_metric(labels, count)
        yield wants
        failures = self._view.failures()
        yield _gauge("shoal_load_backoffs", "Versions that are not tried again yet.", failures)

    def _counters(self) -> Iterator[Metric]:
        events = CounterMetricFamily(
            "shoal_controller_events", "Journal entries, by kind.", labels=("kind",)
        )
        for kind, count in list(self._journal.counts.items()):
            events.add_metric((kind.name.lower(),), count)
        evictions = CounterMetricFamily(
            "shoal_evictions", "Replicas that had to leave, by reason.", labels=("reason",)
        )
        for reason, count in list(self._journal.evictions_by.items()):
            evictions.add_metric((reason,), count)
        made, hit = self._view.predictions()
        predictions = CounterMetricFamily(
            "shoal_predictions", "Loads ahead of their expected use.", made
        )
        hits = CounterMetricFamily(
            "shoal_predictions_hit",
            "Loads ahead of their expected use that were used in time.",
            hit,
        )
        yield from (events, evictions, predictions, hits)


def _gauge(name: str, about: str, value: float) -> Metric:
    return GaugeMetricFamily(name, about, value)
