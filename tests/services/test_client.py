"""shoal.client against a real Registry."""

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, closing
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from shoal.client import CallFailed, connect, connect_async
from shoal.registry.v1 import registry_service_pb2 as pb
from shoal.registry.v1 import types_pb2 as types
from tests.services.cli_harness import NO_REGISTRY, registry_alone
from tests.services.registry_harness import python_model

UNKNOWN = pb.GetModelRequest(name="models/nope")


@pytest.fixture
async def address(tmp_path: Path) -> AsyncIterator[str]:
    """A Registry with models a, b and c."""
    for name in ("a", "b", "c"):
        python_model(tmp_path / "repo", name)
    async with registry_alone(tmp_path / "data", repositories=(tmp_path / "repo",)) as shell:
        yield shell.registry


async def test_a_refusal_has_its_reason_and_its_variables(address: str) -> None:
    async with connect_async(registry=address) as shoal:
        with pytest.raises(CallFailed) as caught:
            await shoal.call(shoal.registry.GetModel, UNKNOWN)
    error = caught.value
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")
    assert error.metadata == {"model": "nope"}
    assert "'nope' is not found" in error.message
    assert (error.address, error.retry_after, error.unreachable) == (address, None, False)
    assert str(error) == f"MODEL_NOT_FOUND: {error.message}"


async def test_without_asyncio_it_is_the_same(address: str) -> None:
    def refused() -> CallFailed:
        with connect(registry=address) as shoal, pytest.raises(CallFailed) as caught:
            shoal.call(shoal.registry.GetModel, UNKNOWN)
        return caught.value

    error = await asyncio.to_thread(refused)
    assert (error.reason, error.metadata) == ("MODEL_NOT_FOUND", {"model": "nope"})
    assert error.address == address


async def test_when_to_try_again(address: str) -> None:
    def lease(holder: str) -> pb.HoldControllerLeaseRequest:
        return pb.HoldControllerLeaseRequest(
            holder=holder, incarnation="1", ttl=Duration(seconds=10)
        )

    async with connect_async(registry=address) as shoal:
        await shoal.call(shoal.registry.HoldControllerLease, lease("first"))
        with pytest.raises(CallFailed) as caught:
            await shoal.call(shoal.registry.HoldControllerLease, lease("second"))
    assert caught.value.reason == "LEASE_HELD"
    assert caught.value.retry_after == pytest.approx(10, abs=3)


async def test_nobody_there() -> None:
    async with connect_async(registry=NO_REGISTRY) as shoal:
        with pytest.raises(CallFailed) as caught:
            await shoal.call(shoal.registry.GetModel, UNKNOWN)
    assert caught.value.unreachable
    assert (caught.value.reason, caught.value.address) == ("", NO_REGISTRY)


async def test_every_call_has_a_deadline() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        async with connect_async(registry=address, timeout=0.2) as shoal:
            with pytest.raises(CallFailed) as caught:
                await shoal.call(shoal.registry.GetModel, UNKNOWN)
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert not caught.value.unreachable


async def test_all_pages_of_a_list(address: str) -> None:
    request = pb.ListModelsRequest(page_size=2)
    async with connect_async(registry=address) as shoal:
        pages = [page async for page in shoal.pages(shoal.registry.ListModels, request)]

    def read() -> list[pb.ListModelsResponse]:
        with connect(registry=address) as shoal:
            return list(shoal.pages(shoal.registry.ListModels, request))

    assert [[model.name for model in page.models] for page in pages] == [
        ["models/a", "models/b"],
        ["models/c"],
    ]
    assert request.page_token == ""
    assert await asyncio.to_thread(read) == pages


async def test_a_watch_goes_on_until_it_is_closed(address: str) -> None:
    async with connect_async(registry=address) as shoal:
        watch = shoal.stream(shoal.registry.WatchCatalog, pb.WatchCatalogRequest())
        async with aclosing(watch):
            snapshot = await anext(watch)
            assert len(snapshot.snapshot.entries) == 3
            created = pb.CreateModelRequest(model=types.Model(name="models/d"))
            await shoal.call(shoal.registry.CreateModel, created)
            async for response in watch:
                if response.HasField("delta"):
                    break
            assert [entry.model.name for entry in response.delta.entries] == ["models/d"]


async def test_a_watch_that_breaks_off(address: str) -> None:
    def watched() -> int:
        with connect(registry=address) as shoal:
            request = pb.WatchCatalogRequest()
            with pytest.raises(CallFailed) as caught:
                for _ in shoal.stream(shoal.registry.WatchCatalog, request, timeout=0.3):
                    pass
            assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
            with closing(shoal.stream(shoal.registry.WatchCatalog, request)) as watch:
                return len(next(iter(watch)).snapshot.entries)

    assert await asyncio.to_thread(watched) == 3


def test_a_service_without_an_address() -> None:
    with (
        connect(registry=NO_REGISTRY) as shoal,
        pytest.raises(ValueError, match="connect\\(router="),
    ):
        assert shoal.router


def test_it_needs_no_more_than_grpc_and_protobuf() -> None:
    code = (
        "import sys\n"
        "for name in ('typer', 'rich', 'numpy', 'tritonclient', 'pydantic', 'services',\n"
        "             'structlog', 'grpc_health', 'opentelemetry'):\n"
        "    sys.modules[name] = None\n"
        "from shoal.client import connect\n"
        "connect(registry='127.0.0.1:1', controller='127.0.0.1:1', router='127.0.0.1:1').close()\n"
    )
    subprocess.run([sys.executable, "-c", code], timeout=60, check=True)
