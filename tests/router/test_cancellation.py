"""Requests for which nobody waits any more: what their servers are told."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import pytest
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from services.common import web
from services.common.caller import CallerPolicy
from services.common.ports import listen
from services.router.call import Call
from services.router.core.cancellation import bears_cancellation
from services.router.rest.app import app
from services.router.rest.openapi import pages
from services.router.rest.service import Service
from services.router.rest.table import ROUTES
from tests.support.scripted_triton import ScriptedTriton, scripted
from tests.support.streams import ECHO, MANY, OTHER, Places, Routed, ask, routed
from tests.support.waiting import until

MODELS = (ECHO, OTHER, MANY)
OLD, SOUND = "2.51.0", "2.59.0"
LARGEST = 1 << 20  # bytes of a body

Way = Callable[[Routed, ScriptedTriton], Awaitable[None]]


@pytest.mark.parametrize(
    ("version", "borne"),
    [
        (OLD, False),
        ("2.58.1", False),
        (SOUND, True),
        ("2.59.1", True),
        ("2.60.0dev", True),
        ("3.0.0", True),
        ("2.590.0", True),
        ("2", False),
        ("", False),
        ("mock 2.60.0", False),
    ],
)
def test_releases_from_25_06_on_bear_it(version: str, borne: bool) -> None:
    assert bears_cancellation(version) is borne


async def one(router: Routed, triton: ScriptedTriton) -> None:
    """Ask one request, and give up."""
    stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(router.channel)
    call = stub.ModelInfer(ask(ECHO, 1))
    await until(lambda: triton.asked)
    call.cancel()


async def too_long(router: Routed, triton: ScriptedTriton) -> None:
    """Ask one request with a deadline that passes."""
    stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(router.channel)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await stub.ModelInfer(ask(ECHO, 1), timeout=1.0)
    assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def in_a_stream(router: Routed, triton: ScriptedTriton) -> None:
    """Ask in a stream, and break it off."""
    talk = router.talk()
    await talk.say(ask(ECHO, 1))
    await until(lambda: triton.asked)
    talk.call.cancel()


async def decoupled(router: Routed, triton: ScriptedTriton) -> None:
    """Ask a decoupled model, and break the stream off."""
    talk = router.talk()
    await talk.say(ask(MANY, 1, 0))
    await until(lambda: triton.asked)
    talk.call.cancel()


WAYS: list[Way] = [one, too_long, in_a_stream, decoupled]


async def given_up(way: Way, triton: ScriptedTriton, when: str) -> None:
    """Give a request up on the way, once it has come to the server."""
    where = Places({"a": triton.address}, {model: ["a"] for model in MODELS})
    async with routed(where, cancellation=when) as router:
        await way(router, triton)
        await check_what_it_is_told(router, triton, when)


async def check_what_it_is_told(router: Routed, triton: ScriptedTriton, when: str) -> None:
    """Check that the server is told of what was given up, or left alone."""
    if when == "always" or (when == "auto" and triton.version == SOUND):
        await until(lambda: triton.cancelled)
        await until(lambda: not router.watch.in_use.busy())
    else:
        assert router.watch.in_use.busy(), "it counts as in flight until it has ended"
        assert await nothing_is_cancelled(router, triton)
        triton.answering.set()
        await until(lambda: not router.watch.in_use.busy())
        assert triton.cancelled == []


async def nothing_is_cancelled(router: Routed, triton: ScriptedTriton) -> bool:
    """Return whether a request that came later is answered while nothing was cancelled."""
    asked = len(triton.asked)
    stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(router.channel)
    later = asyncio.ensure_future(stub.ModelInfer(ask(OTHER, 1)))
    await until(lambda: len(triton.asked) > asked)
    triton.answering.set()
    await later
    return triton.cancelled == []


SETTINGS = pytest.mark.parametrize(
    ("when", "version"),
    [("always", OLD), ("auto", SOUND), ("auto", OLD), ("never", SOUND)],
)


@pytest.mark.parametrize("way", WAYS)
@SETTINGS
async def test_who_gives_up_is_told_of_as_the_setting_and_the_release_say(
    way: Way, when: str, version: str
) -> None:
    async with scripted(ScriptedTriton(version)) as triton:
        await given_up(way, triton, when)


@pytest.mark.parametrize(
    ("model", "route", "body"),
    [(ECHO, "infer", '{"inputs": []}'), (MANY, "generate_stream", '{"INPUT": [1]}')],
    ids=["infer", "generate_stream"],
)
@SETTINGS
async def test_a_connection_that_is_closed_gives_its_request_up(
    model: str, route: str, body: str, when: str, version: str
) -> None:
    async with AsyncExitStack() as stack:
        triton = await stack.enter_async_context(scripted(ScriptedTriton(version)))
        where = Places({"a": triton.address}, {model: ["a"] for model in MODELS})
        router = await stack.enter_async_context(routed(where, cancellation=when))
        port = await stack.enter_async_context(http_port(router))
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"POST /v2/models/{model}/{route} HTTP/1.1\r\nhost: localhost\r\n"
        writer.write(f"{head}content-length: {len(body)}\r\n\r\n{body}".encode())
        await until(lambda: triton.asked)
        writer.close()
        await check_what_it_is_told(router, triton, when)


@asynccontextmanager
async def http_port(router: Routed) -> AsyncIterator[int]:
    """Yield the port on which a Router answers over HTTP."""

    async def config(request: Any, call: Call) -> Any:
        found = model_config_pb2.ModelConfig(name=request.name)
        found.input.add(name="INPUT", data_type="TYPE_FP32", dims=[-1])
        found.model_transaction_policy.decoupled = request.name == MANY
        return service_pb2.ModelConfigResponse(config=found)

    async def metrics() -> bytes:
        return b""

    service = Service(
        watch=router.watch,
        inference=router.streams.inference,
        callers=CallerPolicy(),
        answers={"ModelConfig": config},
        metrics=metrics,
        pages=pages(ROUTES, "1"),
        max_body=LARGEST,
        max_json=LARGEST,
        responses=router.streams.responses,
    )
    with listen("127.0.0.1", 0) as listener:
        async with web.serving(app(service), listener):
            yield listener.getsockname()[1]


async def test_on_a_stream_with_one_request_at_a_time() -> None:
    async with scripted(ScriptedTriton()) as triton:
        where = Places({"a": triton.address}, {ECHO: ["a"]}, decoupled=frozenset())
        async with routed(where, cancellation="always") as router:
            triton.answering.set()
            talk = router.talk()
            for _ in range(2):
                await talk.say(ask(ECHO, 1))
                assert not (await talk.hear()).error_message
            assert router.statistics.streamed == 1
            triton.answering.clear()
            await talk.say(ask(ECHO, 1))
            await until(lambda: len(triton.asked) == 3)
            talk.call.cancel()
            await until(lambda: triton.cancelled == [ECHO])
            await until(lambda: not router.watch.in_use.busy())
            triton.answering.set()
            (reply,) = await router.talk().all(ask(ECHO, 1))
            assert not reply.error_message
