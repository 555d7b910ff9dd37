"""A Router that answers streams, a Controller that does as it is told, and models to ask."""

import asyncio
import struct
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

from services.common import channels
from services.common.errors import LoadFailed
from services.common.rpc import RpcServer
from services.common.status import abort
from services.router.assembly import assembled
from services.router.control.placement_watch import PlacementWatch
from services.router.core.routing.routes import Replica, Target
from services.router.settings import Settings
from services.router.streams.stream import Streams
from services.router.telemetry.statistics import Statistics
from shoal.controller.v1 import controller_service_pb2 as wire
from shoal.controller.v1 import placement_pb2
from shoal.controller.v1.controller_service_pb2_grpc import (
    ControllerServiceServicer,
    ControllerServiceStub,
    add_ControllerServiceServicer_to_server,
)
from shoal.registry.v1 import types_pb2 as registry
from tests.support.grpc_servers import listening
from tests.support.triton_direct import DirectTriton
from tests.support.triton_models import config, write, write_program

SECONDS = 20.0
METHOD = "/inference.GRPCInferenceService/ModelStreamInfer"
MAX_MESSAGE = 2**31 - 1

ECHO, OTHER, FRAIL, SLOW, MANY, SUM = "echo", "other", "frail", "slow", "many", "sum"

# Asked with [n, seconds]: n replies, so far apart, then no more than the flag. Fewer than none:
# -1 one reply with the flag, -2 one without outputs with the flag, -3 an error and then the flag,
# -4 as many as the client takes, of a tenth of a megabyte each.
_MANY = """
import threading
import time
import numpy as np
import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL

def said(*numbers):
    return pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", np.array(numbers, np.float32))])

class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "INPUT").as_numpy()
            sender = request.get_response_sender()
            threading.Thread(target=self.answer, args=(sender, int(x[0]), float(x[1]))).start()

    def answer(self, sender, count, pause):
        for number in range(count):
            time.sleep(pause)
            sender.send(said(number))
        if count == -1:
            sender.send(said(7), flags=FINAL)
            return
        if count == -2:
            sender.send(pb_utils.InferenceResponse([]), flags=FINAL)
            return
        if count == -3:
            sender.send(pb_utils.InferenceResponse(error=pb_utils.TritonError("it is wrong")))
        if count == -4:
            for number in range(200):
                sender.send(said(*[number] * 25_000))
        sender.send(flags=FINAL)
"""

# Adds up what a sequence is given; answers with the sum.
_SUM = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        self.sums = {}

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        id_ = request.correlation_id()
        if request.flags() & pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START:
            self.sums[id_] = np.zeros(1, np.float32)
        self.sums[id_] += pb_utils.get_input_tensor_by_name(request, "INPUT").as_numpy()
        sums = self.sums[id_]
        return pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", sums)])
"""


def write_models(folder: Path) -> Path:
    for name in (ECHO, OTHER, FRAIL):
        write(folder, name)
    write(folder, SLOW, answer="(time.sleep(float(x[0])), x)[1]")
    many = config(MANY)
    many.model_transaction_policy.decoupled = True
    write_program(folder, many, _MANY)
    write_program(folder, config(SUM), _SUM)
    return folder


# --- requests and replies -------------------------------------------------------------------------


def ask(
    model: str,
    *values: float,
    id_: str = "",
    version: str = "",
    finals: bool | None = None,
    sequence: tuple[int | str, bool, bool] | None = None,
    shape: Iterable[int] | None = None,
) -> Any:
    """Return a request. `sequence` is its id, and whether the request starts and ends it."""
    request = service_pb2.ModelInferRequest(model_name=model, model_version=version, id=id_)
    request.inputs.add(name="INPUT", datatype="FP32", shape=shape or [len(values)])
    request.raw_input_contents.append(struct.pack(f"<{len(values)}f", *values))
    if finals is not None:
        request.parameters["triton_enable_empty_final_response"].bool_param = finals
    if sequence is not None:
        name, start, end = sequence
        if isinstance(name, str):
            request.parameters["sequence_id"].string_param = name
        else:
            request.parameters["sequence_id"].int64_param = name
        request.parameters["sequence_start"].bool_param = start
        request.parameters["sequence_end"].bool_param = end
    return request


def numbers(reply: Any) -> tuple[float, ...]:
    (raw,) = reply.infer_response.raw_output_contents
    return struct.unpack(f"<{len(raw) // 4}f", raw)


class Talk:
    """A client's stream, one message at a time."""

    def __init__(self, channel: grpc.aio.Channel, **call: Any) -> None:
        make: Any = channel.stream_stream(
            METHOD,
            request_serializer=service_pb2.ModelInferRequest.SerializeToString,
            response_deserializer=service_pb2.ModelStreamInferResponse.FromString,
        )
        self.call = make(**call)

    async def say(self, *requests: Any) -> None:
        for request in requests:
            async with asyncio.timeout(SECONDS):
                await self.call.write(request)

    async def hear(self) -> Any:
        """Return the next reply, or None when the stream has ended without an error."""
        async with asyncio.timeout(SECONDS):
            reply = await self.call.read()
        return None if reply is grpc.aio.EOF else reply

    async def rest(self) -> list[Any]:
        """Send no more requests, and return the replies until the end."""
        await self.call.done_writing()
        replies = []
        while (reply := await self.hear()) is not None:
            replies.append(reply)
        assert await self.call.code() is grpc.StatusCode.OK
        return replies

    async def all(self, *requests: Any) -> list[Any]:
        await self.say(*requests)
        return await self.rest()


# --- who says where it is -------------------------------------------------------------------------


@dataclass
class Places(ControllerServiceServicer):
    """A Controller that does what the test says.

    `servers` maps ids to addresses. `placed` lists where models are, in the order in which it names
    them. Models in `cold` are placed when they are asked for, once `loaded` is set. `untold` says
    that the table does not tell which models are decoupled. Models in `broken` cannot be loaded,
    for `cause`."""

    servers: dict[str, str]
    placed: dict[str, list[str]]
    arms: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    cold: dict[str, list[str]] = field(default_factory=dict)
    never_retried: frozenset[str] = frozenset()
    broken: frozenset[str] = frozenset()
    cause: str = "no."
    decoupled: frozenset[str] = frozenset({MANY})
    sequenced: frozenset[str] = frozenset({MANY, SUM})
    untold: bool = False
    number: int = 1
    loaded: asyncio.Event = field(default_factory=asyncio.Event)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    asked: list[wire.MakeResidentRequest] = field(default_factory=list)
    heard: list[placement_pb2.WatchPlacementsRequest] = field(default_factory=list)

    def move(self, model: str, *servers: str) -> None:
        self.placed[model] = list(servers)
        self.number += 1
        self.changed.set()

    def told(self, kind: str) -> list[Any]:
        return [getattr(m, kind) for m in self.heard if m.WhichOneof("message") == kind]

    # It writes its responses to the context instead of yielding them.
    async def WatchPlacements(  # type: ignore[override]
        self, request_iterator: Any, context: Any
    ) -> None:
        hearing = asyncio.create_task(self._hear(request_iterator))
        try:
            await context.write(self._snapshot())
            while True:
                try:
                    async with asyncio.timeout(0.2):
                        await self.changed.wait()
                    self.changed.clear()
                    await context.write(self._snapshot())
                except TimeoutError:
                    message = placement_pb2.WatchPlacementsResponse(revision=self._revision())
                    message.checkpoint.SetInParent()
                    await context.write(message)
        finally:
            hearing.cancel()

    async def MakeResident(self, request: Any, context: Any) -> wire.MakeResidentResponse:
        self.asked.append(request)
        if request.model in self.broken:
            error = LoadFailed(
                model=request.model, version=1, server="a", cause=self.cause, backoff_seconds=1
            )
            await abort(context, error)
        if request.model in self.cold:
            await self.loaded.wait()
            if request.model in self.cold:
                self.move(request.model, *self.cold.pop(request.model))
        server = next(s for s in self.placed[request.model] if s != request.missed.server)
        return wire.MakeResidentResponse(
            replica=placement_pb2.ReplicaRef(server=server, model=request.model, version=1),
            address=self.servers[server],
            revision=self._revision(),
            use_lease="lease",
        )

    async def GetModelConfig(self, request: Any, context: Any) -> wire.GetModelConfigResponse:
        made = config(request.model)
        made.model_transaction_policy.decoupled = request.model in self.decoupled
        if request.model in self.sequenced:
            made.sequence_batching.SetInParent()
        return wire.GetModelConfigResponse(config=made.SerializeToString(), config_digest="d")

    async def _hear(self, messages: Any) -> None:
        async for message in messages:
            self.heard.append(message)

    def _revision(self) -> placement_pb2.Revision:
        return placement_pb2.Revision(epoch=1, number=self.number)

    def _snapshot(self) -> placement_pb2.WatchPlacementsResponse:
        message = placement_pb2.WatchPlacementsResponse(revision=self._revision())
        for model in {*self.placed, *self.cold}:
            route = message.snapshot.models.add(model=model, default_version=1)
            servers = self.placed.get(model, [])
            route.versions.add(
                version=1,
                servable=True,
                servers=servers,
                config_digest="d",
                decoupled=None if self.untold else model in self.decoupled,
            )
            if model in self.never_retried:
                route.retry_policy = registry.RETRY_POLICY_NEVER
        for model, arms in self.arms.items():
            route = message.snapshot.models.add(model=model)
            for arm, weight in arms:
                route.arms.add(model=arm, version=1, weight=weight)
        for server, address in self.servers.items():
            message.snapshot.servers.add(server=server, address=address)
        return message


# --- the Router -----------------------------------------------------------------------------------


@dataclass
class Routed:
    """A Router that is running. `channel` leads to it."""

    places: Places
    channel: grpc.aio.Channel
    address: str
    watch: PlacementWatch
    streams: Streams
    statistics: Statistics

    def talk(self, **call: Any) -> Talk:
        return Talk(self.channel, **call)

    def count(self, server: str, model: str) -> int:
        return self.watch.in_use.count(Replica(server, Target(model, 1)))

    def counted(self, model: str) -> tuple[int, int, int]:
        """Return requests, errors and cold requests."""
        count = self.statistics.counts[Target(model, 1)]
        return count.requests, count.errors, count.cold


@asynccontextmanager
async def routed(places: Places, **more: Any) -> AsyncIterator[Routed]:
    """Yield a Router that follows `places`. `more` are settings of its own."""
    async with AsyncExitStack() as stack:
        server = grpc.aio.server()
        add_ControllerServiceServicer_to_server(places, server)
        controller = await stack.enter_async_context(listening(server))
        control = await stack.enter_async_context(channels.control(controller))
        settings = Settings(
            controller=controller,
            controller_patience=SECONDS,
            max_message_bytes=MAX_MESSAGE,
            **more,
        )
        stubs = {controller: ControllerServiceStub(control)}
        made = await stack.enter_async_context(assembled(settings, stubs, name="router-test"))
        watch, streams, statistics = made.watch, made.streams, made.statistics
        rpc = RpcServer(made.callers, open_methods=frozenset())
        rpc.grpc.add_generic_rpc_handlers((made.service.methods(),))
        running = asyncio.create_task(watch.run())
        try:
            async with asyncio.timeout(SECONDS):
                await watch.synchronized.wait()
            address = f"127.0.0.1:{await rpc.start('127.0.0.1', 0)}"
            stack.push_async_callback(rpc.stop, 0)
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
            yield Routed(places, channel, address, watch, streams, statistics)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


def on_a(servers: Mapping[str, DirectTriton], models: Sequence[str], **fields: Any) -> Places:
    """Return a Controller that has everything on server a, unless `placed` says otherwise."""
    placed = {model: ["a"] for model in models}
    placed.update(fields.pop("placed", {}))
    addresses = {name: server.address for name, server in servers.items()}
    return Places(addresses, placed, **fields)
