"""Models of the Hugging Face hub: from its cache, and from a hub on this host."""

import asyncio
import hashlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from huggingface_hub import constants, hf_hub_download

from services.registry.core.errors import (
    SourceChanged,
    SourceDenied,
    SourceNotFound,
    SourceUnavailable,
)
from services.registry.core.source import parse
from services.registry.sources.origin import Listing
from services.registry.sources.origins import origin_of
from services.registry.sources.settings import OriginSettings

COMMIT = "1" * 40
OLDER = "2" * 40
WEIGHTS = bytes(range(256)) * 8192
FILES = {
    ".gitattributes": b"*.onnx filter=lfs",
    "README.md": b"# Small",
    "config.json": b"{}",
    "onnx/model.onnx": WEIGHTS,
}


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def cached(folder: Path) -> None:
    """Write a repository as the library keeps it: blobs, and snapshots that link to them."""
    repository = folder / "models--acme--small"
    for name, content in FILES.items():
        large = name.endswith(".onnx")
        blob = digest(content) if large else hashlib.sha1(content).hexdigest()
        (repository / "blobs").mkdir(parents=True, exist_ok=True)
        (repository / "blobs" / blob).write_bytes(content)
        path = repository / "snapshots" / COMMIT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(os.path.relpath(repository / "blobs" / blob, path.parent))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)


def contents(folder: Path, pattern: str) -> list[bytes]:
    return [path.read_bytes() for path in folder.rglob(pattern) if path.is_file()]


async def listed(text: str, revision: str = "") -> Listing:
    source = parse(text)
    pinned = type(source)(source.scheme, source.locator, revision)
    return await origin_of(source, OriginSettings()).resolve(pinned)


async def content(listing: Listing, path: str, start: int = 0) -> bytes:
    origin = origin_of(listing.source, OriginSettings())
    file = next(file for file in listing.files if file.path == path)
    return b"".join([chunk async for chunk in origin.read(listing, file, start)])


# --- offline --------------------------------------------------------------------------------------


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("text", ["hf://acme/small", "hf://acme/small@main"])
async def test_a_repository_in_the_cache(text: str) -> None:
    listing = await listed(text)
    assert listing.source.revision == COMMIT
    assert [file.path for file in listing.files] == ["README.md", "config.json", "onnx/model.onnx"]
    assert listing.files[2].digest == f"sha256:{digest(WEIGHTS)}"
    assert listing.files[2].size == len(WEIGHTS)
    for start in (0, 1000, len(WEIGHTS)):
        assert await content(listing, "onnx/model.onnx", start) == WEIGHTS[start:]


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("text", ["hf://acme/small/onnx", "hf://acme/small@main/onnx/model.onnx"])
async def test_a_folder_or_file_of_a_repository(text: str) -> None:
    listing = await listed(text)
    assert [file.path for file in listing.files] == ["model.onnx"]
    assert await content(listing, "model.onnx") == WEIGHTS


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    "text", ["hf://acme/other", "hf://acme/small@v2", "hf://acme/small/nothing"]
)
async def test_what_the_cache_does_not_have(text: str) -> None:
    with pytest.raises(SourceNotFound):
        await listed(text)


def test_the_librarys_own_variables_apply(tmp_path: Path) -> None:
    cached(tmp_path / "hub")
    program = (
        "import asyncio\n"
        "from services.registry.core.source import parse\n"
        "from services.registry.sources.origins import origin_of\n"
        "from services.registry.sources.settings import OriginSettings\n"
        "source = parse('hf://acme/small')\n"
        "listing = asyncio.run(origin_of(source, OriginSettings()).resolve(source))\n"
        "print(listing.source.revision)\n"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == COMMIT


# --- online ---------------------------------------------------------------------------------------


class SmallHub:
    """As much of the hub's API as the library needs to download a repository."""

    def __init__(self) -> None:
        self.files = {COMMIT: dict(FILES), OLDER: {"config.json": b"older"}}
        self.gone = False
        self.tokens: list[str | None] = []

    async def info(self, request: web.Request) -> web.Response:
        self.tokens.append(request.headers.get("Authorization"))
        if request.match_info["name"] == "gated":
            raise web.HTTPForbidden(headers={"X-Error-Code": "GatedRepo"})
        if request.match_info["name"] != "small":
            raise web.HTTPNotFound(headers={"X-Error-Code": "RepoNotFound"})
        revision = request.match_info.get("revision", "main")
        commit = {"main": COMMIT, "old": OLDER}.get(revision, revision)
        if commit not in self.files:
            raise web.HTTPNotFound(headers={"X-Error-Code": "RevisionNotFound"})
        siblings = [
            {
                "rfilename": name,
                "size": len(content),
                "blobId": hashlib.sha1(content).hexdigest(),
                **self._lfs(name, content),
            }
            for name, content in self.files[commit].items()
        ]
        tags = ["onnx", "license:mit"]
        return web.json_response(
            {"id": "acme/small", "sha": commit, "siblings": siblings, "tags": tags}
        )

    def _lfs(self, name: str, content: bytes) -> dict[str, Any]:
        if not name.endswith(".onnx"):
            return {}
        return {"lfs": {"sha256": digest(content), "size": len(content), "pointerSize": 134}}

    async def file(self, request: web.Request) -> web.Response:
        if self.gone:
            raise web.HTTPNotFound(headers={"X-Error-Code": "EntryNotFound"})
        commit = request.match_info["revision"]
        found = self.files[commit][request.match_info["path"]]
        return web.Response(
            body=found, headers={"X-Repo-Commit": commit, "ETag": f'"{digest(found)}"'}
        )


@pytest.fixture
async def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SmallHub]:
    hub = SmallHub()
    app = web.Application()
    app.router.add_get("/api/models/acme/{name}", hub.info)
    app.router.add_get("/api/models/acme/{name}/revision/{revision}", hub.info)
    app.router.add_get("/acme/small/resolve/{revision}/{path:.*}", hub.file)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        url + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_registry")
    try:
        yield hub
    finally:
        await runner.cleanup()


async def test_a_repository_on_the_hub(hub: SmallHub) -> None:
    listing = await listed("hf://acme/small")
    assert listing.source.revision == COMMIT
    assert listing.about["tags"] == "onnx,license:mit"
    assert hub.tokens == ["Bearer hf_of_the_registry"]
    assert "hf_of_the_registry" not in repr(listing)
    for file in listing.files:
        assert await content(listing, file.path) == FILES[file.path]
        assert file.size == len(FILES[file.path])


async def test_what_was_downloaded_leaves_the_cache_again(hub: SmallHub, tmp_path: Path) -> None:
    listing = await listed("hf://acme/small")
    await asyncio.to_thread(hf_hub_download, "acme/small", "config.json", revision=COMMIT)
    for path in ("config.json", "onnx/model.onnx"):
        await content(listing, path)
    assert contents(tmp_path, "snapshots/*/**/*") == [FILES["config.json"]]
    assert contents(tmp_path, "blobs/*") == [FILES["config.json"]]


async def test_a_branch_is_pinned_to_its_commit(hub: SmallHub) -> None:
    assert (await listed("hf://acme/small@old")).source.revision == OLDER
    assert (await listed("hf://acme/small@main", OLDER)).source.revision == OLDER
    with pytest.raises(SourceNotFound):
        await listed("hf://acme/small@none")


async def test_a_file_that_is_gone(hub: SmallHub) -> None:
    listing = await listed("hf://acme/small")
    hub.gone = True
    with pytest.raises(SourceChanged, match=r"onnx/model\.onnx is gone"):
        await content(listing, "onnx/model.onnx")


async def test_a_gated_repository(hub: SmallHub) -> None:
    with pytest.raises(SourceDenied, match="Accept its conditions") as caught:
        await listed("hf://acme/gated")
    assert "hf_of_the_registry" not in str(caught.value)


async def test_no_such_repository(hub: SmallHub) -> None:
    with pytest.raises(SourceNotFound, match="HF_TOKEN does not open it"):
        await listed("hf://acme/nothing")


async def test_a_hub_that_cannot_be_reached(hub: SmallHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SourceUnavailable):
        await listed("hf://acme/small")
