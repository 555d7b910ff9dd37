"""A little of everything that clients do, right and wrong, for as long as it is let."""

import asyncio
import itertools
import json
import random
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from bench.growth.models import COLD, ECHO, MANY, SLOW, SUM, answer, asked, numbers_of, request
from bench.residency.models import is_right
from bench.residency.models import request as sample
from bench.workloads import INFER
from services.embedded.background import BackgroundStack
from shoal.controller.v1 import controller_service_pb2 as controller
from shoal.controller.v1.controller_service_pb2_grpc import ControllerServiceStub
from shoal.registry.v1 import registry_service_pb2 as registry
from shoal.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from shoal.router.v1 import router_service_pb2 as router
from shoal.router.v1.router_service_pb2_grpc import RouterServiceStub

STREAM: Final = "/inference.GRPCInferenceService/ModelStreamInfer"
WITHIN: Final = 60.0  # seconds for any one thing
LARGE: Final = 1 << 20  # floats
MOST_PROBLEMS: Final = 20  # that are told
# A channel with connections of its own, and no limit to a message.
_OPTIONS: Final = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1))


class Wrong(Exception):
    """An answer that is not the right one."""


class Kind(NamedTuple):
    """Begun every so many seconds, unless it takes longer."""

    name: str
    every: float
    do: Callable[["Load"], Awaitable[None]]


class Load:
    """`done`: how often each kind was done. `problems`: what went otherwise than it should."""

    def __init__(self, stack: BackgroundStack) -> None:
        self.grpc = stack.router_grpc
        self.http = f"http://{stack.router_http}"
        self.controller = stack.controller
        self.registry = stack.registry
        self.serial = itertools.count(1)
        self.done: Counter[str] = Counter()
        self.problems: list[str] = []

    async def run(self) -> None:
        """Until it is cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for kind in KINDS:
                tasks.create_task(self._repeat(kind))

    async def _repeat(self, kind: Kind) -> None:
        loop = asyncio.get_running_loop()
        while True:
            following = loop.time() + kind.every * random.uniform(0.8, 1.2)
            try:
                async with asyncio.timeout(WITHIN):
                    await kind.do(self)
                self.done[kind.name] += 1
            except (Wrong, OSError, TimeoutError, grpc.RpcError) as error:
                if len(self.problems) < MOST_PROBLEMS:
                    self.problems.append(f"{kind.name}: {error!r}")
            await asyncio.sleep(max(0.0, following - loop.time()))

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Any]:
        async with grpc.aio.insecure_channel(self.grpc, _OPTIONS) as channel:
            yield channel


# --- what is answered -----------------------------------------------------------------------------


async def infers(load: Load) -> None:
    async with load.connection() as channel:
        call = channel.unary_unary(INFER)
        for _ in range(10):
            await asyncio.gather(*(_infer(call) for _ in range(2)))


async def _infer(call: Any) -> None:
    _same(is_right(ECHO, await call(sample(ECHO))), True)


async def streams(load: Load) -> None:
    """One of two is ended by its client, the other one reset."""
    async with load.connection() as channel:
        call = channel.stream_stream(STREAM)()
        for _ in range(5):
            await call.write(sample(ECHO))
            await call.write(request(MANY, 3))
        found: Counter[str] = Counter()
        for _ in range(5 + 15):
            reply = await _read(call)
            _same(reply.error_message, "")
            found[reply.infer_response.model_name] += len(numbers_of(reply.infer_response))
        _same(found, {ECHO.name: 5 * 16, MANY: 15})
        if next(load.serial) % 2:
            call.cancel()
        else:
            await call.done_writing()
            _same(await call.read(), grpc.aio.EOF)


async def sequences(load: Load) -> None:
    async with load.connection() as channel:
        call, id_ = channel.unary_unary(INFER), next(load.serial)
        for number in range(4):
            ends = {"sequence_start": number == 0, "sequence_end": number == 3}
            found = answer(await call(request(SUM, 1.0, sequence_id=id_, **ends)))
            _same(list(found), [number + 1.0])


async def over_http(load: Load) -> None:
    tensor = {"name": "INPUT", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}
    model = f"{load.http}/v2/models/{ECHO.name}"
    found = await _http(f"{model}/infer", {"inputs": [tensor]})
    _same(found["outputs"][0]["data"], [2, 3])
    found = await _http(
        f"{load.http}/v1/models/{ECHO.name}/predict", {"inputs": {"INPUT": [[1, 2]]}}
    )
    _same(found["outputs"]["OUTPUT"], [[2, 3]])
    await _http(f"{model}/config")
    await _http(f"{load.http}/v1/models/status")


async def cold(load: Load) -> None:
    """The next one of more models than fit."""
    model = COLD[next(load.serial) % len(COLD)]
    async with load.connection() as channel:
        call = channel.unary_unary(INFER)
        _same(is_right(model, await call(sample(model))), True)


async def large(load: Load) -> None:
    numbers = np.arange(LARGE, dtype="<f4").reshape(1, LARGE)
    async with load.connection() as channel:
        found = answer(await channel.unary_unary(INFER)(asked(ECHO.name, numbers)))
        _same(np.array_equal(found, numbers[0] + 1), True)


# --- what is not ----------------------------------------------------------------------------------


async def errors(load: Load) -> None:
    number = next(load.serial)
    async with load.connection() as channel:
        call = channel.unary_unary(INFER)
        await _refused(call(request(f"nobody_{number}", 1.0)), "NOT_FOUND")
        await _refused(call(b"\x0a\xff" + bytes(number % 100)), "INVALID_ARGUMENT")
        await _refused(call(asked(ECHO.name, np.zeros((1, 2, 3), "<f4"))), "INVALID_ARGUMENT")
        stream = channel.stream_stream(STREAM)()
        await stream.write(request(f"nobody_{number}", 1.0))
        _same("unknown model" in (await _read(stream)).error_message, True)
        await stream.done_writing()
    for path, status in ((f"nobody_{number}", 404), (ECHO.name, 400)):
        try:
            await _http(f"{load.http}/v2/models/{path}/infer", {"inputs": []})
        except urllib.error.HTTPError as error:
            _same(error.code, status)
        else:
            raise Wrong(f"{path} was answered")


async def cancels(load: Load) -> None:
    async with load.connection() as channel:
        call = channel.unary_unary(INFER)
        begun = call(request(SLOW, 0.2))
        await asyncio.sleep(random.uniform(0.0, 0.1))
        begun.cancel()
        await _refused(call(request(SLOW, 0.2), timeout=0.1), "DEADLINE_EXCEEDED")


# --- what is looked at ----------------------------------------------------------------------------


async def reads(load: Load) -> None:
    model = f"models/{COLD[next(load.serial) % len(COLD)].name}"
    async with load.connection() as channel:
        triton = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        await triton.RepositoryIndex(service_pb2.RepositoryIndexRequest())
        await triton.ModelStatistics(service_pb2.ModelStatisticsRequest())
        await triton.ModelConfig(service_pb2.ModelConfigRequest(name=ECHO.name))
        await triton.ServerMetadata(service_pb2.ServerMetadataRequest())
        own = RouterServiceStub(channel)
        await own.ExplainRoute(router.ExplainRouteRequest(model=ECHO.name))
        await own.GetStatistics(router.GetStatisticsRequest())
    async with grpc.aio.insecure_channel(load.controller, _OPTIONS) as channel:
        control: Any = ControllerServiceStub(channel)
        await control.ListReplicas(controller.ListReplicasRequest())
        await control.ListEvents(controller.ListEventsRequest(page_size=100))
        await control.WhyNotLoaded(controller.WhyNotLoadedRequest(name=model))
    async with grpc.aio.insecure_channel(load.registry, _OPTIONS) as channel:
        catalogue: Any = RegistryServiceStub(channel)
        await catalogue.ListModels(registry.ListModelsRequest())


# A hundred requests a second and less, so that two cores have time left.
KINDS: Final = (
    Kind("infers", 0.5, infers),
    Kind("streams", 1.0, streams),
    Kind("sequences", 0.7, sequences),
    Kind("over HTTP", 0.5, over_http),
    Kind("cold", 4.0, cold),
    Kind("large", 3.0, large),
    Kind("errors", 0.7, errors),
    Kind("cancels", 1.0, cancels),
    Kind("reads", 2.0, reads),
)


def _same(found: object, wanted: object) -> None:
    if found != wanted:
        raise Wrong(f"{found!r}, not {wanted!r}")


async def _read(stream: Any) -> service_pb2.ModelStreamInferResponse:
    message = await stream.read()
    if message is grpc.aio.EOF:
        raise Wrong("the stream ended")
    return service_pb2.ModelStreamInferResponse.FromString(message)


async def _refused(call: Any, code: str) -> None:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        _same(error.code().name, code)
    else:
        raise Wrong(f"answered, instead of {code}")


async def _http(url: str, body: object = None) -> Any:
    """GET, or POST where there is a body. Raises urllib.error.HTTPError, an OSError."""
    data = None if body is None else json.dumps(body).encode()

    def ask() -> Any:
        with urllib.request.urlopen(url, data, timeout=WITHIN) as response:
            return json.load(response)

    return await asyncio.to_thread(ask)
