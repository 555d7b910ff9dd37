"""Whether a failed call's status is the server's own word, or gRPC's about the connection to it."""

import asyncio
from typing import Final

import grpc

from services.router.core.wire.verdict import Speaker, speaker

# gRPC tells of a lost connection within a millisecond of the end of its calls, on a machine with
# nothing else to do. A model that speaks as gRPC does is answered that much later.
LOSS_SECONDS: Final = 0.25

_READY: Final = grpc.ChannelConnectivity.READY


class Connections:
    """What is watched of them: one watch for each at most, for gRPC keeps those that nobody waits
    for any more."""

    def __init__(self) -> None:
        self._leaving: dict[grpc.aio.Channel, asyncio.Task[None]] = {}

    async def close(self) -> None:
        """Before the channels are."""
        for leaving in self._leaving.values():
            leaving.cancel()
        await asyncio.gather(*self._leaving.values(), return_exceptions=True)

    async def answered(self, channel: grpc.aio.Channel, code: str, text: str) -> bool:
        """Ask as soon as the call has ended. `channel`: it was made on. `code`, `text`: of its
        status, as for `verdict`."""
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
