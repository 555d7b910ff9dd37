"""A Router's service in this process, in front of a test's own Controller."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from tritonclient.grpc import service_pb2_grpc

from services.common import channels
from services.common.rpc import RpcServer
from services.router.assembly import assembled
from services.router.control.placement_watch import PlacementWatch
from services.router.memory.regions import SharedMemory
from services.router.settings import Settings
from services.router.unary.inference import UnaryInference
from shoal.controller.v1.controller_service_pb2_grpc import ControllerServiceStub

MAX_MESSAGE = 2**31 - 1
SECONDS = 10.0

T = TypeVar("T")


@dataclass(frozen=True)
class Alone:
    """A Router and its parts. `stub` is a grpc.aio stub of inference.GRPCInferenceService. `memory`
    is None if shared memory is switched off."""

    address: str
    stub: Any
    watch: PlacementWatch
    memory: SharedMemory | None
    inference: UnaryInference


@asynccontextmanager
async def in_a_task(context: AbstractAsyncContextManager[T]) -> AsyncIterator[T]:
    """Enter and leave `context` in one task. Fixtures are set up and torn down in different tasks,
    which task groups do not allow."""
    stop = asyncio.Event()
    entered: asyncio.Future[T] = asyncio.get_running_loop().create_future()

    async def hold() -> None:
        try:
            async with context as value:
                entered.set_result(value)
                await stop.wait()
        except BaseException as error:
            if entered.done():
                raise
            entered.set_exception(error)

    task = asyncio.create_task(hold())
    try:
        yield await entered
    finally:
        stop.set()
        await task


@asynccontextmanager
async def router(
    controller: str,
    *,
    proxies: tuple[str, ...] = (),
    shared_memory: bool = False,
    several: bool = False,
    grpc_port: int = 1,
) -> AsyncIterator[Alone]:
    """Yield a Router once it has a table. `controller` is host:port. `grpc_port` tells it from
    others on this host; the system chooses the port on which it really listens."""
    async with AsyncExitStack() as stack:
        control = await stack.enter_async_context(channels.control(controller))
        settings = Settings(
            controller=controller,
            controller_patience=SECONDS,
            grpc_port=grpc_port,
            shared_memory=shared_memory,
            trusted_proxies=list(proxies),
            worker=0 if several else None,
        )
        stubs = {controller: ControllerServiceStub(control)}
        made = await stack.enter_async_context(
            assembled(settings, stubs, name=f"router-{grpc_port}")
        )
        rpc = RpcServer(made.callers, open_methods=frozenset())
        rpc.grpc.add_generic_rpc_handlers((made.service.methods(),))
        running = asyncio.create_task(made.watch.run())
        try:
            async with asyncio.timeout(SECONDS):
                await made.watch.synchronized.wait()
            address = f"127.0.0.1:{await rpc.start('127.0.0.1', 0)}"
            stack.push_async_callback(rpc.stop, 0)
            channel = await stack.enter_async_context(channels.control(address))
            stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            yield Alone(address, stub, made.watch, made.memory, made.inference)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
