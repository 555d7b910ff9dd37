"""The watch over footprints: what the models on each server take, and which have died."""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import structlog

from services.controller.core import events as ev
from services.controller.core import memory
from services.controller.core.entities import Health, ReplicaKey, Unit
from services.controller.core.memory import Memory
from services.controller.core.states import State
from services.controller.core.view import FleetView
from services.controller.measurement import remote
from services.controller.measurement.footprints import Footprints
from services.controller.measurement.processes import Processes
from services.controller.registry.catalogue import Catalogue
from services.controller.triton.client import READY, Triton, TritonGone
from services.controller.triton.config import has_processes

# A reload ends a unit's process and starts another: only one that stays dead has died.
SURE_SECONDS: Final = 0.1

REST: Final = 50  # times as long as a look takes, which grows with the number of processes
REMOTE_SECONDS: Final = 2.0  # how often Triton renews its own metrics

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Remote:
    """A server on another host.

    `metrics_url`: where its metrics are read, empty when that is not known. Not to be given where
    another server shares the host, for the numbers are of the whole host.
    """

    triton: Triton
    metrics_url: str = ""


@dataclass
class Baselines:
    """The memory that each server takes without a model: the first reading of its process."""

    _of: dict[str, tuple[float, Memory]] = field(default_factory=dict)

    def grown(self, server: str, incarnation: float, now: Memory, *, empty: bool) -> Memory:
        """Return what the server takes beyond its baseline, in bytes by resource.

        The first reading of an `empty` process is its baseline; until there is one, nothing counts.
        """
        known = self._of.get(server)
        if known is None or known[0] != incarnation:
            if not empty:
                return dict.fromkeys(now, 0)
            known = self._of[server] = (incarnation, now)
        return {name: max(0, size - known[1].get(name, 0)) for name, size in now.items()}

    def forget(self, server: str) -> None:
        self._of.pop(server, None)


class FootprintWatch:
    """Feeds what the models on every healthy server take, every `interval` seconds.

    On this host their processes are measured, elsewhere Triton's own numbers are read. A replica
    whose process has died is fed at once.
    """

    def __init__(
        self,
        view: FleetView,
        catalogue: Catalogue,
        processes: Processes,
        tritons: Mapping[str, Triton],
        remotes: Mapping[str, Remote],
        *,
        feed: Callable[[ev.Event], None],
        interval: float,
    ) -> None:
        self._view = view
        self._catalogue = catalogue
        self._feed = feed
        self._processes = processes
        self._tritons = tritons
        self._remotes = remotes
        self._interval = interval
        self._baselines = Baselines()

    async def run(self) -> None:
        """Measure every server again and again, for ever."""
        async with asyncio.TaskGroup() as tasks:
            for server in self._tritons:
                tasks.create_task(self._watch(server))

    async def measure(self, server: str) -> None:
        """Feed what the models on `server` take; nothing where it is not on this host."""
        if not self._processes.is_local(server):
            return
        found = await self._processes.look(server)
        if found is not None:
            self._feed(ev.Measured(server, found.units, self._total(server, found)))
            await self._feed_the_dead(server)

    async def _watch(self, server: str) -> None:
        while True:
            if self._processes.is_local(server):
                began = time.monotonic()
                await self.measure(server)
                took = time.monotonic() - began
                await asyncio.sleep(max(self._interval, took * REST))
            else:
                await self._measure_remote(server, self._remotes[server])
                await asyncio.sleep(max(self._interval, REMOTE_SECONDS))

    def _total(self, server: str, found: Footprints) -> Memory:
        empty = not found.units and self._empty(server)
        started = self._processes.incarnation(server)
        grown = self._baselines.grown(server, started, found.others, empty=empty)
        return memory.plus(memory.total(found.units.values()), grown)

    def _empty(self, server: str) -> bool:
        return not self._view.holds_any(server)

    async def _measure_remote(self, server: str, about: Remote) -> None:
        if self._view.health(server) is not Health.HEALTHY:
            self._baselines.forget(server)  # it may come back as another process
            return
        empty = self._empty(server)
        try:
            found = await about.triton.statistics()
            whole = await _whole(about)
        except (TritonGone, OSError, ValueError) as error:
            _log.debug("not measured", server=server, cause=str(error))
            return
        units = {unit: one.memory for unit, one in found.items() if one.memory}
        if whole is not None:
            total = self._baselines.grown(server, 0.0, whole, empty=empty)
        elif units:
            total = memory.total(units.values())
        else:
            return  # its backends report nothing
        self._feed(ev.Measured(server, units, total))

    async def _feed_the_dead(self, server: str) -> None:
        suspects = self._suspects(server)
        if not suspects:
            return
        await asyncio.sleep(SURE_SECONDS)
        try:
            index = await self._tritons[server].index()
        except TritonGone:
            return  # they went with the server
        await self._processes.look(server)
        for unit, cause in self._suspects(server).items():
            if unit in suspects and index.get(unit, ("", ""))[0] == READY:
                self._feed(ev.ReplicaBroken(ReplicaKey(server, unit), cause))

    def _suspects(self, server: str) -> dict[Unit, str]:
        """Return what seems to have died, of what the engine takes to be answering, and why."""
        broken = self._processes.broken(server)
        # Dead processes that were never seen alive belong to units that have no living one.
        unseen = self._processes.nameless(server) > 0
        found: dict[Unit, str] = {}
        for replica in self._view.replicas_on(server):
            unit = replica.unit
            if replica.state is not State.READY or replica.broken:
                continue
            if unit in broken:
                found[unit] = broken[unit]
            elif unseen and self._has_died_unseen(server, unit):
                found[unit] = "it has no process any longer"
        return found

    def _has_died_unseen(self, server: str, unit: Unit) -> bool:
        version = self._catalogue.version(unit)
        expected = version is not None and has_processes(version.config)
        return expected and not self._processes.alive(server, unit)


async def _whole(about: Remote) -> Memory | None:
    if not about.metrics_url:
        return None
    return await asyncio.to_thread(remote.read, about.metrics_url)
