"""Versions that come from a source: fetched into the store, registered, and fetched again."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest

from shoal.registry.v1 import registry_service_pb2 as pb
from shoal.registry.v1 import types_pb2 as types
from tests.support.registry import (
    PYTHON_CODE,
    PYTHON_CONFIG,
    Registry,
    python_model,
    refusal,
    registry,
    version_name,
)

pytestmark = pytest.mark.usefixtures("database")


async def start(known: Registry, source: object, model: str = "m", **fields: Any) -> types.Import:
    """Start one import, and return it."""
    request = pb.StartImportsRequest(parent=f"models/{model}", source=str(source), **fields)
    (started,) = (await known.stub.StartImports(request)).imports
    return started


async def ended(known: Registry, started: types.Import) -> types.Import:
    """Follow an import to its end, and return it as it is then."""
    last = started
    async for response in known.stub.WatchImport(pb.WatchImportRequest(name=started.name)):
        last = getattr(response, "import")
    return last


async def disk(known: Registry) -> pb.GetDiskUsageResponse:
    return await known.stub.GetDiskUsage(pb.GetDiskUsageRequest())


def files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


async def test_a_source_is_copied_registered_and_linked_into_the_staging_tree(
    tmp_path: Path,
) -> None:
    source = python_model(tmp_path / "models", "adder", (1, 2))
    async with registry(tmp_path / "data") as known:
        last = await ended(known, await start(known, f"file://{source}"))
        assert types.ImportState.Name(last.state) == "IMPORT_STATE_REGISTERED", last.reason
        assert last.version == version_name("m:2")
        assert (last.files_done, last.files_total) == (2, 2)
        assert last.bytes_done == last.bytes_total > 0
        version = await known.version("m:2")
        assert version.state == types.VERSION_STATE_APPROVED
        assert version.source == f"file://{source}"
        origin = version.provenance
        assert origin.source.scheme == "file"
        assert origin.source.revision
        assert origin.digest.startswith("sha256:")
        assert (origin.registered_by, origin.refetchable) == ("local", True)
        shutil.rmtree(source)
        staged = known.staging / "m" / "2" / "model.py"
        assert staged.read_text() == PYTHON_CODE
        sha256 = hashlib.sha256(PYTHON_CODE.encode()).hexdigest()
        assert staged.samefile(known.settings.store / "blobs" / sha256[:2] / sha256)
    async with registry(tmp_path / "data") as known:  # a warm start copies nothing
        assert (await known.version("m:2")).state == types.VERSION_STATE_APPROVED
        assert staged.read_text() == PYTHON_CODE


async def test_registering_waits_for_the_import(tmp_path: Path) -> None:
    source = python_model(tmp_path / "models", "adder")
    async with registry(tmp_path / "data") as known:
        request = pb.RegisterModelVersionRequest(parent="models/m", source=f"file://{source}")
        version = (await known.stub.RegisterModelVersion(request)).version
        assert version.name == version_name("m:1")
        request.source = f"file://{tmp_path}/nothing"
        refused = await refusal(known.stub.RegisterModelVersion(request))
        assert refused.reason == "SOURCE_NOT_FOUND"


async def test_two_versions_of_the_same_files_take_their_room_once(tmp_path: Path) -> None:
    source = python_model(tmp_path / "models", "adder")
    async with registry(tmp_path / "data") as known:
        await ended(known, await start(known, f"file://{source}", "one"))
        used = (await disk(known)).used_bytes
        await ended(known, await start(known, f"file://{source}", "two"))
        usage = await disk(known)
        assert usage.used_bytes == used
        (holding,) = usage.holdings
        assert set(holding.versions) == {version_name("one:1"), version_name("two:1")}
        assert (holding.total_bytes, holding.own_bytes) == (used, used)
        for name in ("one", "two"):
            assert (await disk(known)).used_bytes == used
            await known.stub.DeleteModel(pb.DeleteModelRequest(name=f"models/{name}"))
        usage = await disk(known)
        assert (usage.used_bytes, list(usage.holdings)) == (0, [])
        assert files_below(known.settings.store / "blobs") == []


async def test_a_failed_import_leaves_nothing_and_says_why(tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "notes.txt").write_text("no model")
    async with registry(tmp_path / "data") as known:
        last = await ended(known, await start(known, f"file://{folder}", version=7))
        assert last.state == types.IMPORT_STATE_FAILED
        assert "it has no folder for version 7" in last.reason
        assert files_below(known.settings.store) == []
        listed = (await known.stub.ListImports(pb.ListImportsRequest())).imports
        assert [one.name for one in listed] == [last.name]
        request = pb.GetImportRequest(name="imports/unknown")
        assert (await refusal(known.stub.GetImport(request))).reason == "IMPORT_NOT_FOUND"


async def test_a_repository_is_imported_model_by_model(tmp_path: Path) -> None:
    for name in ("a", "b", "bad name"):
        python_model(tmp_path / "models", name, (1, 2))
    request = pb.StartImportsRequest(parent="models/-", source=f"file://{tmp_path}/models")
    async with registry(tmp_path / "data") as known:
        response = await known.stub.StartImports(request)
        assert [problem.path for problem in response.problems] == ["bad name"]
        made = {(await ended(known, one)).version for one in response.imports}
        wanted = {version_name(f"{model}:{number}") for model in "ab" for number in (1, 2)}
        assert made == wanted
        again = await known.stub.StartImports(request)
        assert (list(again.imports), set(again.unchanged)) == ([], wanted)


async def test_many_imports_of_one_model_get_a_number_each(tmp_path: Path) -> None:
    bare = python_model(tmp_path / "models", "adder") / "1"
    (bare / "config.pbtxt").write_text(PYTHON_CONFIG)
    async with registry(tmp_path / "data") as known:
        started = [await start(known, f"file://{bare}") for _ in range(12)]
        versions = {(await ended(known, one)).version for one in started}
        assert versions == {version_name(f"m:{number}") for number in range(1, 13)}
        started = [await start(known, f"file://{bare}", version=20) for _ in range(4)]
        states = sorted([(await ended(known, one)).state for one in started])
        assert states == [types.IMPORT_STATE_REGISTERED, *3 * [types.IMPORT_STATE_FAILED]]
        assert (await known.check("m:20")).problem == ""


async def test_a_repeated_request_starts_nothing_again(tmp_path: Path) -> None:
    source = python_model(tmp_path / "models", "adder")
    async with registry(tmp_path / "data") as known:
        one = await start(known, f"file://{source}", request_id="once")
        await ended(known, one)
        again = await start(known, f"file://{source}", request_id="once")
        assert (again.name, again.version) == (one.name, version_name("m:1"))


async def test_a_store_may_be_moved(tmp_path: Path) -> None:
    source = python_model(tmp_path / "models", "adder")
    async with registry(tmp_path / "data") as known:
        await ended(known, await start(known, f"file://{source}"))
    (tmp_path / "data").rename(tmp_path / "moved")
    async with registry(tmp_path / "moved") as known:
        version = await known.version("m:1")
        assert version.state == types.VERSION_STATE_APPROVED, version.invalid_reason
        assert (await known.check("m:1")).problem == ""
