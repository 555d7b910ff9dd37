"""What the Controller reports about the servers, for the output of `shoal up`."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

import grpc

from services.common import channels
from services.embedded import readiness
from shoal import names
from shoal.controller.v1 import controller_service_pb2 as pb
from shoal.controller.v1 import types_pb2
from shoal.controller.v1.controller_service_pb2_grpc import ControllerServiceStub

if TYPE_CHECKING:  # the generated module has the name for type checkers alone
    from shoal.controller.v1.controller_service_pb2_grpc import ControllerServiceAsyncStub

ATTACH_WITHIN: Final = 20.0  # seconds; a server that never answers is not the Controller's failure
_POLL: Final = 0.05  # seconds
_ANSWER: Final = 2.0  # seconds
_LOOK: Final = 1.0  # seconds between two calls that watch a Controller

_SETTLED: Final = frozenset(
    {
        types_pb2.SERVER_STATE_HEALTHY,
        types_pb2.SERVER_STATE_UNUSABLE,
        types_pb2.SERVER_STATE_DRAINING,
    }
)
_TOLD: Final = {
    types_pb2.EVENT_KIND_SERVER_DRAINING: "is drained",
    types_pb2.EVENT_KIND_BROKEN: "no longer answers",
    types_pb2.EVENT_KIND_SET_ASIDE: "is set aside",
    types_pb2.EVENT_KIND_SERVER_LOST: "is lost",
    types_pb2.EVENT_KIND_SERVER_UNUSABLE: "cannot be used",
    types_pb2.EVENT_KIND_SERVER_HEALTHY: "is in use",
    types_pb2.EVENT_KIND_LOAD_FAILED: "could not be loaded",
}


async def controller_ready(address: str) -> None:
    """Wait until the Controller serves and has attached every server, or found that it can't."""
    await readiness.grpc_serving(address)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(ATTACH_WITHIN), channels.control(address) as channel:
            stub = ControllerServiceStub(channel)
            while True:
                if await _settled(stub):
                    return
                await asyncio.sleep(_POLL)


async def _settled(stub: "ControllerServiceAsyncStub") -> bool:
    try:
        servers = await _servers(stub)
    except grpc.aio.AioRpcError:
        return False
    return all(server.state in _SETTLED for server in servers)


async def _servers(stub: "ControllerServiceAsyncStub") -> list[types_pb2.Server]:
    request = pb.ListServersRequest(page_size=1000)
    return list((await stub.ListServers(request, timeout=_ANSWER)).servers)


async def tell(address: str, say: Callable[[str], None]) -> None:
    """Report what happens to servers and which loads fail, until cancelled."""
    async with channels.control(address) as channel:
        stub = ControllerServiceStub(channel)
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError):
                await _tell(stub, say)
            await asyncio.sleep(_LOOK)


async def _tell(stub: "ControllerServiceAsyncStub", say: Callable[[str], None]) -> None:
    events = stub.WatchEvents(pb.WatchEventsRequest(), wait_for_ready=True)
    for server in await _servers(stub):
        if server.state == types_pb2.SERVER_STATE_UNUSABLE:
            say(f"{server.name.partition('/')[2]} cannot be used: {server.state_reason}")
    async for response in events:
        event = response.event
        if event.kind in _TOLD:
            say(f"{_about(event)} {_TOLD[event.kind]}: {event.reason}")


def _about(event: types_pb2.Event) -> str:
    """Return what an event is about, as commands name it."""
    if version := names.parse_version_name(event.version):
        return f"{version.model}:{version.version}"
    return event.server.partition("/")[2]


async def restarts(
    address: str, say: Callable[[str], None], restart: Callable[[str], Awaitable[None]]
) -> None:
    """Have servers restarted when the Controller wants it, and say why, until cancelled.

    `restart` is called once each time, with the server's id.
    """
    begun: set[str] = set()
    async with channels.control(address) as channel:
        stub = ControllerServiceStub(channel)
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError):
                wanted = {
                    server.name.partition("/")[2]: server.state_reason
                    for server in await _servers(stub)
                    if server.restart_wanted
                }
                begun &= wanted.keys()
                for server in sorted(wanted.keys() - begun):
                    begun.add(server)
                    say(f"Restarting {server}: {wanted[server]}")
                    await restart(server)
            await asyncio.sleep(_LOOK)
