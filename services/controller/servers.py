"""Watching the Tritons: which are there, and what they hold."""

import asyncio
import time
from typing import Final

from services.controller.core import events as ev
from services.controller.core.entities import Health, Server
from services.controller.inventory import inventory, units_in
from services.controller.loop import Loop
from services.controller.triton import READY, Index, Triton, TritonGone

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
        if self._health() is Health.HEALTHY:
            resident = units_in(index, READY, self._selfcheck)
            self._loop.feed(ev.IndexSeen(self._server.id, resident, began))
        elif self._health() is not Health.UNUSABLE:
            await self._attach(index)

    async def _attach(self, index: Index) -> None:
        """Take the server into the fleet, once its answers are right.

        A server that holds models already has been checked before and goes on serving."""
        if not self._loop.fence.open():
            return  # the self-check loads a model
        try:
            found = await inventory(
                self._server, self._triton, index, self._loop.catalog, self._selfcheck
            )
            fresh = not (found.resident or found.loading or found.unloading)
            problem = await self._problem(fresh=fresh)
        except TritonGone as gone:
            self._gone(str(gone))
            return
        if problem is not None:
            self._loop.server_lost(self._server.id, problem, usable=False)
            return
        self._loop.feed(found)

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
