"""The Routers that follow this Controller, kept with its lease for its successor.

The successor unloads nothing until all of them have come back to it, or have lost their leases. So
whoever gets a table has to be named to the Registry first. While the Registry is away, a new Router
gets its table once the lease as the Registry has it is over: nobody relies on the names then.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Final

from shoal.registry.v1 import registry_service_pb2 as wire

MOST: Final = 1000  # names that the Registry keeps

Names = frozenset[str] | None  # None: not all of them are known


class Followers:
    """The Routers that follow, and what the Registry knows of them.

    `patience`: seconds after which the lease that any earlier call asked for has run out. `known`:
    those of the Controllers before, as the Registry had them when the lease began.
    """

    def __init__(self, patience: float = 0.0) -> None:
        self._patience = patience
        self.known: Names = None
        #: Returns the Routers that follow; set by what acts.
        self.current: Callable[[], Names] = lambda: self.known
        # Those that the Registry has whichever call it took in last. None if it may have no names:
        # a successor then waits for all.
        self._certain: Names = None
        # Since when each Router has waited that every call named, on the monotonic clock.
        self._since: dict[str, float] = {}
        self._named = asyncio.Event()
        self._wanted = asyncio.Event()

    def inherit(self, reply: wire.HoldControllerLeaseResponse) -> None:
        """Take over the Routers of the Controllers before, with the lease."""
        if reply.HasField("followers"):
            self.known = frozenset(reply.followers.routers)
        self._certain = self.known

    async def recorded(self, router: str) -> None:
        """Return once `router` may have a table. It must be one of those that follow."""
        while not self._knows(router):
            since = self._since.setdefault(router, time.monotonic())
            left = since + self._patience - time.monotonic()
            if left <= 0:
                return
            self._named.clear()
            self._wanted.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._named.wait()

    async def wanted(self, seconds: float) -> None:
        """Return when a Router waits to be named, or after `seconds`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wanted.wait()

    def name(self, request: wire.HoldControllerLeaseRequest) -> Names:
        """Name the Routers in a call that is about to be made; return them."""
        self._wanted.clear()
        request.ClearField("followers")
        names = self.current()
        if names is None or len(names) > MOST:
            return None
        request.followers.SetInParent()
        request.followers.routers.extend(sorted(names))
        self._certain = names if self._certain is None else self._certain & names
        for router in self._since.keys() - names:
            del self._since[router]
        return names

    def named(self, names: Names) -> None:
        """Note that the Registry has taken in a call that named `names`."""
        self._certain = names
        self._since.clear()
        self._named.set()

    def _knows(self, router: str) -> bool:
        return self._certain is None or router in self._certain
