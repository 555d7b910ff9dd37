"""Metadata that is made once for many calls, as a server receives it."""

from typing import Any

import grpc
import pytest

from services.router.core.routing.metadata import Pairs
from services.router.servers.call_metadata import shared_metadata
from tests.support.grpc_servers import listening

ECHO = "/test.Echo/Metadata"


async def received(pairs: Pairs) -> list[tuple[str, str | bytes]]:
    seen: list[tuple[str, str | bytes]] = []

    async def answer(_: bytes, context: Any) -> bytes:
        seen.extend(
            (key, value) for key, value in context.invocation_metadata() if key != "user-agent"
        )
        return b""

    service, method = ECHO.strip("/").split("/")
    server = grpc.aio.server()
    handlers: Any = {method: grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    async with listening(server) as address, grpc.aio.insecure_channel(address) as channel:
        echo: Any = channel.unary_unary(ECHO)
        await echo(b"", metadata=shared_metadata(pairs))
    return seen


@pytest.mark.parametrize(
    "pairs", [(), (("a", "1"),), (("b", "1"), ("a", "2"), ("b", "3"), ("c-bin", b"\x00\xff"))]
)
async def test_what_is_sent_is_received(pairs: Pairs) -> None:
    assert await received(pairs) == list(pairs)


def test_calls_that_say_the_same_have_one() -> None:
    assert shared_metadata((("a", "1"),)) is shared_metadata((("a", "1"),))
    assert shared_metadata(()) is shared_metadata(()) != shared_metadata((("a", "1"),))
