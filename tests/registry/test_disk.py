"""The store under a budget, and what becomes of fetches that break, lie or are cancelled."""

import asyncio
import contextlib
import io
import os
import random
import shutil
import stat
import tarfile
from pathlib import Path

import pytest

from shoal.registry.v1 import registry_service_pb2 as pb
from shoal.registry.v1 import types_pb2 as types
from tests.registry.test_imports import disk, ended, files_below, start
from tests.support.registry import PYTHON_CODE, PYTHON_CONFIG, Registry, registry, version_name
from tests.support.sources import CHUNK, MemorySource

pytestmark = pytest.mark.usefixtures("database")

SIZE = 16 * CHUNK  # of each model's weights
MODELS = ("a", "b", "c", "d", "e", "f")


def model_files(seed: str, size: int = SIZE) -> dict[str, bytes]:
    return {
        "config.pbtxt": PYTHON_CONFIG.encode(),
        "1/model.py": PYTHON_CODE.encode(),
        "1/weights.bin": random.Random(seed).randbytes(size),
    }


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> MemorySource:
    made = MemorySource({name: model_files(name) for name in MODELS})
    monkeypatch.setattr("services.registry.assembly.origin_of", lambda *_, **__: made)
    return made


async def add(known: Registry, model: str) -> types.Import:
    return await ended(known, await start(known, f"s3://memory/{model}", model))


async def report(known: Registry, *names: str) -> None:
    """Tell the Registry what is in memory, as a Controller does."""
    request = pb.ReportResidentsRequest(versions=map(version_name, names))
    await known.stub.ReportResidents(request)


def on_disk(known: Registry) -> int:
    """Return the bytes of all files of the store and the staging tree, each inode once."""
    sizes: dict[int, int] = {}
    for top in (known.settings.store, known.staging):
        for path in top.rglob("*"):
            if {"manifests", "known", "__pycache__"} & set(path.parts):
                continue
            with contextlib.suppress(FileNotFoundError):
                status = path.lstat()
                if stat.S_ISREG(status.st_mode):
                    sizes[status.st_ino] = status.st_size
    return sum(sizes.values())


async def test_files_leave_for_others_and_come_back(tmp_path: Path, source: MemorySource) -> None:
    budget = 3 * SIZE + SIZE // 2
    settings = {"store_budget": budget, "store_free": 0}
    async with registry(tmp_path / "data", **settings) as known:
        await report(known)
        for name in MODELS:
            last = await add(known, name)
            assert last.state == types.IMPORT_STATE_REGISTERED, last.reason
            assert (await disk(known)).used_bytes <= budget
        usage = await disk(known)
        present = {one.versions[0] for one in usage.holdings if one.present}
        assert present == {version_name(f"{name}:1") for name in MODELS[-3:]}
        assert [one.versions[0] for one in usage.departures] == [
            version_name(f"{name}:1") for name in reversed(MODELS[:3])
        ]
        assert "512 KiB are needed for f: number 1 of 3" in usage.departures[0].reason
        assert not (known.staging / "a" / "1").exists()
        before = (await known.version("a:1")).fingerprint

        checked = await known.check("a:1")
        assert (checked.problem, checked.version.fingerprint) == ("", before)
        weights = known.staging / "a" / "1" / "weights.bin"
        assert weights.read_bytes() == source.models["a"]["1/weights.bin"]
        assert (known.staging / "a" / "config.pbtxt").exists()
        assert (await disk(known)).used_bytes <= budget
    async with registry(tmp_path / "data", **settings) as known:
        read = source.read_bytes
        assert (await known.check("a:1")).problem == ""
        assert (await known.version("b:1")).state == types.VERSION_STATE_APPROVED
        assert source.read_bytes == read  # a warm start copies nothing


async def test_files_beside_the_config_leave_with_the_last_version_that_has_them(
    tmp_path: Path, source: MemorySource
) -> None:
    old = {**model_files("old"), "old.txt": b"o" * CHUNK, "both.txt": b"b" * CHUNK}
    new = {path.replace("1/", "2/"): content for path, content in model_files("new").items()}
    source.models |= {"old": old, "new": {**new, "both.txt": b"b" * CHUNK}}
    settings = {"store_budget": 3 * SIZE + SIZE // 2, "store_free": 0}
    async with registry(tmp_path / "data", **settings) as known:
        await report(known)
        for name in ("old", "new"):
            last = await ended(known, await start(known, f"s3://memory/{name}", "m"))
            assert last.state == types.IMPORT_STATE_REGISTERED, last.reason
        staged = known.staging / "m"
        assert {path.name for path in staged.iterdir()} == {
            *("1", "2", "both.txt", "old.txt", "config.pbtxt")
        }
        await report(known, "m:2")
        for name in ("a", "b"):
            await add(known, name)
        assert {path.name for path in staged.iterdir()} == {"2", "both.txt", "config.pbtxt"}
        assert on_disk(known) <= settings["store_budget"]
        assert (await known.check("m:1")).problem == ""
        assert (staged / "old.txt").exists()
        await report(known)
        for name in ("a", "b", "c"):
            await known.check(f"{name}:1") if name != "c" else await add(known, name)
        assert not staged.exists()


async def test_what_is_resident_or_pinned_stays(tmp_path: Path, source: MemorySource) -> None:
    settings = {"store_budget": 3 * SIZE + SIZE // 2, "store_free": 0}
    async with registry(tmp_path / "data", **settings) as known:
        for name in "abc":
            await add(known, name)
        request = pb.UpdateModelVersionRequest(
            version=types.ModelVersion(name=version_name("a:1"), pinned=True)
        )
        request.update_mask.paths.append("pinned")
        await known.stub.UpdateModelVersion(request)
        await report(known, "b:1", "c:1")
        last = await add(known, "d")
        assert last.state == types.IMPORT_STATE_FAILED
        assert "1 because the version is pinned" in last.reason
        assert "2 because a server holds the version or is about to" in last.reason
        await report(known, "b:1")
        assert (await add(known, "d")).state == types.IMPORT_STATE_REGISTERED
        absent = [one.versions[0] for one in (await disk(known)).holdings if not one.present]
        assert absent == [version_name("c:1")]


async def test_the_budget_holds_at_every_moment_under_requests(
    tmp_path: Path, source: MemorySource
) -> None:
    budget = 2 * SIZE + SIZE // 2
    async with registry(tmp_path / "data", store_budget=budget, store_free=0) as known:
        await report(known)
        for name in MODELS:
            assert (await add(known, name)).state == types.IMPORT_STATE_REGISTERED
        over: list[int] = []

        async def sample() -> None:
            while True:
                taken = await asyncio.to_thread(on_disk, known)
                if taken > budget:
                    over.append(taken)
                await asyncio.sleep(0)

        sampling = asyncio.create_task(sample())
        order = [name for _ in range(6) for name in MODELS]
        random.Random(1).shuffle(order)
        for name in order:
            # The model that was loaded last has left memory, as on a server with room for one.
            await report(known, f"{name}:1")
            assert (await known.check(f"{name}:1")).problem == ""
            assert (known.staging / name / "1" / "weights.bin").stat().st_size == SIZE
        sampling.cancel()
        assert over == []
        assert len((await disk(known)).departures) > len(MODELS)


async def test_a_caller_who_cannot_wait_is_told_how_long_it_takes(
    tmp_path: Path, source: MemorySource
) -> None:
    settings = {"store_budget": SIZE + SIZE // 2, "store_free": 0}
    async with registry(tmp_path / "data", **settings) as known:
        await report(known)
        await add(known, "a")
        await add(known, "b")
        source.holds["1/weights.bin"] = SIZE // 2
        request = pb.CheckModelVersionRequest(name=version_name("a:1"))
        checked = await known.stub.CheckModelVersion(request, timeout=1.5)
        assert "its files are being fetched again from s3://memory/a" in checked.problem
        assert "the rest takes about" in checked.problem
        assert (await known.version("a:1")).state == types.VERSION_STATE_APPROVED


async def test_a_fetch_goes_on_where_it_broke_off(tmp_path: Path, source: MemorySource) -> None:
    source.holds["1/weights.bin"] = SIZE // 2
    async with registry(tmp_path / "data") as known:
        started = await start(known, "s3://memory/a", "a")
        await source.held.wait()
        found = (await known.stub.GetImport(pb.GetImportRequest(name=started.name)),)
        assert getattr(found[0], "import").state == types.IMPORT_STATE_IMPORTING
    assert sum(path.stat().st_size for path in files_below(tmp_path / "data/store/partial")) > 0
    source.holds.clear()
    read = source.read_bytes
    async with registry(tmp_path / "data") as known:
        last = await ended(known, started)
        assert last.state == types.IMPORT_STATE_REGISTERED, last.reason
        assert source.read_bytes - read < SIZE * 3 // 4
        staged = known.staging / "a" / "1" / "weights.bin"
        assert staged.read_bytes() == source.models["a"]["1/weights.bin"]
        assert files_below(known.settings.store / "partial") == []
        origin = (await known.version("a:1")).provenance
        assert (origin.source.revision, origin.about["run"]) == ("1", "7")


async def test_a_cancelled_import_leaves_nothing(tmp_path: Path, source: MemorySource) -> None:
    source.holds["1/weights.bin"] = SIZE // 2
    async with registry(tmp_path / "data") as known:
        started = await start(known, "s3://memory/a", "a")
        await source.held.wait()
        # The rest answers meanwhile, other models are registered, too.
        source.models["small"] = model_files("small", 10)
        assert (await add(known, "small")).state == types.IMPORT_STATE_REGISTERED
        cancelled = await known.stub.CancelImport(pb.CancelImportRequest(name=started.name))
        assert getattr(cancelled, "import").state == types.IMPORT_STATE_CANCELLED
        await known.stub.DeleteModel(pb.DeleteModelRequest(name="models/small"))
        assert files_below(known.settings.store) == []
        assert source.open_files == 0


@pytest.mark.parametrize("lie", ["digest", "short"])
async def test_content_that_is_not_what_was_listed_is_refused(
    tmp_path: Path, source: MemorySource, lie: str
) -> None:
    if lie == "digest":
        source.digests["1/weights.bin"] = f"sha256:{'0' * 64}"
    else:
        source.breaks["1/weights.bin"] = SIZE // 2
    async with registry(tmp_path / "data") as known:
        last = await add(known, "a")
        assert last.state == types.IMPORT_STATE_FAILED
        assert ("1/weights.bin" if lie == "digest" else "it broke off") in last.reason
        assert files_below(known.settings.store) == []
        assert not (known.staging / "a").exists()


async def test_damaged_partial_files_do_no_harm(tmp_path: Path, source: MemorySource) -> None:
    source.holds["1/weights.bin"] = SIZE // 2
    async with registry(tmp_path / "data") as known:
        started = await start(known, "s3://memory/a", "a")
        await source.held.wait()
    arrived = files_below(tmp_path / "data/store/partial")
    partial = max(arrived, key=lambda path: path.stat().st_size)
    with partial.open("r+b") as damaged:
        damaged.write(b"?")
    source.holds.clear()
    async with registry(tmp_path / "data") as known:
        assert (await ended(known, started)).state == types.IMPORT_STATE_REGISTERED


async def test_no_more_files_are_fetched_at_a_time_than_is_set(
    tmp_path: Path, source: MemorySource
) -> None:
    source.models["many"] = {
        **model_files("many", 10),
        **{f"1/part{index}": os.urandom(4 * CHUNK) for index in range(20)},
    }
    async with registry(tmp_path / "data", fetches=3) as known:
        last = await add(known, "many")
        assert last.state == types.IMPORT_STATE_REGISTERED
        assert 2 <= source.most_open <= 3


async def test_full_file_systems_are_left_some_room(tmp_path: Path, source: MemorySource) -> None:
    async with registry(tmp_path / "data", store_free=1 << 60) as known:
        last = await add(known, "a")
        assert last.state == types.IMPORT_STATE_FAILED
        assert "are free on its file system" in last.reason
        assert source.read_bytes == 0


async def test_garbage_is_shown_before_it_is_removed(tmp_path: Path, source: MemorySource) -> None:
    async with registry(tmp_path / "data") as known:
        await add(known, "a")
        stray = known.settings.store / "blobs" / "00" / ("0" * 64)
        stray.parent.mkdir(exist_ok=True)
        stray.write_bytes(b"x" * 100)
    async with registry(tmp_path / "data") as known:
        request = pb.CollectGarbageRequest(dry_run=True)
        assert (await known.stub.CollectGarbage(request)).freed_bytes == 100
        assert stray.exists()
        assert (await known.stub.CollectGarbage(pb.CollectGarbageRequest())).freed_bytes == 100
        assert not stray.exists()
        assert (await known.check("a:1")).problem == ""


async def test_an_archive_is_unpacked_and_fetched_again(
    tmp_path: Path, source: MemorySource
) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for path, content in model_files("packed").items():
            member = tarfile.TarInfo(f"packed-2/{path}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    source.models["packed"] = {"model.tar.gz": buffer.getvalue()}
    settings = {"store_budget": 200 * SIZE, "store_free": 0}
    async with registry(tmp_path / "data", **settings) as known:
        last = await add(known, "packed")
        assert last.state == types.IMPORT_STATE_REGISTERED, last.reason
        usage = await disk(known)
        assert usage.used_bytes == sum(map(len, model_files("packed").values()))
    for lost in ("store/trees", "store/blobs", "staging/packed/1"):
        shutil.rmtree(tmp_path / "data" / lost)
    async with registry(tmp_path / "data", **settings) as known:
        assert (await known.check("packed:1")).problem == ""
        weights = known.staging / "packed" / "1" / "weights.bin"
        assert weights.read_bytes() == model_files("packed")["1/weights.bin"]
