"""Both clients of shoal.client behind one interface, and a server that answers as a test says."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

from services.common.errors import ShoalError
from services.common.status import abort
from shoal.client import AsyncClient, Client, connect, connect_async
from tests.support.grpc_servers import listening

KINDS = ("sync", "aio")


@dataclass(frozen=True)
class Either:
    """A client of either kind, whose methods are awaited."""

    client: Client | AsyncClient

    async def __call__(self, name: str, *arguments: Any, **more: Any) -> Any:
        if isinstance(self.client, Client):
            return await asyncio.to_thread(getattr(self.client, name), *arguments, **more)
        return await getattr(self.client, name)(*arguments, **more)

    async def first(self, count: int | None, name: str, *arguments: Any, **more: Any) -> list[Any]:
        """Return at most `count` items of a stream, and close it."""
        if isinstance(self.client, Client):

            def read() -> list[Any]:
                with closing(getattr(self.client, name)(*arguments, **more)) as stream:
                    return list(islice(stream, count))

            return await asyncio.to_thread(read)
        found: list[Any] = []
        async with aclosing(getattr(self.client, name)(*arguments, **more)) as stream:
            async for one in stream:
                found.append(one)
                if len(found) == count:
                    break
        return found


@asynccontextmanager
async def either(kind: str, **addresses: Any) -> AsyncIterator[Either]:
    if kind == "sync":
        with connect(**addresses) as client:
            yield Either(client)
    else:
        async with connect_async(**addresses) as client:
            yield Either(client)


# --- a server -------------------------------------------------------------------------------------

Behaviour = Callable[["Seen"], Awaitable[bytes]]


@dataclass(frozen=True)
class Seen:
    """A request as the server saw it: when, and how much of its time was left, in seconds."""

    request: Any
    metadata: dict[str, Any]
    at: float
    left: float


@dataclass
class Scripted:
    """A server that answers ModelInfer with `behaviour`, and keeps the requests.

    A stream gets as many answers as the `id` of its first request says, once `refusals` are used
    up.
    """

    behaviour: Behaviour
    address: str = ""
    seen: list[Seen] = field(default_factory=list)
    refusals: list[ShoalError] = field(default_factory=list)
    left: asyncio.Event = field(default_factory=asyncio.Event)

    async def stream(self, messages: Any, context: Any) -> AsyncIterator[bytes]:
        request = service_pb2.ModelInferRequest.FromString(await anext(aiter(messages)))
        if self.refusals:
            await abort(context, self.refusals.pop())
        inner = service_pb2.ModelInferResponse(model_name=request.model_name, id=request.id)
        inner.outputs.add(name="OUTPUT", datatype="INT32", shape=[1])
        try:
            for number in range(int(request.id)):
                del inner.raw_output_contents[:]
                inner.raw_output_contents.append(number.to_bytes(4, "little"))
                made = service_pb2.ModelStreamInferResponse(infer_response=inner)
                yield made.SerializeToString()
                await asyncio.sleep(0)
        finally:
            self.left.set()

    async def answer(self, message: bytes, context: Any) -> bytes:
        one = Seen(
            service_pb2.ModelInferRequest.FromString(message),
            dict(context.invocation_metadata()),
            asyncio.get_running_loop().time(),
            context.time_remaining(),
        )
        self.seen.append(one)
        try:
            return await self.behaviour(one)
        except ShoalError as error:
            await abort(context, error)


@asynccontextmanager
async def scripted(behaviour: Behaviour) -> AsyncIterator[Scripted]:
    made = Scripted(behaviour)
    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    methods: Any = {
        "ModelInfer": grpc.unary_unary_rpc_method_handler(made.answer),
        "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(made.stream),
    }
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("inference.GRPCInferenceService", methods),)
    )
    async with listening(server) as made.address:
        yield made


async def echoed(seen: Seen) -> bytes:
    """Answer with the inputs as outputs."""
    request = seen.request
    response = service_pb2.ModelInferResponse(
        model_name=request.model_name, model_version=request.model_version or "1", id=request.id
    )
    for tensor in request.inputs:
        response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    response.raw_output_contents.extend(request.raw_input_contents)
    return bytes(response.SerializeToString())


@contextmanager
def spanned() -> Iterator[Any]:
    """Make a span of a tracer of its own the current one, and yield its context."""
    from opentelemetry.sdk.trace import TracerProvider

    with TracerProvider().get_tracer("test").start_as_current_span("caller") as span:
        yield span.get_span_context()
