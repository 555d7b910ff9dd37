"""What failed to load is not ready for the Controllers that come after, on a real Triton."""

import asyncio
import gc
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from pydantic import SecretStr

from services.controller.assembly import running
from services.controller.settings import ServerSettings, Settings
from shoal.controller.v1 import controller_service_pb2 as wire
from shoal.controller.v1 import placement_pb2
from shoal.controller.v1.controller_service_pb2_grpc import ControllerServiceStub
from shoal.registry.v1 import registry_service_pb2 as pb
from tests.support.registry import PYTHON_CODE, Registry, python_model, registry
from tests.support.router import in_a_task
from tests.support.triton_direct import DirectTriton, triton_direct

SECONDS = 20.0
BROKEN = PYTHON_CODE + "    def initialize(self, args):\n        raise ValueError('no weights')\n"


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    """An acting Controller freezes the collector's objects, here all of the tests' as well."""
    yield
    gc.unfreeze()


@asynccontextmanager
async def controller(known: Registry, triton: DirectTriton, holder: str) -> AsyncIterator[Any]:
    """A Controller of one server, as a stub."""
    settings = Settings(
        registry=known.address,
        port=0,
        metrics_port=0,
        holder=holder,
        triton_admin_key=SecretStr(triton.spec.admin_secret),
        servers=[ServerSettings(id=triton.spec.id, address=triton.address)],
        load_backoff=60.0,
    )
    hosted: AbstractAsyncContextManager[int] = in_a_task(running(settings))
    async with hosted as port, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield ControllerServiceStub(channel)


async def route(stub: Any) -> placement_pb2.VersionRoute:
    """What a Router that subscribes now hears of the model's version."""
    request = placement_pb2.WatchPlacementsRequest()
    request.subscribe.router = "r"

    async def said() -> AsyncIterator[placement_pb2.WatchPlacementsRequest]:
        yield request
        await asyncio.Event().wait()

    async with asyncio.timeout(SECONDS):
        while True:
            call = stub.WatchPlacements(said())
            try:
                told = await anext(aiter(call))
                return told.snapshot.models[0].versions[0]
            except grpc.aio.AioRpcError:  # it does not act yet
                await asyncio.sleep(0.05)
            finally:
                call.cancel()


async def make_resident(stub: Any) -> None:
    request = wire.MakeResidentRequest(model="m", version=1, router="r")
    await stub.MakeResident(request, timeout=SECONDS)


async def kept(known: Registry) -> None:
    """Wait until the Registry has been told."""
    async with asyncio.timeout(SECONDS):
        while True:
            answer = await known.stub.ListFootprints(pb.ListFootprintsRequest())
            if any(footprint.failure.cause for footprint in answer.footprints):
                return
            await asyncio.sleep(0.05)


@pytest.mark.triton
async def test_a_failed_load_is_remembered_until_it_succeeds_or_the_files_change(
    tmp_path: Path,
) -> None:
    model = python_model(tmp_path / "repo", "m")
    (model / "1" / "model.py").write_text(BROKEN)
    async with registry(tmp_path / "data", repositories=(tmp_path / "repo",)) as known:
        (tmp_path / "server").mkdir()
        name = f"direct-{secrets.token_hex(4)}"
        with triton_direct(tmp_path / "server", known.staging, id=name) as triton:
            async with controller(known, triton, "first") as stub:
                assert (await route(stub)).servable
                with pytest.raises(grpc.aio.AioRpcError, match="no weights"):
                    await make_resident(stub)
                first = await route(stub)
                assert not first.servable
                await kept(known)
            for holder in ("first", "second"):  # a restart, and a takeover
                async with controller(known, triton, holder) as stub:
                    again = await route(stub)
                    assert (again.servable, again.reason) == (False, first.reason)
            (model / "1" / "model.py").write_text(PYTHON_CODE)
            await known.refresh("m")
            async with controller(known, triton, "second") as stub:
                assert (await route(stub)).servable
                await make_resident(stub)
                assert (await route(stub)).servable
