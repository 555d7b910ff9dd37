"""Folders and files on the Registry's own host, read to be copied."""

import os
from pathlib import Path

import pytest

from services.registry.core.errors import (
    InvalidArtifact,
    SourceChanged,
    SourceNotFound,
    UnsafeContent,
)
from services.registry.core.source import Source, parse
from services.registry.sources.origin import Listing
from services.registry.sources.origins import origin_of
from services.registry.sources.settings import OriginSettings


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "resnet"
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.onnx").write_bytes(b"weights")
    (folder / "config.pbtxt").write_bytes(b"")
    (folder / "2").mkdir()
    (folder / "2" / "model.onnx").symlink_to("../1/model.onnx")
    return folder


async def listed(source: Source | Path) -> Listing:
    source = parse(str(source)) if isinstance(source, Path) else source
    return await origin_of(source, OriginSettings()).resolve(source)


async def contents(listing: Listing, start: int = 0) -> dict[str, bytes]:
    origin = origin_of(listing.source, OriginSettings())
    return {
        file.path: b"".join([chunk async for chunk in origin.read(listing, file, start)])
        for file in listing.files
    }


async def test_a_folder(folder: Path) -> None:
    listing = await listed(folder)
    assert await contents(listing) == {
        "1/model.onnx": b"weights",
        "2/model.onnx": b"weights",
        "config.pbtxt": b"",
    }
    assert await listed(listing.source) == listing


async def test_a_file_and_an_archive(folder: Path) -> None:
    listing = await listed(folder / "1" / "model.onnx")
    assert await contents(listing, 3) == {"model.onnx": b"ghts"}
    (folder / "m.tgz").write_bytes(b"x")
    assert (await listed(folder / "m.tgz")).files[0].archive == "tar+gzip"


async def test_a_file_that_was_written_since(folder: Path) -> None:
    listing = await listed(folder)
    (folder / "1" / "model.onnx").write_bytes(b"others!")
    os.utime(folder / "1" / "model.onnx", ns=(1, 1))
    with pytest.raises(SourceChanged):
        await contents(listing)
    with pytest.raises(SourceChanged):
        await listed(listing.source)


async def test_a_file_that_became_a_link_out_of_the_folder(folder: Path, tmp_path: Path) -> None:
    listing = await listed(folder)
    inside, secret = folder / "1" / "model.onnx", tmp_path / "secret"
    inside.rename(secret)
    inside.symlink_to(secret)
    with pytest.raises(SourceChanged):
        await contents(listing)


async def test_a_link_out_of_the_folder(folder: Path) -> None:
    (folder / "1" / "passwords").symlink_to("/etc/passwd")
    with pytest.raises(InvalidArtifact, match="it links to /etc/passwd"):
        await listed(folder)


async def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound):
        await listed(tmp_path / "nothing")
    with pytest.raises(SourceNotFound, match="the folder is empty"):
        await listed(tmp_path)


async def test_a_name_that_no_message_can_hold(folder: Path) -> None:
    (folder / os.fsdecode(b"\xff")).write_bytes(b"")
    with pytest.raises(UnsafeContent):
        await listed(folder)
