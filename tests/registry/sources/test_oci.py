"""Artifacts in OCI registries: pushed by ORAS, laid out by ModelPack, and some that lie."""

import asyncio
import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import oras.client
import pytest

from services.registry.core.errors import (
    ContentMismatch,
    SourceDenied,
    SourceForbidden,
    SourceNotFound,
    SourceTooLarge,
    UnsafeContent,
)
from services.registry.core.oci import INDEXES, MANIFESTS, MODEL_CONFIG
from services.registry.core.source import Source, parse
from services.registry.sources.archives import unpack
from services.registry.sources.origin import Archive, Listing
from services.registry.sources.origins import origin_of
from services.registry.sources.settings import OriginSettings
from tests.support.oci_registry import TOKEN, USER, SmallRegistry, program, real_registry

MODEL = bytes(range(256)) * 4096
EMPTY = "application/vnd.oci.empty.v1+json"


def settings(host: str, **more: Any) -> OriginSettings:
    return OriginSettings(**{"plain_hosts": (host,), "private_hosts": ("127.0.0.0/8",), **more})


async def listed(source: Source | str, **more: Any) -> Listing:
    source = parse(source) if isinstance(source, str) else source
    host = source.locator.partition("/")[0]
    return await origin_of(source, settings(host, **more)).resolve(source)


async def content(listing: Listing, path: str = "", start: int = 0, **more: Any) -> bytes:
    host = listing.source.locator.partition("/")[0]
    origin = origin_of(listing.source, settings(host, **more))
    file = next(file for file in listing.files if not path or file.path == path)
    return b"".join([chunk async for chunk in origin.read(listing, file, start)])


@pytest.fixture
async def small() -> AsyncIterator[SmallRegistry]:
    async with SmallRegistry().served() as registry:
        yield registry


@pytest.fixture(params=["small", *(["real"] if program() else [])])
async def host(request: pytest.FixtureRequest, small: SmallRegistry) -> AsyncIterator[str]:
    if request.param == "small":
        yield small.host
    else:
        with real_registry() as real:
            yield real


def pushed(registry: SmallRegistry, layers: list[dict[str, Any]], **more: Any) -> str:
    """Put a manifest as it stands, and return the artifact's source."""
    config = {"mediaType": EMPTY, "digest": registry.put(b"{}"), "size": 2}
    manifest = {"schemaVersion": 2, "config": config, "layers": layers, **more}
    registry.manifests["v1"] = MANIFESTS[0], json.dumps(manifest).encode()
    return f"oci://{registry.host}/models/small:v1"


def layer(registry: SmallRegistry, body: bytes, **more: Any) -> dict[str, Any]:
    title = {"org.opencontainers.image.title": "model.onnx"}
    return {
        "mediaType": "application/octet-stream",
        "digest": registry.put(body),
        "size": len(body),
        "annotations": title,
        **more,
    }


def tar(files: dict[str, bytes]) -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as archive:
        for name, body in files.items():
            one = tarfile.TarInfo(name)
            one.size = len(body)
            archive.addfile(one, io.BytesIO(body))
    return written.getvalue()


def write_model(folder: Path) -> None:
    (folder / "resnet/1").mkdir(parents=True)
    (folder / "resnet/1/model.onnx").write_bytes(MODEL)
    (folder / "labels.txt").write_text("cat")


def unpacked(folder: Path, body: bytes, form: Archive) -> dict[str, bytes]:
    (folder / "packed").write_bytes(body)
    inside = folder / "unpacked"
    inside.mkdir()
    return {
        path: (inside / path).read_bytes()
        for path in unpack(folder / "packed", form, inside, 2**40)
    }


# --- what ORAS pushes -----------------------------------------------------------------------------


async def test_files_and_folders_that_oras_pushes(
    host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path)
    await asyncio.to_thread(
        oras.client.OrasClient(insecure=True).push,
        target=f"{host}/models/resnet:v1",
        files=["resnet", "labels.txt:text/plain"],
        manifest_annotations={"team": "vision"},
        quiet=True,
    )
    listing = await listed(f"oci://{host}/models/resnet:v1")
    assert listing.source.revision.startswith("sha256:")
    assert listing.about["annotation.team"] == "vision"
    packed = next(file for file in listing.files if file.archive)
    assert await content(listing, "labels.txt") == b"cat"
    body = await content(listing, packed.path)
    assert packed.digest == f"sha256:{hashlib.sha256(body).hexdigest()}"
    assert await content(listing, packed.path, 100) == body[100:]

    assert unpacked(tmp_path, body, packed.archive) == {"resnet/1/model.onnx": MODEL}

    by_digest = await listed(f"oci://{host}/models/resnet@{listing.source.revision}")
    assert by_digest.files == listing.files
    assert await listed(listing.source) == listing


async def test_a_tag_that_is_not_there(host: str) -> None:
    with pytest.raises(SourceNotFound):
        await listed(f"oci://{host}/models/nothing:v1")


async def test_a_tag_moves_and_what_it_meant_stays(small: SmallRegistry) -> None:
    text = pushed(small, [layer(small, b"first")])
    before = await listed(text)
    small.manifests[before.source.revision] = small.manifests["v1"]
    pushed(small, [layer(small, b"second")])
    assert (await listed(text)).source.revision != before.source.revision
    assert await content(await listed(before.source)) == b"first"


# --- ModelPack and images -------------------------------------------------------------------------


async def test_a_modelpack(small: SmallRegistry) -> None:
    config = {
        "descriptor": {"name": "small", "family": "resnet", "licenses": ["MIT", "BSD"]},
        "config": {"format": "onnx", "precision": "fp32"},
        "modelfs": {"type": "layers", "diffIds": []},
    }
    body = json.dumps(config).encode()
    packed = tar({"weights/model.onnx": MODEL})
    layers = [
        layer(
            small,
            packed,
            mediaType="application/vnd.cncf.model.weight.v1.tar",
            annotations={"org.cncf.model.filepath": "weights/model.onnx"},
        ),
        layer(
            small,
            b"{}",
            mediaType="application/vnd.cncf.model.weight.config.v1.raw",
            annotations={"org.cncf.model.filepath": "config/config.json"},
        ),
    ]
    text = pushed(
        small,
        layers,
        artifactType="application/vnd.cncf.model.manifest.v1+json",
        config={"mediaType": MODEL_CONFIG, "digest": small.put(body), "size": len(body)},
    )
    listing = await listed(text)
    assert [(file.archive, file.size) for file in listing.files] == [("tar", len(packed)), ("", 2)]
    assert listing.files[1].path == "config/config.json"
    assert listing.about["modelpack.family"] == "resnet"
    assert listing.about["modelpack.licenses"] == "MIT,BSD"
    assert listing.about["modelpack.format"] == "onnx"
    assert listing.about["media_type"] == "application/vnd.cncf.model.manifest.v1+json"


async def test_an_image(small: SmallRegistry) -> None:
    body = gzip.compress(tar({"models/1/model.onnx": MODEL}))
    kind = "application/vnd.docker.image.rootfs.diff.tar.gzip"
    text = pushed(small, [layer(small, body, mediaType=kind, annotations={})])
    (file,) = (await listed(text)).files
    assert (file.archive, file.size) == ("tar+gzip", len(body))


@pytest.mark.parametrize(("count", "problem"), [(1, ""), (2, "an index of 2 manifests")])
async def test_an_index(small: SmallRegistry, count: int, problem: str) -> None:
    text = pushed(small, [layer(small, MODEL)])
    kind, body = small.manifests["v1"]
    digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
    small.manifests[digest] = kind, body
    inner = {"mediaType": kind, "digest": digest, "size": len(body)}
    index = json.dumps({"manifests": [inner] * count}).encode()
    small.manifests["v1"] = INDEXES[0], index
    if problem:
        with pytest.raises(UnsafeContent, match=problem):
            await listed(text)
    else:
        listing = await listed(text)
        assert listing.source.revision == digest
        assert await content(listing) == MODEL


# --- credentials ----------------------------------------------------------------------------------


async def test_a_registry_that_wants_a_token(
    small: SmallRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = pushed(small, [layer(small, MODEL)])
    small.wants_token = True
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    with pytest.raises(SourceDenied):
        await listed(text)
    config = {"auths": {small.host: {"auth": USER}}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    listing = await listed(text)
    assert await content(listing) == MODEL
    assert TOKEN not in repr(listing)


async def test_a_token_that_has_expired(
    small: SmallRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"auths": {small.host: {"auth": USER}}}))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    source = parse(pushed(small, [layer(small, MODEL)]))
    small.wants_token = True
    origin = origin_of(source, settings(small.host))
    listing = await origin.resolve(source)
    small.token = "another-token"
    chunks = origin.read(listing, listing.files[0])
    assert b"".join([chunk async for chunk in chunks]) == MODEL


async def test_a_token_stays_with_its_registry(
    small: SmallRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = pushed(small, [layer(small, MODEL)])
    (tmp_path / "config.json").write_text(json.dumps({"auths": {small.host: {"auth": USER}}}))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    small.wants_token = True
    async with SmallRegistry().served() as other:
        other.put(MODEL)
        digest = f"sha256:{hashlib.sha256(MODEL).hexdigest()}"
        small.elsewhere = f"http://{other.host}/v2/cdn/blobs/{digest}"
        hosts = (small.host, other.host)
        assert await content(await listed(text), plain_hosts=hosts) == MODEL
        assert "Authorization" not in other.seen[-1].headers


# --- registries that lie --------------------------------------------------------------------------


async def test_content_with_another_digest(small: SmallRegistry) -> None:
    one = layer(small, MODEL)
    small.blobs[one["digest"]] = bytes(len(MODEL))
    with pytest.raises(ContentMismatch, match=r"its digest is sha256:.* and not sha256:"):
        await content(await listed(pushed(small, [one])))


@pytest.mark.parametrize("size", [1, len(MODEL) - 1, len(MODEL) + 1])
async def test_content_with_another_size(small: SmallRegistry, size: int) -> None:
    listing = await listed(pushed(small, [layer(small, MODEL, size=size)]))
    with pytest.raises(ContentMismatch, match=f"says {size} bytes, and its registry has"):
        await content(listing)


async def test_a_manifest_with_another_digest(small: SmallRegistry) -> None:
    pushed(small, [layer(small, MODEL)])
    wanted = f"sha256:{'0' * 64}"
    small.manifests[wanted] = small.manifests["v1"]
    with pytest.raises(ContentMismatch, match="its manifest has the digest"):
        await listed(f"oci://{small.host}/models/small@{wanted}")


@pytest.mark.parametrize("title", ["../evil", "/etc/evil", "a/../../b", "a\\b", ""])
async def test_titles_that_lead_elsewhere(small: SmallRegistry, title: str) -> None:
    annotations = {"org.opencontainers.image.title": title}
    with pytest.raises(UnsafeContent):
        await listed(pushed(small, [layer(small, MODEL, annotations=annotations)]))


async def test_two_layers_of_one_title(small: SmallRegistry) -> None:
    with pytest.raises(UnsafeContent, match="two files of that name"):
        await listed(pushed(small, [layer(small, b"a"), layer(small, b"b")]))


@pytest.mark.parametrize(
    "manifest",
    [
        b"no JSON",
        b"[]",
        b"{}",
        b'{"layers": [1]}',
        b'{"layers": [{"digest": "md5:1", "size": 1}]}',
        b'{"layers": [{"digest": "sha256:../../../x", "size": 1}]}',
        b'{"layers": [{"digest": "sha256:%b", "size": -1}]}' % (b"0" * 64),
        b"[" * 100_000,
    ],
)
async def test_manifests_that_are_none(small: SmallRegistry, manifest: bytes) -> None:
    text = pushed(small, [])
    small.manifests["v1"] = MANIFESTS[0], manifest
    with pytest.raises(ContentMismatch):
        await listed(text)


async def test_a_manifest_without_end(small: SmallRegistry) -> None:
    text = pushed(small, [])
    small.manifests["v1"] = MANIFESTS[0], bytes(5 * 2**20)
    with pytest.raises(UnsafeContent, match="more than 4194304 bytes"):
        await listed(text)


async def test_a_web_page_instead_of_a_manifest(small: SmallRegistry) -> None:
    text = pushed(small, [])
    small.manifests["v1"] = "text/html", b"<html>"
    with pytest.raises(UnsafeContent, match="of type text/html"):
        await listed(text)


async def test_a_layer_larger_than_allowed(small: SmallRegistry) -> None:
    listing = await listed(pushed(small, [layer(small, MODEL)]))
    with pytest.raises(SourceTooLarge, match="a file may have 1000 bytes"):
        await content(listing, max_bytes=1000)


async def test_a_realm_at_a_private_address(
    small: SmallRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    text = pushed(small, [layer(small, MODEL)])
    small.wants_token, small.realm = True, "https://10.0.0.1/token"
    with pytest.raises(SourceForbidden, match=r"leads to 10\.0\.0\.1, which is private"):
        await listed(text)


async def test_a_redirect_to_a_private_address(small: SmallRegistry) -> None:
    text = pushed(small, [layer(small, MODEL)])
    small.elsewhere = "https://169.254.169.254/latest/meta-data"
    with pytest.raises(SourceForbidden, match=r"leads to 169\.254\.169\.254, which is private"):
        await content(await listed(text))
