"""A whole Controller in this process, beside a real Registry and without servers."""

import asyncio
import gc
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path

import grpc
import pytest
from prometheus_client import REGISTRY

from services.common.status import error_info
from services.controller.assembly import running
from services.controller.settings import Settings
from services.registry.assembly import running as registry
from services.registry.settings import RegistrySettings
from shoal.controller.v1 import controller_service_pb2 as wire
from shoal.controller.v1.controller_service_pb2_grpc import ControllerServiceStub
from tests.support.registry import python_model
from tests.support.router import in_a_task

SECONDS = 10.0
NAME = "models/m/versions/1"


@pytest.fixture
async def at(tmp_path: Path) -> AsyncIterator[str]:
    """The address of a Registry that has a model."""
    python_model(tmp_path / "repo", "m")
    settings = RegistrySettings(
        port=0,
        metrics_port=None,
        data_dir=tmp_path / "data",
        repositories=(tmp_path / "repo",),
        stop_grace_seconds=0.2,
    )
    async with registry(settings) as ports:
        yield f"127.0.0.1:{ports.port}"


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    """An acting Controller freezes the collector's objects, here all of the tests' as well."""
    yield
    gc.unfreeze()


def controller(at: str, holder: str) -> AbstractAsyncContextManager[int]:
    settings = Settings(registry=at, port=0, metrics_port=0, holder=holder, lease_ttl=60)
    return in_a_task(running(settings))


async def reason(port: int) -> str:
    """The reason for which a Controller without servers does not have the model resident."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = ControllerServiceStub(channel)
        try:
            told = await stub.WhyNotLoaded(wire.WhyNotLoadedRequest(name=NAME), timeout=SECONDS)
        except grpc.aio.AioRpcError as error:
            info = error_info(tuple(error.trailing_metadata() or ()))
            assert info is not None
            return info.reason
        return str(told.reason)


async def acts(port: int) -> None:
    async with asyncio.timeout(SECONDS):
        while "nothing asks for m:1" not in await reason(port):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_one_acts_and_the_next_one_when_it_has_stopped(at: str) -> None:
    async with AsyncExitStack() as stack:
        async with controller(at, "first") as first:
            await acts(first)
            assert REGISTRY.get_sample_value("shoal_waiters") == 0
            second = await stack.enter_async_context(controller(at, "second"))
            assert await reason(second) == "STANDS_BY"
        await acts(second)
        assert REGISTRY.get_sample_value("shoal_controller_epoch") == 2
    assert REGISTRY.get_sample_value("shoal_waiters") is None
