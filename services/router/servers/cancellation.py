"""Tells servers of requests for which nobody waits any more."""

import asyncio
import time
from typing import Any, Final

import grpc
from tritonclient.grpc import service_pb2

from services.common.tasks import TaskScope
from services.router.core.cancellation import Cancellation, bears_cancellation
from services.router.servers.channels import ServerChannels

SERVER_METADATA: Final = "/inference.GRPCInferenceService/ServerMetadata"
ANSWER_SECONDS: Final = 2.0
KNOWN_SECONDS: Final = 10.0  # until a server may have become one of another release


class Cancellations:
    """Cancels calls to servers, as far as `when` allows. A server is asked for its version when the
    first call to it is to be cancelled."""

    def __init__(self, channels: ServerChannels, when: Cancellation) -> None:
        self._channels = channels
        self._when = when
        #: By address: the answer, or who waits for it, and when it was asked for, in seconds of the
        #: monotonic clock.
        self._borne: dict[str, tuple[asyncio.Task[bool], float]] = {}
        self._running = TaskScope("cancellations of calls")

    def cancel(self, address: str, call: Any) -> None:
        """Cancel a call to the server at `address`, or let it run to its end."""
        if self._when is Cancellation.ALWAYS:
            call.cancel()
        elif self._when is Cancellation.AUTO:
            self._running.start(self._cancel_if_borne(address, call))

    async def bears(self, address: str) -> bool:
        """Return whether calls to the server at `address` may be cancelled."""
        if self._when is Cancellation.AUTO:
            return await self._is_borne(address)
        return self._when is Cancellation.ALWAYS

    async def close(self) -> None:
        """Cancel nothing more."""
        await self._running.close(0)

    async def _cancel_if_borne(self, address: str, call: Any) -> None:
        if await self._is_borne(address):
            call.cancel()

    async def _is_borne(self, address: str) -> bool:
        known, now = self._borne.get(address), time.monotonic()
        if known is None or now - known[1] > KNOWN_SECONDS:
            known = self._running.start(self._ask(address)), now
            self._borne[address] = known
        return await asyncio.shield(known[0])

    async def _ask(self, address: str) -> bool:
        ask: Any = self._channels.to(address).unary_unary(
            SERVER_METADATA,
            response_deserializer=service_pb2.ServerMetadataResponse.FromString,
        )
        try:
            metadata = await ask(b"", timeout=ANSWER_SECONDS)
        except grpc.aio.AioRpcError:
            return False
        return bears_cancellation(metadata.version)
