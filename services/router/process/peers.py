"""Adds up the workers of one Router, so that whichever is asked answers for all."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import grpc
from prometheus_client import REGISTRY, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from services.common import channels
from services.router.process.workers import socket_of
from shoal.router.v1 import router_service_pb2 as router
from shoal.router.v1 import worker_service_pb2 as wire
from shoal.router.v1.worker_service_pb2_grpc import (
    WorkerServiceServicer,
    WorkerServiceStub,
    add_WorkerServiceServicer_to_server,
)

ANSWER_SECONDS: Final = 1.0  # a worker that takes longer is left out

# Metrics of which a sum has no meaning.
_SMALLEST: Final = frozenset({"process_start_time_seconds"})
_LARGEST: Final = frozenset({"python_info", "shoal_router_workers"})

StatisticsSource = Callable[[], router.GetStatisticsResponse]


class Peers:
    """The workers of this Router.

    `own` returns the statistics of this worker. `folder` has the workers' sockets; it is None if
    there is only one process."""

    def __init__(self, own: StatisticsSource, folder: Path | None, worker: int) -> None:
        self._own = own
        self._folder = folder
        self._worker = worker

    @asynccontextmanager
    async def serving(self, servicer: WorkerServiceServicer) -> AsyncIterator[None]:
        """Answer the other workers inside the `async with`."""
        if self._folder is None:
            yield
            return
        server = grpc.aio.server()
        add_WorkerServiceServicer_to_server(servicer, server)
        path = socket_of(self._folder, self._worker)
        path.unlink(missing_ok=True)  # left by an earlier process
        server.add_insecure_port(f"unix:{path}")
        await server.start()
        try:
            yield
        finally:
            await server.stop(None)

    async def statistics(self) -> router.GetStatisticsResponse:
        """Return the statistics of all workers."""
        return added_statistics([share.statistics for share in await self._shares()])

    async def metrics(self) -> bytes:
        """Return the metrics of all workers, in Prometheus's text format."""
        if self._folder is None:
            return generate_latest(REGISTRY)
        return added_metrics([share.metrics.decode() for share in await self._shares()])

    def share(self) -> wire.GetShareResponse:
        """Return statistics and metrics of this worker alone."""
        return wire.GetShareResponse(statistics=self._own(), metrics=generate_latest(REGISTRY))

    async def _shares(self) -> list[wire.GetShareResponse]:
        """Return the shares of all workers, this one's first."""
        if self._folder is None:
            return [self.share()]
        own = socket_of(self._folder, self._worker)
        others = [path for path in sorted(self._folder.glob("*.sock")) if path != own]
        found = await asyncio.gather(*map(_ask, others))
        return [self.share(), *(share for share in found if share is not None)]


async def _ask(path: Path) -> wire.GetShareResponse | None:
    async with channels.control(f"unix:{path}") as channel:
        stub: Any = WorkerServiceStub(channel)
        try:
            share = await stub.GetShare(wire.GetShareRequest(), timeout=ANSWER_SECONDS)
        except grpc.aio.AioRpcError:
            return None
    assert isinstance(share, wire.GetShareResponse)
    return share


def added_statistics(
    shares: Sequence[router.GetStatisticsResponse],
) -> router.GetStatisticsResponse:
    """Add up statistics. Other fields are those of the first share, except that `uptime` is the
    longest and `controller_connected` says whether all are."""
    total = router.GetStatisticsResponse()
    total.CopyFrom(shares[0])
    total.controller_connected = all(share.controller_connected for share in shares)
    total.uptime.FromNanoseconds(max(share.uptime.ToNanoseconds() for share in shares))
    rows: dict[tuple[str, int], router.ModelStatistics] = {}
    for row in (row for share in shares for row in share.models):
        known = rows.get((row.model, row.version))
        if known is None:
            rows[row.model, row.version] = known = router.ModelStatistics()
            known.CopyFrom(row)
            continue
        known.requests += row.requests
        known.errors += row.errors
        known.cold += row.cold
        known.in_flight += row.in_flight
        for name in ("total_duration", "cold_duration"):
            kept, more = getattr(known, name), getattr(row, name)
            kept.FromNanoseconds(kept.ToNanoseconds() + more.ToNanoseconds())
    total.ClearField("models")
    total.models.extend(rows[key] for key in sorted(rows))
    return total


def added_metrics(texts: Iterable[str]) -> bytes:
    """Add up the samples of each series in expositions in Prometheus's text format."""
    families: dict[str, Metric] = {}
    sums: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
    for text in texts:
        for family in text_string_to_metric_families(text):
            families.setdefault(family.name, family)
            series = sums.setdefault(family.name, {})
            for sample in family.samples:
                key = sample.name, tuple(sample.labels.items())
                known = series.get(key)
                series[key] = (
                    sample.value if known is None else _combined(family.name, known, sample.value)
                )
    for name, family in families.items():
        family.samples = [
            Sample(sample, dict(labels), value) for (sample, labels), value in sums[name].items()
        ]
    return generate_latest(_Families(families.values()))


def _combined(name: str, one: float, other: float) -> float:
    if name in _SMALLEST:
        return min(one, other)
    return max(one, other) if name in _LARGEST else one + other


class _Families(Collector):
    """Collects metrics that are complete already."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterator[Metric]:
        yield from self._families
