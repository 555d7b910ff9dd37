"""A Router's service in this process, in front of a Controller that a test has."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from tritonclient.grpc import service_pb2_grpc

from services.common import channels
from services.common.caller import CallerPolicy
from services.common.rpc import RpcServer
from services.router.admission.admission import Admission
from services.router.api.administration import Administration
from services.router.api.inference import Inference
from services.router.control.calls import ControllerCalls
from services.router.control.model_info import ModelInfo
from services.router.control.placement_watch import PlacementWatch
from services.router.control.residents import ControllerClient
from services.router.control.servers import ServerCalls
from services.router.core.routing.table import Table
from services.router.memory.regions import SharedMemory
from services.router.memory.requests import SharedMemoryRequests
from services.router.streams.call import StreamCalls
from services.router.streams.stream import Streams
from services.router.telemetry.statistics import Statistics
from services.router.unary.forward import Forwarder
from services.router.unary.inference import Requests
from shoal.controller.v1.controller_service_pb2_grpc import ControllerServiceStub

MAX_MESSAGE = 2**31 - 1
SECONDS = 10.0

T = TypeVar("T")


@dataclass(frozen=True)
class Alone:
    """`stub`: of grpc.aio, of inference.GRPCInferenceService. `memory`: None where it is off."""

    address: str
    stub: Any
    watch: PlacementWatch
    memory: SharedMemory | None
    requests: Requests


@asynccontextmanager
async def in_a_task(context: AbstractAsyncContextManager[T]) -> AsyncIterator[T]:
    """Enter and leave `context` in one task, for fixtures: theirs are set up and torn down in two,
    which task groups do not bear."""
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
    name: str = "test",
) -> AsyncIterator[Alone]:
    """Yields once it has a table. `controller`: host:port."""
    async with AsyncExitStack() as stack:
        control = await stack.enter_async_context(channels.control(controller))
        stubs = {controller: ControllerServiceStub(control)}
        watch = PlacementWatch(stubs, f"router-{name}", Table(), None)
        asking = ControllerClient(watch, patience=SECONDS)
        forwarder = Forwarder(watch, asking)
        stack.push_async_callback(forwarder.close)
        callers, statistics = CallerPolicy(proxies), Statistics()
        calls = ControllerCalls(watch)
        servers = ServerCalls(calls)
        further = dict(Administration(watch, calls, servers).answers())
        memory = None
        info = ModelInfo(asking)
        admission = Admission(watch.table)
        requests = Requests(watch, forwarder, statistics, info, admission, max_message=MAX_MESSAGE)
        if shared_memory:
            memory = SharedMemory(watch, servers, callers, router=name, several=several)
            stack.push_async_callback(memory.close)
            further |= memory.answers()
            requests = SharedMemoryRequests(
                watch,
                forwarder,
                statistics,
                info,
                Admission(watch.table),
                memory,
                max_message=MAX_MESSAGE,
            )
        calls_of_streams = StreamCalls(
            watch, asking, forwarder.pick, forwarder.repeats, forwarder.budget
        )
        stack.push_async_callback(calls_of_streams.close)
        streams = Streams(watch, calls_of_streams, requests, statistics, max_message=MAX_MESSAGE)
        service = Inference(watch, requests, info, callers, further, streams, version="0.test")
        rpc = RpcServer(callers, open_methods=frozenset())
        rpc.grpc.add_generic_rpc_handlers((service.handlers(),))
        running = asyncio.create_task(watch.run())
        try:
            async with asyncio.timeout(SECONDS):
                await watch.synchronized.wait()
            address = f"127.0.0.1:{await rpc.start('127.0.0.1', 0)}"
            stack.push_async_callback(rpc.stop, 0)
            channel = await stack.enter_async_context(channels.control(address))
            stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            yield Alone(address, stub, watch, memory, requests)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
