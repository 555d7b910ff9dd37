"""The watch over the servers' counters.

They are read every now and then, when somebody asks, and before a unit is unloaded.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import structlog
from tritonclient.grpc import service_pb2

from services.controller.core.entities import Health, ReplicaKey, Unit
from services.controller.core.view import FleetView
from services.controller.measurement.model_statistics import Totals
from services.controller.registry.catalogue import ANSWERABLE, Catalogue, unit_of
from services.controller.triton.client import Triton, TritonGone
from services.controller.triton.statistics import by_unit

# When a server crashes, what it has counted since its last reading is lost.
READ_SECONDS: Final = 2.0
FORGET_SECONDS: Final = 5.0
# Triton counts a request a moment after it has answered.
PROBE_SECONDS: Final = 0.002
PROBE_LOOKS: Final = 10

# Called with a server and its rows, of every unit that is READY there, at each reading.
Tell = Callable[[str, Mapping[Unit, Any]], None]

_log = structlog.get_logger(__name__)


class StatisticsWatch:
    """Triton's statistics over the whole fleet, which no restart or unload sets back."""

    def __init__(
        self, view: FleetView, tritons: Mapping[str, Triton], catalogue: Catalogue
    ) -> None:
        self._view = view
        self._tritons = tritons
        self._catalogue = catalogue
        self._totals = Totals()
        # Rows have to be taken in in the order in which they were read.
        self._reading = {server: asyncio.Lock() for server in tritons}

    async def run(self, tell: Tell) -> None:
        """Read every server again and again, for ever, and `tell` what was read."""
        async with asyncio.TaskGroup() as tasks:
            for server in self._tritons:
                tasks.create_task(self._watch(server, tell))
            while True:
                self._totals.forget([u for u in self._totals.counted() if not self._known(u)])
                await asyncio.sleep(FORGET_SECONDS)

    async def _watch(self, server: str, tell: Tell) -> None:
        while True:
            found = await self._read(server)
            if found is not None:
                tell(server, found)
            await asyncio.sleep(READ_SECONDS)

    async def _read_all(self, servers: Iterable[str]) -> None:
        async with asyncio.TaskGroup() as tasks:
            for server in servers:
                tasks.create_task(self._read(server))

    async def _read(self, server: str) -> Mapping[Unit, Any] | None:
        """Read the server's rows; None when it does not answer: the last ones stand."""
        if self._view.health(server) is not Health.HEALTHY:
            return None
        async with self._reading[server]:
            try:
                found = by_unit(await self._tritons[server].model_statistics())
            except TritonGone as gone:
                _log.debug("no statistics", server=server, cause=str(gone))
                return None
            self._totals.all_seen(server, found)
            return found

    def before_load(self, key: ReplicaKey) -> None:
        """Note that the replica is about to be loaded, and its counters begin anew."""
        self._totals.begins(key)

    async def after_probe(self, key: ReplicaKey) -> None:
        """Note that all that the replica has counted so far was Shoal's own probe."""
        async with self._reading[key.server]:
            for _ in range(PROBE_LOOKS):
                found = await self._rows_of(key)
                self._totals.own(key.server, found)
                if all(row.inference_stats.success.count for row in found.values()):
                    return
                await asyncio.sleep(PROBE_SECONDS)

    async def before_unload(self, key: ReplicaKey) -> None:
        """Read the counters of a replica for the last time, as it is about to be unloaded."""
        async with self._reading[key.server]:
            self._totals.seen(key.server, await self._rows_of(key))

    async def _rows_of(self, key: ReplicaKey) -> Mapping[Unit, Any]:
        """Read a replica's row; none where the server does not answer or does not have it."""
        try:
            return by_unit(await self._tritons[key.server].model_statistics(key.unit))
        except TritonGone as gone:
            _log.debug("no statistics", replica=str(key), cause=str(gone))
            return {}

    async def statistics(self, model: str, version: int) -> Any:
        """Return an inference.ModelStatisticsResponse of one version.

        Version 0 stands for all versions of the model, and model "" for every version that has
        been resident.
        """
        if model:
            entry = self._catalogue.entries.get(model)
            units = [unit_of(known) for known in entry.versions] if entry is not None else []
            wanted = [u for u in units if version in (0, u.version) and self._known(u)]
            await self._read_all({r.key.server for u in wanted for r in self._view.replicas_of(u)})
        else:
            await self._read_all(self._tritons)
            wanted = [unit for unit in self._totals.counted() if self._known(unit)]
        return service_pb2.ModelStatisticsResponse(
            model_stats=[self._totals.of(unit) for unit in sorted(wanted)]
        )

    def _known(self, unit: Unit) -> bool:
        version = self._catalogue.version(unit)
        return version is not None and version.state in ANSWERABLE
