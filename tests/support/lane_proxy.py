"""A proxy that speaks xDS, and obeys as far as the test wants it to."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

import grpc

from services.router.lane.resources import CLUSTER, LISTENER, ROUTES
from services.router.lane.xds import TYPE, message

KINDS: Final = (CLUSTER, LISTENER, ROUTES)
_METHOD: Final = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"
_REQUEST: Final = "envoy.service.discovery.v3.DiscoveryRequest"
_RESPONSE: Final = "envoy.service.discovery.v3.DiscoveryResponse"
SECONDS: Final = 5.0


class Proxy:
    """A proxy's stream. With `accepting`, it accepts all that it is told."""

    def __init__(self, call: Any, node: str, *, accepting: bool) -> None:
        self._call = call
        self._node = node
        self._accepting = accepting
        #: What it has been told, in order.
        self.told: list[Any] = []
        self.changed = asyncio.Event()

    async def subscribe(self, *kinds: str, names: Sequence[str] = ()) -> None:
        for kind in kinds:
            await self._send(kind, resource_names=names)

    async def accept(self, response: Any, *, names: Sequence[str] = ()) -> None:
        await self._answer(response, response.version_info, resource_names=names)

    async def refuse(self, response: Any, why: str) -> None:
        request = self._request(response.type_url.removeprefix(TYPE))
        request.response_nonce = response.nonce
        request.error_detail.message = why
        await self._call.write(request)

    async def _answer(self, response: Any, version: str, **more: Any) -> None:
        kind = response.type_url.removeprefix(TYPE)
        await self._send(kind, response_nonce=response.nonce, version_info=version, **more)

    async def _send(self, kind: str, **more: Any) -> None:
        await self._call.write(self._request(kind, **more))

    def _request(self, kind: str, **more: Any) -> Any:
        request = type(message(_REQUEST))(type_url=TYPE + kind, **more)
        request.node.id = self._node
        return request

    async def read(self) -> None:
        async for response in self._call:
            self.told.append(response)
            if self._accepting:
                await self.accept(response)
            self.changed.set()

    def kinds(self) -> list[str]:
        return [response.type_url.removeprefix(TYPE) for response in self.told]

    def last(self, kind: str) -> Any:
        """Return the resources of one kind that it was told last, by name."""
        found = [one for one in self.told if one.type_url == TYPE + kind]
        return [resource.value for resource in found[-1].resources] if found else None

    async def until_told(self, count: int) -> None:
        async with asyncio.timeout(SECONDS):
            while len(self.told) < count:
                self.changed.clear()
                await self.changed.wait()

    async def silent(self) -> None:
        """Wait until it would have been told more, by a round trip to the server and back."""
        for _ in range(5):
            await asyncio.sleep(0.02)


@asynccontextmanager
async def proxy(address: str, node: str = "one", *, accepting: bool = True) -> AsyncIterator[Proxy]:
    async with AsyncExitStack() as stack:
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
        method: Any = channel.stream_stream(
            _METHOD,
            request_serializer=lambda request: request.SerializeToString(),
            response_deserializer=type(message(_RESPONSE)).FromString,
        )
        call = method(wait_for_ready=True)
        made = Proxy(call, node, accepting=accepting)
        reading = asyncio.create_task(made.read())
        try:
            yield made
        finally:
            call.cancel()
            await asyncio.gather(reading, return_exceptions=True)
