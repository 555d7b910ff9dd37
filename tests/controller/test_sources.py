"""Files looked at again, by a real Registry for a Controller's catalogue."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
from google.protobuf.duration_pb2 import Duration

from services.controller.core.entities import Unit
from services.controller.registry.catalogue import Catalogue
from services.controller.registry.residents import Residents
from services.controller.registry.sources import Sources
from services.controller.registry.watch import RegistryWatch
from shoal.registry.v1.registry_service_pb2 import (
    GetDiskUsageRequest,
    HoldControllerLeaseRequest,
    RegisterModelVersionRequest,
)
from shoal.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from tests.support.cli import NO_REGISTRY
from tests.support.registry import PYTHON_CODE, Registry, python_model, registry

UNIT = Unit("m", 1)


@asynccontextmanager
async def followed(
    known: Registry, residents: Residents | None = None
) -> AsyncIterator[tuple[Sources, Catalogue]]:
    """Follow the Registry with a catalogue, as a Controller does."""
    catalogue = Catalogue()
    watch = RegistryWatch(known.stub, catalogue)
    sources = Sources(known.stub, catalogue, watch, residents)
    following = asyncio.create_task(watch.run())
    await watch.synchronized.wait()
    yield sources, catalogue
    following.cancel()


async def test_files_are_compared_and_changes_reach_the_catalogue_first(tmp_path: Path) -> None:
    model = python_model(tmp_path / "repo", "m")
    async with (
        registry(tmp_path / "data", repositories=(tmp_path / "repo",)) as known,
        followed(known) as (sources, catalogue),
    ):
        assert await sources.problem(UNIT) == ""
        (model / "1" / "model.py").write_text(PYTHON_CODE + "# longer\n")
        assert await sources.problem(UNIT) == "its files have changed since it was registered"
        assert catalogue.version(UNIT) == await known.version("m:1")
        assert await sources.problem(UNIT) == ""
        model.rename(tmp_path / "away")
        assert await sources.problem(UNIT) == f"its source is gone: {model} does not exist"
        assert await sources.refresh("m") == f"{model}: its source is gone: {model} does not exist"


async def test_a_refresh_is_in_the_catalogue_when_it_returns(tmp_path: Path) -> None:
    python_model(tmp_path / "repo", "m")
    async with (
        registry(tmp_path / "data", repositories=(tmp_path / "repo",)) as known,
        followed(known) as (sources, catalogue),
    ):
        assert await sources.refresh("new") == ""
        python_model(tmp_path / "repo", "new")
        assert await sources.refresh("new") == ""
        assert catalogue.version(Unit("new", 1)) is not None
        (tmp_path / "repo" / "odd").mkdir()
        assert (await sources.refresh("odd")).startswith(
            f"{tmp_path / 'repo' / 'odd'}: not a model"
        )


async def test_without_a_registry_everything_is_loaded_as_it_was() -> None:
    async with grpc.aio.insecure_channel(NO_REGISTRY) as channel:
        stub, catalogue = RegistryServiceStub(channel), Catalogue()
        watch = RegistryWatch(stub, catalogue)
        sources = Sources(stub, catalogue, watch)
        assert await sources.problem(UNIT) == ""
        watch.connected = True  # it has gone a moment ago
        assert await sources.problem(UNIT) == ""
        assert await sources.refresh("m") == ""


async def test_the_registry_hears_what_has_a_replica_before_it_is_asked_for_files(
    tmp_path: Path,
) -> None:
    source = python_model(tmp_path / "models", "m")
    held = {UNIT}
    async with registry(tmp_path / "data") as known:
        request = RegisterModelVersionRequest(parent="models/m", source=f"file://{source}")
        await known.stub.RegisterModelVersion(request)

        async def kept() -> str:
            usage = await known.stub.GetDiskUsage(GetDiskUsageRequest())
            return str(usage.holdings[0].kept_because)

        residents = Residents(known.stub, lambda: held)
        async with followed(known, residents) as (sources, _):
            assert await kept() == ""
            assert await sources.problem(UNIT) == ""
            assert await kept() == "a server holds the version or is about to"
            held.clear()
            await residents.tell()
            assert await kept() == ""
            await known.stub.HoldControllerLease(
                HoldControllerLeaseRequest(holder="c", incarnation="1", ttl=Duration(seconds=60))
            )
    async with registry(tmp_path / "data") as known:
        # A Controller acts, and has not said yet what is in memory.
        usage = await known.stub.GetDiskUsage(GetDiskUsageRequest())
        assert usage.holdings[0].kept_because.startswith("the Controller has not said yet")


async def test_a_registry_that_is_away_is_told_later() -> None:
    async with grpc.aio.insecure_channel(NO_REGISTRY) as channel:
        await Residents(RegistryServiceStub(channel), lambda: {UNIT}).tell()
