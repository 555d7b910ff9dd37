"""A client of several Controllers calls the one that acts."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, closing, contextmanager
from typing import Any

import grpc
import pytest

from services.common.caller import CallerPolicy
from services.common.errors import NotReady
from services.common.rpc import RpcServer
from shoal.cli.addresses import BadAddress, Given, find
from shoal.client import AsyncClient, CallFailed, Client, connect, connect_async
from shoal.controller.v1 import controller_service_pb2 as wire
from shoal.controller.v1 import types_pb2
from shoal.controller.v1.controller_service_pb2_grpc import (
    ControllerServiceServicer,
    add_ControllerServiceServicer_to_server,
)

SERVICE = "shoal.controller.v1.ControllerService"


class Named(ControllerServiceServicer):
    def __init__(self, name: str, *, acts: bool) -> None:
        self.name = name
        self.acts = acts

    async def ListServers(self, request: Any, context: Any) -> wire.ListServersResponse:
        if not self.acts:
            raise NotReady(service=self.name, cause="it stands by")
        return wire.ListServersResponse(servers=[types_pb2.Server(name=self.name)])

    async def WatchEvents(self, request: Any, context: Any) -> AsyncIterator[Any]:
        yield wire.WatchEventsResponse(event=types_pb2.Event(reason=self.name))


@asynccontextmanager
async def serving(name: str, *, acts: bool) -> AsyncIterator[str]:
    """Serve a Controller and yield its address."""
    rpc = RpcServer(CallerPolicy([]), open_methods=frozenset())
    rpc.announce(SERVICE)
    add_ControllerServiceServicer_to_server(Named(name, acts=acts), rpc.services)
    port = await rpc.start("127.0.0.1", 0)
    await rpc.set_ready(acts)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await rpc.stop(0)


@contextmanager
def silent() -> Iterator[str]:
    """Yield the address of a stopped process: the kernel accepts calls, and nobody answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
async def addresses() -> AsyncIterator[dict[str, str]]:
    async with AsyncExitStack() as stack:
        yield {
            "silent": stack.enter_context(silent()),
            "standby": await stack.enter_async_context(serving("standby", acts=False)),
            "acting": await stack.enter_async_context(serving("acting", acts=True)),
            "nobody": "127.0.0.1:1",
        }


def listed(shoal: Client) -> str:
    return shoal.call(shoal.controller.ListServers, wire.ListServersRequest()).servers[0].name


def watched(shoal: Client) -> str:
    stream = shoal.stream(shoal.controller.WatchEvents, wire.WatchEventsRequest())
    with closing(stream) as events:
        return next(events).event.reason


async def listed_async(shoal: AsyncClient) -> str:
    reply = await shoal.call(shoal.controller.ListServers, wire.ListServersRequest())
    return reply.servers[0].name


async def watched_async(shoal: AsyncClient) -> str:
    stream = shoal.stream(shoal.controller.WatchEvents, wire.WatchEventsRequest())
    async with aclosing(stream) as events:
        return (await anext(events)).event.reason


@pytest.mark.parametrize(
    "order", [("acting", "standby"), ("standby", "acting"), ("nobody", "silent", "acting")]
)
async def test_the_one_that_acts_is_called(addresses: dict[str, str], order: list[str]) -> None:
    given = ",".join(addresses[name] for name in order)

    def call() -> set[str]:
        with connect(controller=given) as shoal:
            return {listed(shoal), watched(shoal)}

    assert await asyncio.to_thread(call) == {"acting"}
    async with connect_async(controller=given) as shoal:
        assert {await listed_async(shoal), await watched_async(shoal)} == {"acting"}


async def test_where_none_acts_the_standby_says_who_does(addresses: dict[str, str]) -> None:
    given = f"{addresses['nobody']},{addresses['standby']}"
    async with connect_async(controller=given) as shoal:
        with pytest.raises(CallFailed) as refused:
            await listed_async(shoal)
    assert (refused.value.reason, refused.value.address) == ("NOT_READY", given)


async def test_where_none_is_there_nobody_is_reached() -> None:
    async with connect_async(controller="127.0.0.1:1,127.0.0.1:2") as shoal:
        with pytest.raises(CallFailed) as refused:
            await listed_async(shoal)
    assert refused.value.code is grpc.StatusCode.UNAVAILABLE
    assert refused.value.unreachable


def test_several_controllers_on_the_command_line() -> None:
    at = find(Given(controller="a:1, b:2"), {})
    assert at.controller == "a:1,b:2"
    assert find(Given(), {"SHOAL_CONTROLLER": "a:1,b:2"}).controller == "a:1,b:2"
    with pytest.raises(BadAddress, match="'b' is not HOST:PORT"):
        find(Given(controller="a:1,b"), {})
    with pytest.raises(BadAddress, match="--router"):
        find(Given(router="a:1,b:2"), {})
