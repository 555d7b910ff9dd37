"""Watching the Tritons: which are there, what they hold, and what it takes."""

import asyncio
import time
from collections.abc import Mapping
from typing import Final

import psutil

from services.controller import footprints
from services.controller.core import events as ev
from services.controller.core import memory
from services.controller.core.entities import Health, Server, Unit
from services.controller.loop import Loop
from services.controller.triton import BUSY, READY, Index, Triton, TritonGone

STRIKES: Final = 2  # looks in a row that fail before a server is lost
STRIKE_SECONDS: Final = 0.1


class ServerWatch:
    """One Triton's watch. `interval`: seconds between two looks at a server."""

    def __init__(
        self, server: Server, triton: Triton, loop: Loop, *, interval: float, selfcheck: str
    ) -> None:
        self._server = server
        self._triton = triton
        self._loop = loop
        self._interval = interval
        self._selfcheck = selfcheck
        self._looking = asyncio.Lock()
        self._looked = 0.0

    async def run(self) -> None:
        """Look, for ever."""
        while True:
            await self.look()
            await asyncio.sleep(self._interval)

    async def verify(self) -> None:
        """Have looked at the server after this call began."""
        asked = time.monotonic()
        async with self._looking:
            if self._looked < asked:
                await self._look()

    async def look(self) -> None:
        async with self._looking:
            await self._look()

    async def _look(self) -> None:
        began = time.monotonic()
        try:
            index = await self._read()
        except TritonGone as gone:
            self._gone(str(gone))
        else:
            await self._found(index, began)
        self._looked = began

    async def _read(self) -> Index:
        for strike in range(STRIKES):
            try:
                return await self._triton.index()
            except TritonGone:
                if strike == STRIKES - 1 or self._health() is not Health.HEALTHY:
                    raise
            await asyncio.sleep(STRIKE_SECONDS)
        raise AssertionError("unreachable")

    def _health(self) -> Health:
        return self._loop.engine.fleet.servers[self._server.id].health

    def _gone(self, cause: str) -> None:
        if self._health() in (Health.HEALTHY, Health.UNUSABLE):
            self._loop.server_lost(self._server.id, f"it does not answer: {cause}")

    async def _found(self, index: Index, began: float) -> None:
        resident = frozenset(
            unit
            for unit, (state, _) in index.items()
            if state == READY and unit.model != self._selfcheck
        )
        if self._health() is Health.HEALTHY:
            self._loop.feed(ev.IndexSeen(self._server.id, resident, began))
        elif self._health() is not Health.UNUSABLE:
            await self._attach(index, resident)

    async def _attach(self, index: Index, resident: frozenset[Unit]) -> None:
        """Take the server into the fleet, once nothing is changing on it and its answers are right.

        A server that holds models already has been checked before and goes on serving."""
        if any(state in BUSY for state, _ in index.values()):
            return
        try:
            problem = await self._problem(fresh=not resident)
        except TritonGone as gone:
            self._gone(str(gone))
            return
        if problem is not None:
            self._loop.server_lost(self._server.id, problem, usable=False)
            return
        self._loop.feed(ev.ServerFound(self._server, resident))

    async def _problem(self, *, fresh: bool) -> str | None:
        name = await self._triton.name()
        if name != self._server.id:
            return (
                f"the server at {self._server.address} says that it is {name!r}: start it with "
                f"--id={self._server.id}, or correct SHOAL_CONTROLLER_SERVERS"
            )
        if self._selfcheck and fresh:
            return await self._triton.selfcheck(self._selfcheck)
        return None


class FootprintWatch:
    """Measures the processes of the servers on this host every `interval` seconds. `addresses`:
    host:port of their gRPC endpoints, by server id."""

    def __init__(self, loop: Loop, addresses: Mapping[str, str], interval: float) -> None:
        self._loop = loop
        self._addresses = addresses
        self._interval = interval
        self._processes: dict[str, psutil.Process] = {}
        self._baselines: dict[str, memory.Memory] = {}

    async def run(self) -> None:
        """Measure, for ever."""
        while True:
            for server in self._addresses:
                await self.measure(server)
            await asyncio.sleep(self._interval)

    async def measure(self, server: str) -> None:
        """Feed what the models on `server` take now; nothing where it is not on this host."""
        if server not in self._addresses:
            return
        found = await asyncio.to_thread(self._measure, server)
        if found is not None:
            self._loop.feed(ev.Measured(server, found.units, self._total(server, found)))

    def _measure(self, server: str) -> footprints.Footprints | None:
        process = self._processes.get(server)
        if process is None or not process.is_running():
            process = footprints.find_server(self._addresses[server])
            self._baselines.pop(server, None)
            if process is None:
                return None
            self._processes[server] = process
        found = footprints.measure(process)
        if found is None:
            self._processes.pop(server, None)
        return found

    def _total(self, server: str, found: footprints.Footprints) -> memory.Memory:
        """What the server takes over what it took when it was first seen without a model."""
        if server not in self._baselines and not found.units:
            self._baselines[server] = found.others
        grown = {
            resource: max(0, size - self._baselines.get(server, found.others).get(resource, size))
            for resource, size in found.others.items()
        }
        return memory.plus(memory.total(found.units.values()), grown)
