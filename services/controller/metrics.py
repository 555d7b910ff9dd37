"""The fleet as Prometheus metrics, made when they are read."""

from collections import Counter
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.controller.core.entities import Health
from services.controller.core.fleet import Fleet
from services.controller.core.residents import occupied, reserved, slots_used
from services.controller.journal import Journal


class FleetMetrics(Collector):
    """Read from the exporter's thread, so every container is copied before it is walked."""

    def __init__(self, fleet: Fleet, journal: Journal) -> None:
        self._fleet = fleet
        self._journal = journal

    def collect(self) -> Iterator[Metric]:
        yield from self._servers()
        yield self._replicas()
        waiting = GaugeMetricFamily("shoal_controller_waiters", "Callers that wait for a load.")
        wants = list(self._fleet.wants.values())
        waiting.add_metric((), sum(len(want.waiters) for want in wants))
        yield waiting
        events = CounterMetricFamily(
            "shoal_controller_events", "Journal entries, by kind.", labels=("kind",)
        )
        for kind, count in list(self._journal.counts.items()):
            events.add_metric((kind.name.lower(),), count)
        yield events

    def _servers(self) -> Iterator[Metric]:
        healthy = GaugeMetricFamily(
            "shoal_server_healthy", "1 when the server is used.", labels=("server",)
        )
        models = GaugeMetricFamily(
            "shoal_server_models", "Units that count against max_models.", labels=("server",)
        )
        memory = GaugeMetricFamily(
            "shoal_server_memory_bytes",
            "Bytes for models: budget, reserved, measured.",
            labels=("server", "resource", "what"),
        )
        for server in list(self._fleet.servers.values()):
            healthy.add_metric((server.id,), server.health is Health.HEALTHY)
            here = dict(self._fleet.replicas[server.id])
            models.add_metric((server.id,), slots_used(occupied(here), self._fleet.specs))
            for what, amounts in (
                ("budget", server.budget),
                ("reserved", reserved(occupied(here))),
                ("measured", server.measured),
            ):
                for resource, amount in amounts.items():
                    memory.add_metric((server.id, resource, what), amount)
        yield from (healthy, models, memory)

    def _replicas(self) -> Metric:
        family = GaugeMetricFamily(
            "shoal_replicas", "Replicas by server and state.", labels=("server", "state")
        )
        for server, here in list(self._fleet.replicas.items()):
            states = Counter(replica.state for replica in list(here.values()))
            for state, count in states.items():
                family.add_metric((server, state.value), count)
        return family
