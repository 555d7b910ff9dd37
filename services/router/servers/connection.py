"""Tells whether a failed call's status is the server's own or gRPC's."""

import asyncio
from typing import Final

import grpc

from services.router.core.wire.verdict import Speaker, speaker

# On an idle machine, gRPC reports a lost connection within a millisecond of the end of its calls.
# An error of a model that imitates gRPC is passed on that much later.
LOSS_SECONDS: Final = 0.25

_READY: Final = grpc.ChannelConnectivity.READY


class Connections:
    """Watches connections for their loss. There is at most one watch for each, since gRPC keeps
    those for which nobody waits any more."""

    def __init__(self) -> None:
        self._leaving: dict[grpc.aio.Channel, asyncio.Task[None]] = {}

    async def close(self) -> None:
        """End the watches. Call it before the channels are closed."""
        for leaving in self._leaving.values():
            leaving.cancel()
        await asyncio.gather(*self._leaving.values(), return_exceptions=True)

    async def from_server(self, channel: grpc.aio.Channel, code: str, text: str) -> bool:
        """Return whether the status of a call on `channel` is the server's own. Call it as soon as
        the call has ended. `code` and `text` are those of `verdict`."""
        said_by = speaker(code, text)
        if said_by is not Speaker.CONNECTION:
            return said_by is Speaker.SERVER
        if channel.get_state() is not _READY:
            return False
        leaving = self._leaving.get(channel)
        if leaving is None or leaving.done():
            watch = channel.wait_for_state_change(_READY)
            leaving = self._leaving[channel] = asyncio.ensure_future(watch)
        lost, _ = await asyncio.wait((leaving,), timeout=LOSS_SECONDS)
        return not lost
