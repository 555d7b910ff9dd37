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

from services.controller.core.followers import NamedRouters, Names
from shoal.registry.v1 import registry_service_pb2 as wire

MOST: Final = 1000  # names that the Registry keeps


class Followers:
    """The Routers that follow, as calls to the Registry name them.

    For `patience`, see `NamedRouters`.
    """

    def __init__(self, patience: float = 0.0) -> None:
        #: Returns the Routers that follow; set by what acts.
        self.current: Callable[[], Names] = lambda: self.inherited
        self._named = NamedRouters(patience)
        self._answered = asyncio.Event()
        self._wanted = asyncio.Event()

    @property
    def inherited(self) -> Names:
        """The Routers of earlier Controllers, None if not all of them are known."""
        return self._named.inherited

    def inherit(self, reply: wire.HoldControllerLeaseResponse) -> None:
        """Take over the Routers of earlier Controllers, with the lease."""
        known = reply.followers.routers if reply.HasField("followers") else None
        self._named.inherit(None if known is None else frozenset(known))

    async def recorded(self, router: str) -> None:
        """Return once `router`, which follows, may have its table."""
        while (left := self._named.wait(router, time.monotonic())) > 0:
            self._answered.clear()
            self._wanted.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._answered.wait()

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
        self._named.calling(names)
        return names

    def named(self, names: Names) -> None:
        """Note that the Registry has taken in a call that named `names`."""
        self._named.answered(names)
        self._answered.set()
