"""A Registry that is killed in the middle of an import goes on with it, and leaves no orphans."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from services.embedded.ports import pick
from shoal.registry.v1 import registry_service_pb2 as pb
from shoal.registry.v1 import registry_service_pb2_grpc as pb_grpc
from shoal.registry.v1 import types_pb2 as types
from tests.registry.test_imports import files_below
from tests.registry.test_service import process
from tests.support.every_source import every_source, files_of
from tests.support.registry import python_model, serving

pytestmark = pytest.mark.usefixtures("database")

FILES = 6
SIZE = 24 << 20  # bytes of each file; all but its first are zeros


@pytest.fixture
def source(tmp_path: Path) -> Path:
    made = python_model(tmp_path / "models", "large")
    for index in range(FILES):
        with (made / "1" / f"part{index}").open("wb") as file:
            file.write(bytes([index]))
            file.truncate(SIZE)
    return made


async def test_an_import_goes_on_after_each_kill(tmp_path: Path, source: Path) -> None:
    (port,) = pick(1)
    settings = {
        "port": str(port),
        "metrics_port": "none",
        "data_dir": str(tmp_path / "data"),
        "fetches": "1",
    }
    started, arrived = "", list[int]()
    for share in (0.2, 0.5, 0.8, 1.0):
        async with process(**settings) as killed, connected(port) as stub:
            if not started:
                request = pb.StartImportsRequest(parent="models/m", source=f"file://{source}")
                started = (await stub.StartImports(request)).imports[0].name
            last = await follow(stub, started, round(share * FILES * SIZE))
            killed.kill()
            await killed.wait()
            arrived.append(last.bytes_done)
    assert arrived == sorted(arrived)
    assert 0 < arrived[0] < FILES * SIZE

    async with process(**settings), connected(port) as stub:
        last = await follow(stub, started)
        assert last.state == types.IMPORT_STATE_REGISTERED, last.reason
        versions = pb.ListModelVersionsRequest(parent="models/-")
        (version,) = (await stub.ListModelVersions(versions)).versions
        assert (version.name, version.state) == (last.version, types.VERSION_STATE_APPROVED)
        usage = await stub.GetDiskUsage(pb.GetDiskUsageRequest())
        assert usage.used_bytes == usage.holdings[0].total_bytes

    store, staged = tmp_path / "data" / "store", tmp_path / "data" / "staging" / "m" / "1"
    blobs = {path.stat().st_ino for path in files_below(store / "blobs")}
    assert len(blobs) == FILES + 2
    assert files_below(store / "partial") == files_below(store / "making") == []
    for index in range(FILES):
        part = staged / f"part{index}"
        assert part.stat().st_ino in blobs
        with part.open("rb") as file:
            assert (part.stat().st_size, file.read(1)[0]) == (SIZE, index)


@pytest.mark.timeout(300)  # it starts servers of several kinds
async def test_an_import_from_each_source_goes_on_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = python_model(tmp_path / "models", "small")
    (model / "1" / "weights.bin").write_bytes(random.Random(1).randbytes(4 << 20))
    with every_source(model, tmp_path) as (environment, sources):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        (port,) = pick(1)
        settings = {
            "port": str(port),
            "metrics_port": "none",
            "data_dir": str(tmp_path / "data"),
            "fetches": "1",
        }
        started: dict[str, str] = {}
        for _ in range(2):
            async with process(**settings) as killed, connected(port) as stub:
                for scheme, text in sources.items():
                    if scheme not in started:
                        request = pb.StartImportsRequest(parent=f"models/{scheme}", source=text)
                        started[scheme] = (await stub.StartImports(request)).imports[0].name
                await follow(stub, started["s3"], 1)
                killed.kill()
                await killed.wait()
        async with process(**settings), connected(port) as stub:
            for scheme, name in started.items():
                last = await follow(stub, name)
                assert last.state == types.IMPORT_STATE_REGISTERED, (scheme, last.reason)
                checked = pb.CheckModelVersionRequest(name=last.version)
                answer = await stub.CheckModelVersion(checked)
                assert (answer.problem, answer.version.state) == (
                    "",
                    types.VERSION_STATE_APPROVED,
                ), scheme
            garbage = await stub.CollectGarbage(pb.CollectGarbageRequest(dry_run=True))
            assert (garbage.freed_bytes, list(garbage.departures)) == (0, [])
            usage = await stub.GetDiskUsage(pb.GetDiskUsageRequest())
            assert usage.used_bytes == sum(map(len, files_of(model).values()))


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        await serving(channel)
        yield pb_grpc.RegistryServiceStub(channel)


async def follow(stub: Any, name: str, size: int | None = None) -> types.Import:
    """Follow an import until `size` bytes have arrived, or to its end."""
    last = types.Import()
    async for response in stub.WatchImport(pb.WatchImportRequest(name=name)):
        last = getattr(response, "import")
        if size is not None and last.bytes_done >= size:
            break
    return last
