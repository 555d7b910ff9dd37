"""The fleet as Prometheus metrics, made when they are read."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final

from prometheus_client import Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.controller.core.entities import Health, Server
from services.controller.core.fleet import Fleet
from services.controller.core.memory import Memory
from services.controller.core.states import State
from services.controller.journal import Journal

LOAD_SECONDS: Final = Histogram(
    "shoal_load_seconds",
    "Time from the order to load until its end, by outcome: ready, failed, hung.",
    ["outcome"],
    buckets=(0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0),
)


class FleetMetrics(Collector):
    """Read from the exporter's thread, so every container is copied before it is walked."""

    def __init__(self, fleet: Fleet, journal: Journal) -> None:
        self._fleet = fleet
        self._journal = journal

    def collect(self) -> Iterator[Metric]:
        yield from self._servers()
        yield from self._replicas()
        yield from self._waiting()
        yield from self._counters()

    def _servers(self) -> Iterator[Metric]:
        healthy = GaugeMetricFamily(
            "shoal_server_healthy", "1 when the server is used.", labels=("server",)
        )
        draining = GaugeMetricFamily(
            "shoal_server_draining", "1 when it is given nothing new.", labels=("server",)
        )
        models = GaugeMetricFamily(
            "shoal_server_models", "Units that count against max_models.", labels=("server",)
        )
        memory = GaugeMetricFamily(
            "shoal_server_memory_bytes",
            "Bytes for models: budget, soft limit, reserved, measured, leaked.",
            labels=("server", "resource", "what"),
        )
        for server in list(self._fleet.servers.values()):
            healthy.add_metric((server.id,), server.health is Health.HEALTHY)
            draining.add_metric((server.id,), bool(server.draining))
            models.add_metric((server.id,), self._fleet.accounts[server.id].occupied_slots)
            for what, amounts in self._memory(server).items():
                for resource, amount in list(amounts.items()):
                    memory.add_metric((server.id, resource, what), amount)
        yield from (healthy, draining, models, memory)

    def _memory(self, server: Server) -> Mapping[str, Memory]:
        return {
            "budget": server.budget,
            "soft_limit": server.soft,
            "reserved": self._fleet.accounts[server.id].occupied,
            "measured": server.measured,
            "leaked": server.leaked,
        }

    def _replicas(self) -> Iterator[Metric]:
        states = GaugeMetricFamily(
            "shoal_replicas", "Replicas by server and state.", labels=("server", "state")
        )
        ready: Counter[object] = Counter()
        for server, here in list(self._fleet.replicas.items()):
            replicas = list(here.values())
            for state, count in Counter(replica.state for replica in replicas).items():
                states.add_metric((server, state.value), count)
            ready.update(replica.unit for replica in replicas if replica.state is State.READY)
        yield states
        yield _gauge("shoal_resident_versions", "Versions that are READY somewhere.", len(ready))
        copies = sum(count - 1 for count in ready.values())
        yield _gauge("shoal_copies", "READY replicas beyond the first of their version.", copies)

    def _waiting(self) -> Iterator[Metric]:
        waiters = sum(len(waiting) for waiting in list(self._fleet.wants.waiting.values()))
        yield _gauge("shoal_waiters", "Callers that wait for a load.", waiters)
        wants = GaugeMetricFamily(
            "shoal_wants",
            "Versions that are to be loaded, by purpose and by whether they have a place.",
            labels=("purpose", "placed"),
        )
        counts = Counter(
            (want.purpose.name.lower(), "yes" if want.server is not None else "no")
            for want in list(self._fleet.wants.by_unit.values())
        )
        for labels, count in counts.items():
            wants.add_metric(labels, count)
        yield wants
        failures = list(self._fleet.failures.by_unit.values())
        yield _gauge("shoal_load_backoffs", "Versions that are not tried again yet.", len(failures))

    def _counters(self) -> Iterator[Metric]:
        events = CounterMetricFamily(
            "shoal_controller_events", "Journal entries, by kind.", labels=("kind",)
        )
        for kind, count in list(self._journal.counts.items()):
            events.add_metric((kind.name.lower(),), count)
        evictions = CounterMetricFamily(
            "shoal_evictions", "Replicas that had to leave, by why.", labels=("reason",)
        )
        for reason, count in list(self._journal.evictions_by.items()):
            evictions.add_metric((reason,), count)
        predictions = CounterMetricFamily(
            "shoal_predictions",
            "Loads ahead of their expected use.",
            self._fleet.habits.predictions,
        )
        hits = CounterMetricFamily(
            "shoal_predictions_hit", "Of those, used in time.", self._fleet.habits.predictions_hit
        )
        yield from (events, evictions, predictions, hits)


def _gauge(name: str, about: str, value: float) -> Metric:
    return GaugeMetricFamily(name, about, value)
