"""A Controller that follows a script, and the Router's end of it."""

import asyncio
import struct
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

from services.common.errors import NotReady
from services.common.status import abort
from services.router import assembly
from services.router.control.residents import Grant
from services.router.core.routing.routes import Target
from services.router.core.wire.request import Sequence
from services.router.servers.answers import InferReply
from services.router.settings import Settings
from shoal.controller.v1 import controller_service_pb2 as wire
from shoal.controller.v1 import placement_pb2
from shoal.controller.v1.controller_service_pb2_grpc import (
    ControllerServiceServicer,
    ControllerServiceStub,
    add_ControllerServiceServicer_to_server,
)
from tests.support.grpc_servers import listening
from tests.support.triton_direct import DirectTriton
from tests.support.triton_models import pids
from tests.support.waiting import until

MODEL = "echo"
TARGET = Target(MODEL, 1)
OTHER = Target("other", 1)
MODELS = (MODEL, OTHER.model)
SOON = 10.0  # seconds


class Scripted(ControllerServiceServicer):
    """A Controller that does what the test says.

    `servers` maps ids to addresses; it grants the first one, unless that is the one that was
    missed. `placed` lists where its table has the model."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.standby = False
        self.frozen = asyncio.Event()
        self.answering = True
        self.servers: dict[str, str] = {}
        self.placed: list[str] = []
        self.asked: list[wire.MakeResidentRequest] = []
        self.heard: list[placement_pb2.WatchPlacementsRequest] = []
        self.address = ""
        self.number = 1

    # It writes its responses to the context instead of yielding them.
    async def WatchPlacements(  # type: ignore[override]
        self, request_iterator: Any, context: Any
    ) -> None:
        if self.standby:
            await abort(context, NotReady(service="it", cause="it stands by"))
        if self.frozen.is_set():
            await asyncio.Event().wait()
        placed = list(self.placed)
        await context.write(self._snapshot())
        hearing = asyncio.create_task(self._hear(request_iterator))
        try:
            while not self.frozen.is_set() and not self.standby:
                await asyncio.sleep(0.2)
                if placed != self.placed:
                    placed, self.number = list(self.placed), self.number + 1
                    await context.write(self._snapshot())
                message = placement_pb2.WatchPlacementsResponse(revision=self._revision())
                message.checkpoint.SetInParent()
                await context.write(message)
            if self.frozen.is_set():
                await asyncio.Event().wait()
        finally:
            hearing.cancel()

    async def _hear(self, messages: Any) -> None:
        async for message in messages:
            self.heard.append(message)

    async def MakeResident(self, request: Any, context: Any) -> wire.MakeResidentResponse:
        self.asked.append(request)
        if not self.answering or self.frozen.is_set():
            await asyncio.Event().wait()
        server = next(s for s in self.servers if s != request.missed.server)
        return wire.MakeResidentResponse(
            replica=placement_pb2.ReplicaRef(
                server=server, model=request.model, version=request.version
            ),
            address=self.servers[server],
            revision=self._revision(),
        )

    def _revision(self) -> placement_pb2.Revision:
        return placement_pb2.Revision(epoch=self.epoch, number=self.number)

    def _snapshot(self) -> placement_pb2.WatchPlacementsResponse:
        message = placement_pb2.WatchPlacementsResponse(revision=self._revision())
        for model in (MODEL, OTHER.model):
            route = message.snapshot.models.add(model=model, default_version=1)
            route.versions.add(version=1, servable=True, servers=self.placed)
        for server, address in self.servers.items():
            message.snapshot.servers.add(server=server, address=address)
        return message

    def told(self, kind: str) -> list[Any]:
        return [getattr(m, kind) for m in self.heard if m.WhichOneof("message") == kind]


@asynccontextmanager
async def serving(controller: Scripted) -> AsyncIterator[None]:
    server = grpc.aio.server()
    add_ControllerServiceServicer_to_server(controller, server)
    async with listening(server) as controller.address:
        yield


class Router:
    """The Router's parts that face the Controller and the servers, without its own service."""

    def __init__(self, made: assembly.Router) -> None:
        self.watch = made.watch
        self.client = made.controller
        self.channels = made.channels
        self.forwarder = made.forwarder

    @property
    def epoch(self) -> int:
        return self.watch.table.revision.epoch

    def follows(self, controller: Scripted) -> bool:
        acting = self.watch.acting
        return acting is not None and acting.address == controller.address

    def resident(self, seconds: float = SOON) -> "asyncio.Task[Grant]":
        deadline = time.monotonic() + seconds
        return asyncio.create_task(self.client.make_resident(TARGET, deadline, None))

    async def infer(
        self, *, target: Target = TARGET, retry: bool = True, sequence: Sequence | None = None
    ) -> InferReply:
        request = service_pb2.ModelInferRequest(model_name=target.model, model_version="1")
        request.inputs.add(name="INPUT", datatype="FP32", shape=[2])
        request.raw_input_contents.append(struct.pack("<2f", 1.0, 2.0))
        message, deadline = request.SerializeToString(), time.monotonic() + SOON
        return await self.forwarder.infer(
            target, message, (), deadline, retry=retry, sequence=sequence
        )


@asynccontextmanager
async def following(
    *controllers: Scripted, hedge_after: float | None = None
) -> AsyncIterator[Router]:
    async with AsyncExitStack() as stack:
        stubs = {}
        for controller in controllers:
            await stack.enter_async_context(serving(controller))
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(controller.address))
            stubs[controller.address] = ControllerServiceStub(channel)
        settings = Settings(controller_patience=SOON, hedge_after=hedge_after)
        router = Router(
            await stack.enter_async_context(assembly.assembled(settings, stubs, name="router-test"))
        )
        running = asyncio.create_task(router.watch.run())
        try:
            yield router
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def in_time(wait: Awaitable[Any]) -> Any:
    async with asyncio.timeout(SOON):
        return await wait


@asynccontextmanager
async def routed(
    servers: dict[str, DirectTriton], placed: tuple[str, ...] = ("a",)
) -> AsyncIterator[tuple[Router, Scripted]]:
    """Yield a Router whose model is on both servers, though the table names only those of
    `placed`."""
    acting = Scripted(1)
    acting.servers = {name: server.address for name, server in servers.items()}
    acting.placed = list(placed)
    async with following(acting) as router:
        await until(lambda: router.follows(acting))
        assert not (await router.infer()).cold
        yield router, acting


def stub(server: DirectTriton, model: str = MODEL) -> int:
    (pid,) = pids(server, model)[1]
    return pid
