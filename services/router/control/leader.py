"""The Controller that a Router follows, and the calls that depend on it."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from shoal.controller.v1 import placement_pb2 as wire


class ControllerLost(Exception):
    """The Controller fell silent, or another one acts: the question has to be asked again."""


class ActingController:
    """A Controller, as long as one placement stream from it lasts. `address` is its host:port."""

    def __init__(self, address: str, stub: Any) -> None:
        self.address = address
        self.stub = stub
        #: Messages to be sent on the stream.
        self.outgoing: asyncio.Queue[wire.WatchPlacementsRequest] = asyncio.Queue()
        #: Whether the stream has ended, and with it every call handed to `call`.
        self.lost = False
        self._calls: set[Any] = set()

    async def call(self, call: Any) -> Any:
        """Return the answer to a call that was started on `stub`. Raises ControllerLost,
        AioRpcError.

        A process that was stopped keeps its connections open and answers nothing."""
        self._calls.add(call)
        try:
            if self.lost:
                call.cancel()
            code = await call.code()  # awaiting this does not cancel the call
        except BaseException:
            call.cancel()
            raise
        finally:
            self._calls.discard(call)
        if self.lost and code is not grpc.StatusCode.OK:
            raise ControllerLost(self.address)
        return await call

    def end(self) -> None:
        """End the stream, and the calls that depend on it."""
        self.lost = True
        for call in list(self._calls):
            call.cancel()

    async def messages(self, heartbeat: float) -> AsyncIterator[wire.WatchPlacementsRequest | None]:
        """Yield messages to send as soon as there are any, and None after `heartbeat` seconds
        without one."""
        while not self.lost:
            try:
                async with asyncio.timeout(heartbeat):
                    message = await self.outgoing.get()
            except TimeoutError:
                yield None
            else:
                yield message
