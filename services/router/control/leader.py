"""The Controller that a Router follows, and the calls that hang on it."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from shoal.controller.v1 import placement_pb2 as wire


class Lost(Exception):
    """The Controller fell silent, or another one acts: what was asked has to be asked again."""


class Acting:
    """One placement stream. `address`: host:port. `outgoing`: what is to be said on the stream.
    `lost`: it is over, and so is every call that it was given."""

    def __init__(self, address: str, stub: Any) -> None:
        self.address = address
        self.stub = stub
        self.outgoing: asyncio.Queue[wire.WatchPlacementsRequest] = asyncio.Queue()
        self.lost = False
        self._calls: set[Any] = set()

    async def call(self, call: Any) -> Any:
        """The answer of a call that was begun on `stub`. Raises Lost, AioRpcError.

        A process that was stopped keeps its connections open and answers nothing.
        """
        self._calls.add(call)
        try:
            if self.lost:
                call.cancel()
            code = await call.code()  # unlike the call itself, not cancelled with it
        except BaseException:
            call.cancel()
            raise
        finally:
            self._calls.discard(call)
        if self.lost and code is not grpc.StatusCode.OK:
            raise Lost(self.address)
        return await call

    def end(self) -> None:
        self.lost = True
        for call in list(self._calls):
            call.cancel()

    async def said(self, heartbeat: float) -> AsyncIterator[wire.WatchPlacementsRequest | None]:
        """What there is to say, as soon as it is there; None after `heartbeat` seconds without."""
        while not self.lost:
            try:
                async with asyncio.timeout(heartbeat):
                    message = await self.outgoing.get()
            except TimeoutError:
                yield None
            else:
                yield message
