"""A real RpcServer on a free port, with a Registry whose calls do what a test wants."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from services.common import channels
from services.common.caller import CallerPolicy
from services.common.rpc import Context, RpcServer
from shoal.registry.v1 import registry_service_pb2 as pb
from shoal.registry.v1 import registry_service_pb2_grpc as pb_grpc

SERVICE = "shoal.registry.v1.RegistryService"
OPEN, ADMINISTRATIVE, WATCH = (
    f"/{SERVICE}/{method}" for method in ("GetModel", "DeleteModel", "WatchCatalog")
)

Behaviour = Callable[[Any, Context], Awaitable[Any]]
Stream = Callable[[Any, Context], AsyncIterator[Any]]


async def answers(request: Any, context: Context) -> pb.GetModelResponse:
    return pb.GetModelResponse()


@dataclass
class Scripted(pb_grpc.RegistryServiceServicer):
    """A servicer with an open call, an administrative one (DeleteModel) and an open stream."""

    get: Behaviour = answers
    watch: Stream | None = None

    async def GetModel(self, request: Any, context: Context) -> Any:
        return await self.get(request, context)

    async def DeleteModel(self, request: Any, context: Context) -> Any:
        return pb.DeleteModelResponse()

    async def WatchCatalog(self, request: Any, context: Context) -> Any:
        assert self.watch is not None
        async for response in self.watch(request, context):
            yield response


@dataclass(frozen=True)
class Running:
    rpc: RpcServer
    port: int

    @asynccontextmanager
    async def stub(self, host: str = "127.0.0.1") -> AsyncIterator[Any]:
        async with channels.control(f"{host}:{self.port}") as channel:
            yield pb_grpc.RegistryServiceStub(channel)

    def channel(self) -> grpc.aio.Channel:
        return channels.control(f"127.0.0.1:{self.port}")


@asynccontextmanager
async def serving(
    servicer: Scripted | None = None,
    policy: CallerPolicy | None = None,
    host: str = "127.0.0.1",
    **options: Any,
) -> AsyncIterator[Running]:
    rpc = RpcServer(policy or CallerPolicy(), open_methods=frozenset({OPEN, WATCH}), **options)
    rpc.announce(SERVICE)
    pb_grpc.add_RegistryServiceServicer_to_server(servicer or Scripted(), rpc.services)
    running = Running(rpc, await rpc.start(host, 0))
    try:
        yield running
    finally:
        await rpc.stop(0)
