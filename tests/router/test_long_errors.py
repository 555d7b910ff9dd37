"""Errors of models with texts of any length, as clients with gRPC's defaults see them."""

import json
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2_grpc

from services.common.caller import LOCAL
from services.common.errors import LoadFailed
from services.common.status import abort, error_info
from services.common.trailers import ROOM, cut, encoded_size
from services.router.control.answers import Rejected
from services.router.core.routing.metadata import read_metadata
from services.router.rest.reply import status_reply
from services.router.servers.answers import TritonError
from services.router.unary.inference import Request
from tests.support.grpc_servers import listening
from tests.support.scripted_triton import ScriptedTriton, scripted
from tests.support.streams import ECHO, SECONDS, Places, ask, routed

TEXTS = [
    "x" * 1_000,
    "x" * 12_000,
    "Traceback: \n" * 10_000,
    "ж%" * 50_000,
]


@given(text=st.text(max_size=300), room=st.integers(60, 400))
def test_a_text_is_cut_to_the_room_that_there_is(text: str, room: int) -> None:
    found = cut(text, room)
    assert encoded_size(found) <= room
    if encoded_size(text) <= room:
        assert found == text
    else:
        kept, note, _ = found.rpartition(" ... (cut here")
        assert text.startswith(kept)
        assert note


@pytest.mark.parametrize("text", TEXTS, ids=len)
async def test_the_beginning_of_a_models_error_arrives(text: str) -> None:
    async with scripted(ScriptedTriton(error=text)) as triton:
        where = Places({"a": triton.address}, {ECHO: ["a"]}, decoupled=frozenset())
        async with routed(where) as router:
            stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(router.channel)
            for _ in range(5):  # beyond the soft limit, gRPC refuses at random
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await stub.ModelInfer(ask(ECHO, 1), timeout=SECONDS)
                found = refused.value.details() or ""
                assert refused.value.code() is grpc.StatusCode.INTERNAL
                assert found == text or found.endswith(f"(cut here, of {len(text)} characters)")
                assert text.startswith(found.partition(" ... (cut here")[0])
                assert encoded_size(found) > min(encoded_size(text), ROOM) - 10
            (reply,) = await router.talk().all(ask(ECHO, 1))
            assert reply.error_message == text, "whole in a stream"
            message = ask(ECHO, 1).SerializeToString()
            with pytest.raises(TritonError) as whole:
                await router.streams.inference.answer(
                    Request(message, read_metadata(()), None, LOCAL)
                )
            assert whole.value.error.details() == text, "and for HTTP"


@pytest.mark.parametrize("text", TEXTS, ids=len)
async def test_why_a_load_failed_arrives_whole_over_http(text: str) -> None:
    where = Places(
        {"a": "127.0.0.1:1"}, {}, cold={ECHO: ["a"]}, broken=frozenset({ECHO}), cause=text
    )
    async with routed(where) as router:
        message = ask(ECHO, 1).SerializeToString()
        with pytest.raises(Rejected) as whole:
            await router.streams.inference.answer(Request(message, read_metadata(()), None, LOCAL))
        reply = status_reply(whole.value.error)
        assert text in json.loads(reply.body)["error"]
        stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(router.channel)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.ModelInfer(ask(ECHO, 1), timeout=SECONDS)
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        info = error_info(tuple(refused.value.trailing_metadata() or ()))
        assert info is not None
        assert info.reason == LoadFailed.reason
        assert info.metadata["cause"][:200] == text[:200]


@pytest.mark.parametrize("text", TEXTS, ids=len)
async def test_the_beginning_of_shoals_own_error_arrives(text: str) -> None:
    error = LoadFailed(model="m", version=1, server="a", cause=text, backoff_seconds=1)

    async def refuse(request: bytes, context: Any) -> None:
        await abort(context, error)

    server = grpc.aio.server()
    methods: Any = {"Ask": grpc.unary_unary_rpc_method_handler(refuse)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("s", methods),))
    async with listening(server) as address, grpc.aio.insecure_channel(address) as channel:
        ask_: Any = channel.unary_unary("/s/Ask")
        for _ in range(5):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await ask_(b"", timeout=SECONDS)
            assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            assert (refused.value.details() or "")[:200] == error.message[:200]
            info = error_info(tuple(refused.value.trailing_metadata() or ()))
            assert info is not None
            assert info.metadata["cause"][:200] == text[:200]
