"""What a client may take of a server, and what it is told when it wants more."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from services.common.rpc import Context, Limits
from services.router.settings import Settings
from shoal.registry.v1 import registry_service_pb2 as pb
from shoal.registry.v1 import registry_service_pb2_grpc as pb_grpc
from tests.support.rpc import Running, Scripted, serving

SOON = 10.0  # seconds


class Held(Scripted):
    """Its watch answers once and then only ends when it is told to."""

    def __init__(self) -> None:
        super().__init__(watch=self._held)
        self.let_go = asyncio.Event()

    async def _held(self, request: Any, context: Context) -> AsyncIterator[pb.WatchCatalogResponse]:
        yield pb.WatchCatalogResponse(revision=1)
        await self.let_go.wait()
        yield pb.WatchCatalogResponse(revision=2)


def limited(servicer: Scripted | None = None, **limits: Any) -> Any:
    return serving(servicer, options=Limits(**limits).options())


async def got(stub: Any, headers: Iterable[tuple[str, str]] = ()) -> Any:
    return await stub.GetModel(
        pb.GetModelRequest(), metadata=tuple(headers), timeout=SOON, wait_for_ready=True
    )


@asynccontextmanager
async def apart(running: Running) -> AsyncIterator[Any]:
    """A stub with a connection of its own, which others to the same address would share."""
    options = (("grpc.use_local_subchannel_pool", 1),)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{running.port}", options) as channel:
        yield pb_grpc.RegistryServiceStub(channel)


async def failed(call: Awaitable[Any]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def begun(stub: Any) -> Any:
    call = stub.WatchCatalog(pb.WatchCatalogRequest(), timeout=SOON)
    assert (await call.read()).revision == 1
    return call


async def test_headers() -> None:
    async with limited(header_bytes=4096) as running, running.stub() as stub:
        for _ in range(20):
            await got(stub, [("x-much", "x" * 3000)])  # never refused by chance
        for headers in ([("x-much", "x" * 5000)], [(f"x-{n}", "y") for n in range(200)]):
            error = await failed(got(stub, headers))
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "metadata" in (error.details() or "")
            assert "4096" in (error.details() or "")
        await got(stub)


async def test_streams_of_one_connection_wait_for_one_another() -> None:
    held = Held()
    async with limited(held, streams=2) as running, running.stub() as stub:
        calls = [await begun(stub) for _ in range(2)]
        third = asyncio.ensure_future(got(stub))
        async with apart(running) as other:
            await got(other)
        assert not third.done(), "it waits on its own side, and for its own connection alone"
        held.let_go.set()
        for call in calls:
            assert (await call.read()).revision == 2
            assert await call.read() is grpc.aio.EOF
        await third


async def test_calls_that_come_at_once_are_all_answered() -> None:
    """Without the limit gRPC cancels some of those beyond the first thousand."""
    async with limited(pending=5000) as running, running.stub() as stub:
        await asyncio.gather(*(got(stub) for _ in range(2500)))


async def test_beyond_the_limit_they_are_cancelled() -> None:
    async with limited(pending=10) as running, running.stub() as stub:
        found = await asyncio.gather(*(got(stub) for _ in range(200)), return_exceptions=True)
        codes = {one.code() for one in found if isinstance(one, grpc.aio.AioRpcError)}
        assert codes == {grpc.StatusCode.CANCELLED}
        await got(stub)


def connected(running: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", running.port), SOON)


async def closed(plain: socket.socket) -> None:
    """Returns when the server has closed it."""
    loop = asyncio.get_running_loop()
    plain.setblocking(False)
    async with asyncio.timeout(SOON):
        with contextlib.suppress(ConnectionError):
            while await loop.sock_recv(plain, 4096):
                pass


async def test_connections() -> None:
    async with limited(connections=3) as running, running.stub() as stub:
        await got(stub)
        with connected(running), connected(running), connected(running) as beyond:
            await closed(beyond)
            await got(stub)
        async with apart(running) as other:
            await got(other)


async def test_a_connection_ends_with_its_age_and_its_calls_go_on() -> None:
    held = Held()
    async with limited(held, age=0.3) as running, running.stub() as stub:
        call = await begun(stub)
        await asyncio.sleep(0.6)  # beyond the age, which gRPC itself draws within a tenth
        await got(stub)
        held.let_go.set()
        assert (await call.read()).revision == 2


async def test_after_its_grace_calls_end() -> None:
    async with limited(Held(), age=0.2, grace=0.3) as running, running.stub() as stub:
        call = await begun(stub)
        began = time.monotonic()
        error = await failed(call.read())
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert 0.2 < time.monotonic() - began < SOON / 2
        await got(stub)


async def test_an_idle_connection_ends_and_its_client_comes_back() -> None:
    async with limited(idle=0.2) as running, running.channel() as channel:
        await channel.channel_ready()
        async with asyncio.timeout(SOON):
            await channel.wait_for_state_change(grpc.ChannelConnectivity.READY)
        async with running.stub() as stub:
            await got(stub)


async def test_a_connection_that_says_nothing_ends() -> None:
    async with limited(handshake=0.3) as running:
        began = time.monotonic()
        with connected(running) as silent:
            await closed(silent)
        assert 0.2 < time.monotonic() - began < SOON / 2


@pytest.mark.parametrize(
    ("variable", "value", "option"),
    [
        ("MAX_HEADER_BYTES", "4096", ("grpc.max_metadata_size", 4096)),
        ("MAX_HEADER_BYTES", "4096", ("grpc.absolute_max_metadata_size", 4096)),
        ("MAX_STREAMS", "7", ("grpc.max_concurrent_streams", 7)),
        ("MAX_CONNECTIONS", "8", ("grpc.max_allowed_incoming_connections", 8)),
        ("MAX_PENDING", "9", ("grpc.server.max_pending_requests", 9)),
        ("MAX_PENDING", "9", ("grpc.server.max_pending_requests_hard_limit", 9)),
        ("CONNECTION_AGE", "1.5", ("grpc.max_connection_age_ms", 1500)),
        ("CONNECTION_GRACE", "2", ("grpc.max_connection_age_grace_ms", 2000)),
        ("CONNECTION_IDLE", "60", ("grpc.max_connection_idle_ms", 60_000)),
    ],
)
def test_the_routers_settings(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, option: tuple[str, int]
) -> None:
    monkeypatch.setenv(f"SHOAL_ROUTER_{variable}", value)
    assert option in Settings().limits.options()


def test_by_default_the_router_keeps_files_for_itself_and_calls_for_as_long_as_they_take() -> None:
    options = dict(Settings().limits.options())
    assert options["grpc.max_allowed_incoming_connections"] > 100
    assert "grpc.max_connection_age_ms" not in options
    assert "grpc.max_connection_age_grace_ms" not in options
