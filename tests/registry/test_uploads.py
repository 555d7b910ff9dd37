"""Files that a caller sends: in pieces, from where they broke off, and only what is missing."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from services.registry.api.storage import MAX_CHUNK
from shoal.client import connect, connect_async
from shoal.client.errors import InvalidArgument
from shoal.registry.v1 import registry_service_pb2 as pb
from tests.registry.test_imports import disk, ended, files_below, start
from tests.support.registry import (
    PYTHON_CODE,
    Registry,
    python_model,
    refusal,
    registry,
    version_name,
)
from tests.support.waiting import until

pytestmark = pytest.mark.usefixtures("database")

CONTENT = b"weights " * 300_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = python_model(tmp_path / "local", "adder", (1, 2))
    (made / "2" / "weights.bin").write_bytes(CONTENT)
    (made / "2" / "empty").touch()
    return made


def announced(**contents: bytes) -> list[pb.UploadedFile]:
    return [
        pb.UploadedFile(path=path, size=len(content), sha256=sha256(content))
        for path, content in contents.items()
    ]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


async def begin(known: Registry, files: list[pb.UploadedFile]) -> pb.BeginUploadResponse:
    return await known.stub.BeginUpload(pb.BeginUploadRequest(files=files))


def sent(
    upload: str, content: bytes, offset: int = 0, digest: str = "", size: int = 1 << 20
) -> Iterator[pb.UploadFileRequest]:
    def messages() -> Iterator[pb.UploadFileRequest]:
        yield pb.UploadFileRequest(
            upload=upload, sha256=digest or sha256(content), offset=offset, data=b""
        )
        for at in range(offset, len(content), size):
            yield pb.UploadFileRequest(data=content[at : at + size])

    return messages()


async def test_a_folder_is_sent_and_registered(tmp_path: Path, folder: Path) -> None:
    told: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        told.append((done, total))

    async with registry(tmp_path / "data") as known:
        with connect(registry=known.address) as client:
            made = await asyncio.to_thread(client.upload, "m", folder, progress=progress)
            assert (made.version, made.state) == (2, "APPROVED")
            assert made.provenance is not None
            assert made.provenance.source.startswith("upload://")
            assert not made.provenance.refetchable
            assert told[0][0] == 0
            assert told[-1][0] == told[-1][1] > len(CONTENT)
            assert (known.staging / "m" / "2" / "weights.bin").read_bytes() == CONTENT
            assert (known.staging / "m" / "2" / "empty").read_bytes() == b""
            told.clear()
            again = await asyncio.to_thread(
                client.upload, "n", folder, version=1, progress=progress
            )
            assert again.version == 1
            assert told == [(told[0][1], told[0][1])]  # all of it was there


async def test_the_same_for_asyncio_with_a_single_file(tmp_path: Path) -> None:
    file = tmp_path / "model.py"
    file.write_text(PYTHON_CODE)
    async with registry(tmp_path / "data") as known:
        client = connect_async(registry=known.address)
        async with client:
            made = await client.upload("m", file)
            assert (made.version, made.state) == (1, "INVALID")
            (tmp_path / "nothing").mkdir()
            with pytest.raises(ValueError, match="no files"):
                await client.upload("m", tmp_path / "nothing")


async def test_an_upload_goes_on_where_it_broke_off(tmp_path: Path) -> None:
    files = announced(**{"model.py": PYTHON_CODE.encode(), "weights.bin": CONTENT})
    async with registry(tmp_path / "data") as known:
        response = await begin(known, files)
        half = len(CONTENT) // 2
        partly = sent(response.upload, CONTENT[:half], digest=sha256(CONTENT))
        assert (await known.stub.UploadFile(partly)).received == half
    async with registry(tmp_path / "data") as known:
        again = await begin(known, files)
        assert again.upload == response.upload
        assert {one.sha256: one.received for one in again.missing} == {
            sha256(PYTHON_CODE.encode()): 0,
            sha256(CONTENT): half,
        }
        refused = await refusal(known.stub.UploadFile(sent(again.upload, CONTENT)))
        assert f"{half} bytes have arrived, not 0" in refused.message
        last = await ended(known, await start(known, "", upload=again.upload))
        assert "2 of its contents have not arrived" in last.reason
        for content, offset in ((CONTENT, half), (PYTHON_CODE.encode(), 0)):
            received = await known.stub.UploadFile(sent(again.upload, content, offset))
            assert received.received == len(content)
        assert list((await begin(known, files)).missing) == []


async def test_a_connection_that_breaks_loses_nothing_that_has_arrived(tmp_path: Path) -> None:
    files = announced(**{"weights.bin": CONTENT})
    async with registry(tmp_path / "data") as known:
        upload = (await begin(known, files)).upload
        partial = known.settings.store / "partial" / sha256(CONTENT)

        async def messages() -> AsyncIterator[pb.UploadFileRequest]:
            yield pb.UploadFileRequest(upload=upload, sha256=sha256(CONTENT), data=CONTENT[:1000])
            await asyncio.Event().wait()

        call = known.stub.UploadFile(messages())
        await until(partial.exists)
        call.cancel()
        await until(lambda: partial.stat().st_size == 1000)
        assert (await begin(known, files)).missing[0].received == 1000


async def test_content_that_is_not_what_was_announced_is_refused(tmp_path: Path) -> None:
    files = announced(**{"weights.bin": b"right"})
    async with registry(tmp_path / "data") as known:
        upload = (await begin(known, files)).upload
        wrong = sent(upload, b"wrong", digest=sha256(b"right"))
        assert (await refusal(known.stub.UploadFile(wrong))).reason == "CONTENT_MISMATCH"
        long = sent(upload, b"right and more", digest=sha256(b"right"))
        assert (await refusal(known.stub.UploadFile(long))).reason == "CONTENT_MISMATCH"
        assert (await begin(known, files)).missing[0].received in (0, 5)
        unknown = sent("0" * 64, b"right")
        assert (await refusal(known.stub.UploadFile(unknown))).reason == "UPLOAD_INCOMPLETE"
        other = sent(upload, b"other")
        assert (await refusal(known.stub.UploadFile(other))).reason == "INVALID_FIELD"
        large = sent(upload, b"x" * (MAX_CHUNK + 1), digest=sha256(b"right"), size=MAX_CHUNK + 1)
        assert (await refusal(known.stub.UploadFile(large))).reason in (
            "INVALID_FIELD",
            "CONTENT_MISMATCH",
        )


@pytest.mark.parametrize(
    "path", ["../up", "/etc/passwd", "a/../../b", "a//b", "", "a\\b", "nul\0", "a" * 300, "./a"]
)
async def test_paths_that_lead_elsewhere_are_refused(tmp_path: Path, path: str) -> None:
    async with registry(tmp_path / "data") as known:
        refused = await refusal(begin(known, announced(**{path: b"x"})))
        assert refused.reason == "UNSAFE_CONTENT"
        refused = await refusal(begin(known, announced(**{"a": b"x", "a/b": b"y"})))
        assert "both a file and a folder" in refused.message
        assert files_below(known.settings.store) == []


async def test_uploads_stay_on_disk(tmp_path: Path, folder: Path) -> None:
    budget = len(CONTENT) + 10_000
    async with registry(tmp_path / "data", store_budget=budget, store_free=0) as known:
        client = connect_async(registry=known.address)
        async with client:
            await client.upload("m", folder)
            (folder / "2" / "weights.bin").write_bytes(CONTENT[::-1])
            with pytest.raises(Exception, match="they were uploaded") as refused:
                await client.upload("n", folder)
            assert not isinstance(refused.value, InvalidArgument)
        await known.stub.DeleteModelVersion(pb.DeleteModelVersionRequest(name=version_name("m:2")))
        assert (await disk(known)).used_bytes < len(CONTENT)
