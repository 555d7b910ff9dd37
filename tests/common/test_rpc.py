"""The gRPC server that every service runs: what it tells of itself, refuses, maps and counts."""

import asyncio
import gzip
import socket
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from services.common import channels
from services.common.caller import CallerPolicy
from services.common.errors import InvalidField, ModelNotFound, NotReady
from services.common.ports import PortTaken
from services.common.rpc import MAX_UNPACKED, Context, RpcServer
from services.controller.core.errors import NoServer
from shoal.registry.v1 import registry_service_pb2 as pb
from shoal.registry.v1 import registry_service_pb2_grpc as pb_grpc
from tests.support.registry import refusal
from tests.support.rpc import OPEN, SERVICE, WATCH, Behaviour, Scripted, Stream, serving

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SECRET = "the password is hunter2"


def raising(error: Exception) -> Behaviour:
    async def behaviour(request: Any, context: Context) -> Any:
        raise error

    return behaviour


def streaming(*steps: pb.WatchCatalogResponse | Exception) -> Stream:
    """Sends the responses, and raises what is not one."""

    async def behaviour(request: Any, context: Context) -> AsyncIterator[Any]:
        for step in steps:
            if isinstance(step, Exception):
                raise step
            yield step

    return behaviour


def counted(method: str, code: str) -> float:
    labels = {"method": method, "code": code}
    return REGISTRY.get_sample_value("shoal_rpc_seconds_count", labels) or 0.0


async def received(call: Any) -> tuple[list[int], grpc.aio.AioRpcError | None]:
    """The revisions of a watch's responses until it ends, and how it ended."""
    revisions = []
    try:
        async for response in call:
            revisions.append(response.revision)
    except grpc.aio.AioRpcError as error:
        return revisions, error
    return revisions, None


# --- compressed messages --------------------------------------------------------------------------

LONG = "models/" + 1000 * "a"


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
async def test_messages_may_be_compressed(compression: grpc.Compression) -> None:
    asked: list[str] = []

    async def get(request: Any, context: Context) -> Any:
        asked.append(request.name)
        return pb.GetModelResponse()

    async with serving(Scripted(get)) as running, running.channel() as channel:
        stub = pb_grpc.RegistryServiceStub(channel)
        await stub.GetModel(pb.GetModelRequest(name=LONG), compression=compression)
        assert asked == [LONG]
        health = health_pb2_grpc.HealthStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await health.Check(health_pb2.HealthCheckRequest(service=LONG), compression=compression)
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_handler_that_takes_bytes_gets_them_as_they_came() -> None:
    async def echo(request: bytes, context: Context) -> bytes:
        return request

    raw = grpc.method_handlers_generic_handler(
        "raw.Service", {"Echo": grpc.unary_unary_rpc_method_handler(echo)}
    )
    rpc = RpcServer(CallerPolicy(), open_methods=frozenset({"/raw.Service/Echo"}))
    rpc.services.add_generic_rpc_handlers((raw,))
    port = await rpc.start("127.0.0.1", 0)
    async with channels.control(f"127.0.0.1:{port}") as channel:
        ask: Any = channel.unary_unary("/raw.Service/Echo")
        assert await ask(b"\x1fany bytes") == b"\x1fany bytes"
    await rpc.stop(0)


@pytest.mark.parametrize(
    "message",
    [
        b"\x0a\x05a",
        gzip.compress(bytes(MAX_UNPACKED + 1), mtime=0),
        gzip.compress(b"", mtime=0)[:-1],
    ],
    ids=["plain", "unpacked too large", "packed cut short"],
)
async def test_what_cannot_be_read_is_said_to_be(message: bytes) -> None:
    async with serving(Scripted()) as running, running.channel() as channel:
        ask: Any = channel.unary_unary(OPEN)
        refused = await refusal(ask(message))
        assert (refused.code, refused.reason) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            "MALFORMED_MESSAGE",
        )


# --- what it tells of itself ----------------------------------------------------------------------


async def reflected(channel: grpc.aio.Channel, **request: str) -> Any:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    asked = reflection_pb2.ServerReflectionRequest(**request)
    return await anext(aiter(stub.ServerReflectionInfo(iter([asked]))))


async def test_reflection_lists_the_services_and_knows_their_methods() -> None:
    async with serving() as running, running.channel() as channel:
        listed = await reflected(channel, list_services="*")
        assert {each.name for each in listed.list_services_response.service} == {
            SERVICE,
            "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
        }
        found = await reflected(channel, file_containing_symbol=SERVICE)
        files = [
            FileDescriptorProto.FromString(each)
            for each in found.file_descriptor_response.file_descriptor_proto
        ]
        methods = {
            method.name for file in files for service in file.service for method in service.method
        }
        assert {"GetModel", "DeleteModel", "WatchCatalog"} <= methods


async def test_health_turns_to_serving_when_the_service_says_so() -> None:
    async with serving() as running, running.channel() as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", SERVICE):
            watch = health.Watch(health_pb2.HealthCheckRequest(service=name))
            assert (await watch.read()).status == NOT_SERVING
            await running.rpc.set_ready(True)
            assert (await watch.read()).status == SERVING
            await running.rpc.set_ready(False)
            assert (await watch.read()).status == NOT_SERVING
            watch.cancel()


async def test_health_of_a_service_that_is_not_here() -> None:
    async with serving() as running, running.channel() as channel:
        health = health_pb2_grpc.HealthStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health.Check(health_pb2.HealthCheckRequest(service="no.such.Service"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_service_that_stops_says_so_and_lets_running_calls_end() -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow(request: Any, context: Context) -> pb.GetModelResponse:
        begun.set()
        await go_on.wait()
        return pb.GetModelResponse()

    async with serving(Scripted(slow)) as running, running.channel() as channel:
        await running.rpc.set_ready(True)
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == SERVING
        async with running.stub() as stub:
            call = asyncio.create_task(_get(stub))
            await begun.wait()
            stopping = asyncio.create_task(running.rpc.stop(10))
            assert (await watch.read()).status == NOT_SERVING
            watch.cancel()
            go_on.set()
            assert await call == pb.GetModelResponse()
            await stopping


async def _get(stub: Any) -> pb.GetModelResponse:
    response: pb.GetModelResponse = await stub.GetModel(pb.GetModelRequest())
    return response


# --- ports ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "0.0.0.0", "::"])
async def test_any_spelling_of_a_host(host: str) -> None:
    async with serving(host=host) as running:
        spelled = f"[{host}]" if ":" in host else host
        async with running.stub(spelled) as stub:
            assert await _get(stub) == pb.GetModelResponse()


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
async def test_a_taken_port_is_refused_in_words(host: str) -> None:
    async with serving() as running:
        second = RpcServer(CallerPolicy(), open_methods=frozenset())
        with pytest.raises(PortTaken, match=f"{host}:{running.port} is taken by another program"):
            await second.start(host, running.port)
        await second.stop(0)


async def test_a_port_is_not_even_shared_with_those_who_would() -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        rpc = RpcServer(CallerPolicy(), open_methods=frozenset())
        with pytest.raises(PortTaken):
            await rpc.start("127.0.0.1", other.getsockname()[1])
        await rpc.stop(0)


async def test_a_host_that_is_not_ours_is_no_taken_port() -> None:
    rpc = RpcServer(CallerPolicy(), open_methods=frozenset())
    with pytest.raises(OSError, match="assign requested address"):
        await rpc.start("198.51.100.7", 0)  # reserved for documentation
    await rpc.stop(0)


# --- errors ---------------------------------------------------------------------------------------


async def test_a_refusal_becomes_its_status() -> None:
    servicer = Scripted(raising(ModelNotFound(model="m")))
    async with serving(servicer) as running, running.stub() as stub:
        refused = await refusal(stub.GetModel(pb.GetModelRequest()))
    assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")
    assert refused.metadata == {"model": "m"}
    assert refused.message == str(ModelNotFound(model="m"))
    assert refused.retry_after is None


async def test_a_refusal_says_when_to_come_again() -> None:
    error = NoServer(model="m", version=1, servers="t0 is away", retry_after=1.5)
    async with serving(Scripted(raising(error))) as running, running.stub() as stub:
        refused = await refusal(stub.GetModel(pb.GetModelRequest()))
    assert (refused.code, refused.retry_after) == (grpc.StatusCode.UNAVAILABLE, 1.5)


async def test_a_stream_is_refused_after_what_it_has_sent() -> None:
    error = NotReady(service="the stream", cause="router r was not heard from")
    steps = streaming(
        pb.WatchCatalogResponse(revision=1), pb.WatchCatalogResponse(revision=2), error
    )
    async with serving(Scripted(watch=steps)) as running, running.stub() as stub:
        call = stub.WatchCatalog(pb.WatchCatalogRequest())
        assert [(await call.read()).revision for _ in range(2)] == [1, 2]
        refused = await refusal(call.read())
    assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "NOT_READY")
    assert refused.metadata["cause"] == "router r was not heard from"


async def test_an_error_text_of_any_kind_arrives() -> None:
    problem = "tab\t newline\n percent % and ümläut ✓"
    error = InvalidField(field="f", problem=problem)
    async with serving(Scripted(raising(error))) as running, running.stub() as stub:
        refused = await refusal(stub.GetModel(pb.GetModelRequest()))
    assert refused.metadata["problem"] == problem
    assert refused.message == error.message


@pytest.mark.parametrize("error", [RuntimeError(SECRET), KeyError(SECRET), OSError(5, SECRET)])
async def test_what_nobody_expected_is_internal_and_stays_inside(error: Exception) -> None:
    servicer = Scripted(raising(error), streaming(pb.WatchCatalogResponse(revision=1), error))
    with capture_logs() as logged:
        async with serving(servicer) as running, running.stub() as stub:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.GetModel(pb.GetModelRequest())
            revisions, ended = await received(stub.WatchCatalog(pb.WatchCatalogRequest()))
    assert revisions == [1]
    for failed, method in ((caught.value, OPEN), (ended, WATCH)):
        assert failed is not None
        assert failed.code() is grpc.StatusCode.INTERNAL
        assert failed.details() == f"{method} failed inside the service: its log has the details"
        assert "hunter2" not in repr((failed, failed.trailing_metadata()))
    assert [(entry["method"], entry["exc_info"]) for entry in logged] == [
        (OPEN, error),
        (WATCH, error),
    ]


async def test_a_method_that_is_not_there() -> None:
    async with serving() as running, running.channel() as channel:
        for method in (f"/{SERVICE}/NoSuchMethod", "/no.such.Service/Method"):
            unary: Any = channel.unary_unary(method)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await unary(b"")
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


# --- metrics --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("behaviour", "code"),
    [
        (None, "OK"),
        (raising(ModelNotFound(model="m")), "NOT_FOUND"),
        (raising(ValueError(SECRET)), "INTERNAL"),
    ],
)
async def test_calls_are_counted_by_method_and_code(behaviour: Behaviour | None, code: str) -> None:
    before = counted(OPEN, code)
    servicer = Scripted() if behaviour is None else Scripted(behaviour)
    with capture_logs():
        async with serving(servicer) as running, running.stub() as stub:
            for _ in range(3):
                ended = stub.GetModel(pb.GetModelRequest())
                assert (await ended.code()).name == code
    assert counted(OPEN, code) == before + 3


async def test_streams_and_refusals_at_the_edge_are_counted() -> None:
    steps = streaming(pb.WatchCatalogResponse(revision=1), ModelNotFound(model="m"))
    delete = f"/{SERVICE}/DeleteModel"
    before = counted(WATCH, "NOT_FOUND"), counted(delete, "PERMISSION_DENIED")
    proxied = CallerPolicy(["127.0.0.1"])
    async with serving(Scripted(watch=steps), proxied) as running, running.stub() as stub:
        await received(stub.WatchCatalog(pb.WatchCatalogRequest()))
        await refusal(stub.DeleteModel(pb.DeleteModelRequest()))
    after = counted(WATCH, "NOT_FOUND"), counted(delete, "PERMISSION_DENIED")
    assert after == (before[0] + 1, before[1] + 1)


async def test_the_time_of_a_call_is_taken() -> None:
    async def slow(request: Any, context: Context) -> pb.GetModelResponse:
        await asyncio.sleep(0.05)
        return pb.GetModelResponse()

    labels = {"method": OPEN, "code": "OK"}
    before = REGISTRY.get_sample_value("shoal_rpc_seconds_sum", labels) or 0.0
    async with serving(Scripted(slow)) as running, running.stub() as stub:
        await _get(stub)
    after = REGISTRY.get_sample_value("shoal_rpc_seconds_sum", labels)
    assert after is not None
    assert 0.05 <= after - before < 5


# --- callers that leave ---------------------------------------------------------------------------


class Patient(Scripted):
    """Waits for ever, and says when it begins and when it is cancelled."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def GetModel(self, request: object, context: Context) -> Any:
        await self._for_ever()

    async def WatchCatalog(self, request: object, context: Context) -> AsyncIterator[Any]:
        yield pb.WatchCatalogResponse(revision=1)
        await self._for_ever()

    async def _for_ever(self) -> None:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


async def test_a_caller_that_leaves_ends_the_call() -> None:
    before = counted(OPEN, "CANCELLED")
    servicer = Patient()
    async with serving(servicer) as running, running.stub() as stub:
        call = stub.GetModel(pb.GetModelRequest())
        await servicer.begun.wait()
        assert not servicer.cancelled.is_set()
        call.cancel()
        async with asyncio.timeout(5):
            await servicer.cancelled.wait()
    assert counted(OPEN, "CANCELLED") == before + 1


async def test_a_caller_that_leaves_ends_its_stream() -> None:
    before = counted(WATCH, "CANCELLED")
    servicer = Patient()
    async with serving(servicer) as running, running.stub() as stub:
        call = stub.WatchCatalog(pb.WatchCatalogRequest())
        assert (await call.read()).revision == 1
        await servicer.begun.wait()
        call.cancel()
        async with asyncio.timeout(5):
            await servicer.cancelled.wait()
    assert counted(WATCH, "CANCELLED") == before + 1


async def test_a_deadline_that_passes_ends_the_call() -> None:
    servicer = Patient()
    async with serving(servicer) as running, running.stub() as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetModel(pb.GetModelRequest(), timeout=0.1)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        async with asyncio.timeout(5):
            await servicer.cancelled.wait()
