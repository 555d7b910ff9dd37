"""The processes of the servers on this host, as of the last look at them."""

import asyncio
import contextlib
import time
from collections.abc import Mapping

import psutil

from services.controller.core.entities import Unit
from services.controller.measurement import footprints
from services.controller.measurement.footprints import Footprints, Stub
from services.controller.measurement.gpus import Gpus


class Processes:
    """The processes of all servers on this host, as far as they are known.

    `addresses`: host:port of the servers' gRPC endpoints, by server id.
    """

    def __init__(self, addresses: Mapping[str, str], gpus: Gpus) -> None:
        self._servers = {
            server: _ServerProcesses(address, gpus) for server, address in addresses.items()
        }

    def is_local(self, server: str) -> bool:
        """Return whether the server is on this host."""
        return server in self._servers

    async def look(self, server: str) -> Footprints | None:
        """Measure what the server's units take; None when it is not there, or not on this host."""
        if server not in self._servers:
            return None
        return await self._servers[server].look()

    async def identify(self, server: str) -> None:
        """Find out which units the server's processes belong to, without measuring them."""
        if server in self._servers:
            await self._servers[server].identify()

    def broken(self, server: str) -> Mapping[Unit, str]:
        """Return the units that had processes and cannot answer any longer, and why."""
        return self._servers[server].broken if server in self._servers else {}

    def alive(self, server: str, unit: Unit) -> bool:
        """Return whether a known process of the unit is alive at this moment."""
        return server in self._servers and self._servers[server].alive(unit)

    def ended(self, server: str, unit: Unit) -> bool:
        """Return whether the unit had processes of which none is alive at this moment.

        False where that cannot be seen.
        """
        return server in self._servers and self._servers[server].ended(unit)

    def nameless(self, server: str) -> int:
        """Return how many dead processes the server has that were never seen alive."""
        found = self._servers[server].found if server in self._servers else None
        return found.nameless if found is not None else 0

    def forget(self, server: str, unit: Unit) -> None:
        """Note that the unit was unloaded, so that it should have no process."""
        if server in self._servers:
            self._servers[server].forget(unit)

    def incarnation(self, server: str) -> float:
        """Return when the server's process was started: another time means another process."""
        return self._servers[server].started


class _ServerProcesses:
    """The processes of one server.

    There is one look at a time. Whoever asks while one is under way gets the next one.
    """

    def __init__(self, address: str, gpus: Gpus) -> None:
        self._address = address
        self._gpus = gpus
        self._looking = asyncio.Lock()
        self._looked = 0.0
        self.found: Footprints | None = None
        self._process: psutil.Process | None = None
        self._stubs: Mapping[int, Stub] = {}
        self._seen: set[Unit] = set()
        self.broken: Mapping[Unit, str] = {}
        self.started = 0.0

    async def look(self) -> Footprints | None:
        asked = time.monotonic()
        async with self._looking:
            if self._looked < asked:
                began = time.monotonic()
                self._take(*await asyncio.to_thread(self._read))
                self._looked = began
            return self.found

    async def identify(self) -> None:
        async with self._looking:
            process = self._process
            if process is not None:
                with contextlib.suppress(psutil.Error):  # the next look finds that it is gone
                    found, _ = await asyncio.to_thread(footprints.stubs_of, process, self._stubs)
                    self._know(found)

    def alive(self, unit: Unit) -> bool:
        return any(stub.alive for stub in self._stubs.values() if stub.unit == unit)

    def ended(self, unit: Unit) -> bool:
        if self.alive(unit):
            return False
        # A dead process that was never seen alive may be this unit's, which has none that lives.
        return unit in self._seen or (self.found is not None and self.found.nameless > 0)

    def _read(self) -> tuple[psutil.Process | None, float, Footprints | None]:
        process = self._process
        if process is None or not process.is_running():
            process = footprints.find_server(self._address)
        if process is None:
            return None, 0.0, None
        known = self._stubs if process == self._process else {}
        try:
            started = process.create_time()
        except psutil.Error:
            return None, 0.0, None
        return process, started, footprints.measure(process, known, self._gpus.used())

    def _take(
        self, process: psutil.Process | None, started: float, found: Footprints | None
    ) -> None:
        if process != self._process:
            self._stubs, self._seen = {}, set()
        self.started = started
        self._process = process if found is not None else None
        self.found = found
        self._know(found.stubs if found is not None else {})
        self.broken = footprints.broken(self._seen, found) if found is not None else {}

    def _know(self, stubs: Mapping[int, Stub]) -> None:
        self._stubs = stubs
        self._seen |= {stub.unit for stub in stubs.values()}

    def forget(self, unit: Unit) -> None:
        self._seen.discard(unit)
