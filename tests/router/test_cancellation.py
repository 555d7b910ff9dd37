"""Requests for which nobody waits any more: what their servers are told."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2_grpc

from services.router.core.cancellation import bears_cancellation
from tests.support.scripted_triton import ScriptedTriton, scripted
from tests.support.streams import ECHO, MANY, OTHER, Places, Routed, ask, routed
from tests.support.waiting import until

MODELS = (ECHO, OTHER, MANY)
OLD, SOUND = "2.51.0", "2.59.0"

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


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("when", "version"),
    [("always", OLD), ("auto", SOUND), ("auto", OLD), ("never", SOUND)],
)
async def test_who_gives_up_is_told_of_as_the_setting_and_the_release_say(
    way: Way, when: str, version: str
) -> None:
    async with scripted(ScriptedTriton(version)) as triton:
        await given_up(way, triton, when)


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
