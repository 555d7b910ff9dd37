"""Models in buckets, on a real S3 server."""

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path

import obstore
import pytest

from services.registry.core.errors import (
    SourceChanged,
    SourceDenied,
    SourceNotFound,
    SourceTooLarge,
    SourceUnavailable,
)
from services.registry.core.source import Source, parse
from services.registry.sources.origin import Listing, Origin, RemoteFile
from services.registry.sources.origins import origin_of
from services.registry.sources.settings import OriginSettings
from tests.support.cloud_storage import CloudStorage
from tests.support.storage import bucket, free_ports, put, s3_server, variables
from tests.support.web_server import tls

LARGE = bytes(range(256)) * 20_000
REPOSITORY = {
    "fleet/resnet/config.pbtxt": b'backend: "onnxruntime"',
    "fleet/resnet/1/model.onnx": LARGE,
    "fleet/resnet/2/model.onnx": b"two",
    "fleet/bert/1/model.onnx": b"",
    "fleet/bert/labels with spaces & ünï.txt": b"a",
    "fleet/bert/50%25 a+b#c?d=e~@.txt": b"b",
    "fleets/other/1/model.onnx": b"not below the prefix",
}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as url:
        put(url, REPOSITORY)
        yield url


@pytest.fixture
def origin(server: str, monkeypatch: pytest.MonkeyPatch) -> Origin:
    for name, value in variables(server).items():
        monkeypatch.setenv(name, value)
    return origin_of(parse("s3://models"), OriginSettings())


async def content(chunks: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])


def one(listing: Listing, path: str) -> RemoteFile:
    return next(file for file in listing.files if file.path == path)


async def test_a_prefix_is_a_whole_repository(origin: Origin) -> None:
    listing = await origin.resolve(parse("s3://models/fleet/"))
    expected = {
        key.removeprefix("fleet/"): value
        for key, value in REPOSITORY.items()
        if key.startswith("fleet/")
    }
    assert [file.path for file in listing.files] == sorted(expected)
    for file in listing.files:
        assert file.size == len(expected[file.path])
        assert await content(origin.read(listing, file)) == expected[file.path]


async def test_a_file_can_be_read_on_from_anywhere(origin: Origin) -> None:
    listing = await origin.resolve(parse("s3://models/fleet/resnet"))
    file = one(listing, "1/model.onnx")
    for start in (1, 1_000_000, len(LARGE) - 1, len(LARGE)):
        assert await content(origin.read(listing, file, start)) == LARGE[start:]


async def test_a_single_file(origin: Origin) -> None:
    listing = await origin.resolve(parse("s3://models/fleet/resnet/2/model.onnx"))
    assert [file.path for file in listing.files] == ["model.onnx"]
    assert await content(origin.read(listing, listing.files[0])) == b"two"


async def test_a_whole_bucket(origin: Origin) -> None:
    listing = await origin.resolve(parse("s3://models"))
    assert {file.path for file in listing.files} >= set(REPOSITORY)


async def test_the_revision_tells_whether_anything_changed(origin: Origin, server: str) -> None:
    put(server, {"moving/1/model.onnx": b"first"})
    listing = await origin.resolve(parse("s3://models/moving"))
    assert await origin.resolve(listing.source) == listing
    put(server, {"moving/1/model.onnx": b"other"})
    with pytest.raises(SourceChanged, match="s3://models/moving is no longer what it was"):
        await origin.resolve(listing.source)
    with pytest.raises(SourceChanged):
        await content(origin.read(listing, listing.files[0]))
    obstore.delete(bucket(server), "moving/1/model.onnx")


async def test_what_is_not_there(origin: Origin) -> None:
    for text in ("s3://models/nothing", "s3://nosuchbucket/x"):
        with pytest.raises(SourceNotFound, match=f"there is nothing at {text}"):
            await origin.resolve(parse(text))


async def test_wrong_credentials_are_not_repeated(
    origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another-secret")
    with pytest.raises(SourceDenied) as caught:
        await origin.resolve(parse("s3://models/fleet"))
    assert "another-secret" not in str(caught.value)


async def test_a_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = free_ports(1)
    for name, value in variables(f"http://127.0.0.1:{port}").items():
        monkeypatch.setenv(name, value)
    source = parse("s3://models/fleet")
    with pytest.raises(SourceUnavailable, match="s3://models/fleet cannot be read"):
        await origin_of(source, OriginSettings(idle_timeout=0.5)).resolve(source)


async def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    source = parse("az://container/x")
    with pytest.raises(SourceUnavailable, match="Account must be specified"):
        await origin_of(source, OriginSettings()).resolve(source)


async def test_a_file_that_is_gone(origin: Origin, server: str) -> None:
    put(server, {"leaving/model.onnx": b"x"})
    listing = await origin.resolve(parse("s3://models/leaving"))
    obstore.delete(bucket(server), "leaving/model.onnx")
    with pytest.raises(SourceChanged, match=r"model\.onnx is gone"):
        await content(origin.read(listing, listing.files[0]))


async def test_a_file_larger_than_allowed(origin: Origin) -> None:
    source = parse("s3://models/fleet/resnet")
    small = origin_of(source, OriginSettings(max_bytes=1000))
    listing = await small.resolve(source)
    with pytest.raises(SourceTooLarge, match="a file may have 1000 bytes"):
        await content(small.read(listing, one(listing, "1/model.onnx")))


async def test_a_reader_may_stop(origin: Origin) -> None:
    listing = await origin.resolve(parse("s3://models/fleet/resnet"))
    chunks = origin.read(listing, one(listing, "1/model.onnx"))
    async with aclosing(chunks):  # type: ignore[type-var]
        first = await anext(chunks)
    assert LARGE.startswith(first)


@pytest.mark.parametrize("scheme", ["gs", "az"])
async def test_other_clouds(scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate = tls(tmp_path) if scheme == "gs" else None  # Azure's emulator has none
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    async with CloudStorage(REPOSITORY).served(certificate) as storage:
        for name, value in storage.variables().items():
            monkeypatch.setenv(name, value)
        source = parse(f"{scheme}://models/fleet/resnet")
        origin = origin_of(source, OriginSettings())
        listing = await origin.resolve(source)
        assert [file.path for file in listing.files] == [
            "1/model.onnx",
            "2/model.onnx",
            "config.pbtxt",
        ]
        file = one(listing, "1/model.onnx")
        assert await content(origin.read(listing, file)) == LARGE
        assert await content(origin.read(listing, file, 1000)) == LARGE[1000:]
        assert await origin.resolve(listing.source) == listing
        storage.objects["fleet/resnet/1/model.onnx"] = bytes(len(LARGE))
        with pytest.raises(SourceChanged):
            await content(origin.read(listing, file))
        single = await origin.resolve(parse(f"{scheme}://models/fleet/resnet/config.pbtxt"))
        assert [file.path for file in single.files] == ["config.pbtxt"]
        with pytest.raises(SourceNotFound):
            await origin.resolve(parse(f"{scheme}://models/nothing"))


def test_a_source_is_what_the_user_wrote() -> None:
    assert str(Source("s3", "models/fleet", "etags:1")) == "s3://models/fleet"
