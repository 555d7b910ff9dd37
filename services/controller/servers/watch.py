"""The watch over each Triton: whether it answers, and what it holds."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final, Protocol

from services.controller.core import events as ev
from services.controller.core.entities import Health, Server
from services.controller.core.view import FleetView
from services.controller.registry.catalogue import Catalogue
from services.controller.registry.lease import Fence
from services.controller.servers.inventory import inventory, units_in
from services.controller.triton.client import READY, Index, Triton, TritonGone

STRIKES: Final = 2  # failed looks in a row after which a server is lost
STRIKE_SECONDS: Final = 0.1


class Lost(Protocol):
    """The callback for a server that does not answer (`usable`) or answers wrongly (not)."""

    def __call__(self, server: str, reason: str, *, usable: bool = True) -> None: ...


class ServerWatch:
    """The watch over one Triton.

    `fence`: while it is closed, no server is attached. `interval`: seconds between two looks.
    `selfcheck`: the identity model that checks a server's answers; empty for no check.
    """

    def __init__(
        self,
        server: Server,
        triton: Triton,
        view: FleetView,
        catalogue: Catalogue,
        *,
        feed: Callable[[ev.Event], None],
        lost: Lost,
        fence: Fence,
        interval: float,
        selfcheck: str = "",
    ) -> None:
        self._server = server
        self._triton = triton
        self._view = view
        self._catalogue = catalogue
        self._feed = feed
        self._lost = lost
        self._fence = fence
        self._interval = interval
        self._selfcheck = selfcheck
        self._looking = asyncio.Lock()
        self._looked = 0.0

    async def run(self) -> None:
        """Look at the server every `interval` seconds, for ever."""
        while True:
            await self.look()
            await asyncio.sleep(self._interval)

    async def verify(self) -> None:
        """Return once a look that began after this call is over."""
        asked = time.monotonic()
        async with self._looking:
            if self._looked < asked:
                await self._look()

    async def look(self) -> None:
        """Look at the server now."""
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
        return self._view.health(self._server.id)

    def _gone(self, cause: str) -> None:
        if self._health() in (Health.HEALTHY, Health.UNUSABLE):
            self._lost(self._server.id, f"it does not answer: {cause}")

    async def _found(self, index: Index, began: float) -> None:
        if self._health() is Health.HEALTHY:
            resident = units_in(index, READY, self._selfcheck)
            self._feed(ev.IndexSeen(self._server.id, resident, began))
        elif self._health() is not Health.UNUSABLE:
            await self._attach(index)

    async def _attach(self, index: Index) -> None:
        """Take the server into the fleet once its answers are right.

        A server that holds models has been checked before, and goes on serving.
        """
        if not self._fence.is_open():
            return  # the self-check loads a model
        try:
            found = await inventory(
                self._server, self._triton, index, self._catalogue, self._selfcheck
            )
            fresh = not (found.resident or found.loading or found.unloading)
            problem = await self._problem(fresh=fresh)
            if problem is None and found.server.auto_complete is None:
                completes = await self._triton.completes_configs()
                found = replace(found, server=replace(found.server, auto_complete=completes))
        except TritonGone as gone:
            self._gone(str(gone))
            return
        if problem is not None:
            self._lost(self._server.id, problem, usable=False)
            return
        self._feed(found)

    async def _problem(self, *, fresh: bool) -> str | None:
        """Return what is wrong with the server; None when nothing is."""
        name = await self._triton.name()
        if name != self._server.id:
            return (
                f"the server at {self._server.address} says that it is {name!r}: start it with "
                f"--id={self._server.id}, or correct SHOAL_CONTROLLER_SERVERS"
            )
        if self._selfcheck and fresh:
            return await self._triton.selfcheck(self._selfcheck)
        return None
