"""Files at URLs, from a server with TLS on this host."""

import asyncio
import ipaddress
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from pydantic import SecretStr

from services.registry.core.errors import (
    SourceChanged,
    SourceDenied,
    SourceForbidden,
    SourceNotFound,
    SourceTooLarge,
    SourceUnavailable,
)
from services.registry.core.source import Source, parse
from services.registry.sources.origin import Listing
from services.registry.sources.origins import origin_of
from services.registry.sources.settings import OriginSettings
from services.registry.sources.web import is_public
from tests.support.web_server import https_server

MODEL = bytes(range(256)) * 8192  # 2 MiB


class Site:
    """What the server answers, and what it was asked."""

    def __init__(self, folder: Path) -> None:
        (folder / "model.onnx").write_bytes(MODEL)
        self.folder = folder
        self.port = 0
        self.seen: list[web.Request] = []

    def source(self, path: str, host: str = "localhost") -> Source:
        return parse(f"https://{host}:{self.port}/{path}")

    async def model(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(request)
        return web.FileResponse(self.folder / "model.onnx")

    async def without_ranges(self, request: web.Request) -> web.StreamResponse:
        return web.Response(body=MODEL, headers={"ETag": '"1"'})

    async def guarded(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(request)
        if request.headers.get("Authorization") != "Bearer the-token":
            return web.Response(status=401)
        return web.Response(body=b"for friends")

    async def elsewhere(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(request)
        return web.Response(status=302, headers={"Location": request.query_string or self.to})

    to = ""

    async def endless(self, request: web.Request) -> web.StreamResponse:
        reply = web.StreamResponse()
        await reply.prepare(request)
        while True:
            await reply.write(bytes(65536))
            await asyncio.sleep(0)  # so that it hears of a connection that is closed

    async def stalling(self, request: web.Request) -> web.StreamResponse:
        reply = web.StreamResponse(headers={"Content-Length": "1000"})
        await reply.prepare(request)
        await reply.write(b"a")
        await asyncio.sleep(60)
        return reply

    async def short(self, request: web.Request) -> web.StreamResponse:
        reply = web.StreamResponse(headers={"Content-Length": "1000"})
        await reply.prepare(request)
        await reply.write(b"a" * 10)
        assert request.transport is not None
        request.transport.close()
        return reply


@pytest.fixture
async def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    site = Site(tmp_path)
    routes = {
        "/a model.onnx": site.model,
        "/model.onnx": site.model,
        "/packed/m.tar.gz": site.model,
        "/whole.onnx": site.without_ranges,
        "/friends.onnx": site.guarded,
        "/moved.onnx": site.elsewhere,
        "/endless.onnx": site.endless,
        "/stalling.onnx": site.stalling,
        "/short.onnx": site.short,
    }
    async with https_server(tmp_path, routes) as site.port:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        yield site


ALLOWED: dict[str, Any] = {"private_hosts": ("127.0.0.0/8", "::1/128")}


async def listed(source: Source, **settings: Any) -> Listing:
    return await origin_of(source, OriginSettings(**{**ALLOWED, **settings})).resolve(source)


async def content(listing: Listing, start: int = 0, **settings: Any) -> bytes:
    origin = origin_of(listing.source, OriginSettings(**{**ALLOWED, **settings}))
    return b"".join([chunk async for chunk in origin.read(listing, listing.files[0], start)])


@pytest.mark.parametrize(
    ("path", "name", "archive"),
    [
        ("model.onnx", "model.onnx", ""),
        ("a%20model.onnx", "a model.onnx", ""),
        ("packed/m.tar.gz", "m.tar.gz", "tar+gzip"),
    ],
)
async def test_a_file(site: Site, path: str, name: str, archive: str) -> None:
    listing = await listed(site.source(path))
    (file,) = listing.files
    assert (file.path, file.size, file.archive) == (name, len(MODEL), archive)
    assert listing.source.revision.startswith("etag:")
    assert await content(listing) == MODEL
    assert await listed(listing.source) == listing


@pytest.mark.parametrize("path", ["model.onnx", "whole.onnx"])
@pytest.mark.parametrize("start", [1, 2**20, len(MODEL) - 1, len(MODEL)])
async def test_reading_goes_on_after_a_break(site: Site, path: str, start: int) -> None:
    assert await content(await listed(site.source(path)), start) == MODEL[start:]


async def test_a_file_that_was_written_since(site: Site) -> None:
    listing = await listed(site.source("model.onnx"))
    (site.folder / "model.onnx").write_bytes(b"another")
    with pytest.raises(SourceChanged):
        await content(listing)
    with pytest.raises(SourceChanged):
        await content(listing, 100)
    with pytest.raises(SourceChanged):
        await listed(listing.source)


async def test_a_file_that_may_be_another_one_by_now(site: Site) -> None:
    tokens = {f"localhost:{site.port}": SecretStr("the-token")}
    listing = await listed(site.source("friends.onnx"), tokens=tokens)
    assert listing.source.revision == ""
    with pytest.raises(SourceChanged, match="a fetch of it cannot go on"):
        await content(listing, 3, tokens=tokens)


async def test_a_file_that_is_not_there(site: Site) -> None:
    with pytest.raises(SourceNotFound):
        await listed(site.source("nothing.onnx"))


async def test_a_token_is_for_its_host_alone(site: Site) -> None:
    source = site.source("friends.onnx")
    with pytest.raises(SourceDenied, match="401"):
        await listed(source)
    tokens = {f"localhost:{site.port}": SecretStr("the-token")}
    assert await content(await listed(source, tokens=tokens), tokens=tokens) == b"for friends"

    site.to = f"https://127.0.0.1:{site.port}/friends.onnx"
    with pytest.raises(SourceDenied) as caught:
        await listed(site.source("moved.onnx"), tokens=tokens)
    assert "Authorization" in site.seen[-2].headers
    assert "Authorization" not in site.seen[-1].headers
    assert "the-token" not in str(caught.value)


async def test_a_redirect(site: Site) -> None:
    site.to = "/model.onnx"
    listing = await listed(site.source("moved.onnx"))
    assert (listing.files[0].path, await content(listing)) == ("moved.onnx", MODEL)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
async def test_a_private_address_is_refused(site: Site, host: str) -> None:
    with pytest.raises(SourceForbidden, match=r"is private.*origins\.private_hosts"):
        await listed(site.source("model.onnx", host), private_hosts=())
    assert site.seen == []


async def test_a_private_address_behind_a_proxy_is_refused(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "http://user:s3cret@127.0.0.1:9")
    with pytest.raises(SourceForbidden, match=r"leads to 10\.0\.0\.1, which is private"):
        await listed(parse("https://10.0.0.1/model.onnx"))
    with pytest.raises(SourceUnavailable) as caught:
        await listed(parse("https://models.example/model.onnx"))
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "[::ffff:127.0.0.1]"])
async def test_a_redirect_to_a_private_address_is_refused(site: Site, host: str) -> None:
    site.to = f"https://{host}:{site.port}/model.onnx"
    with pytest.raises(SourceForbidden, match=r"leads to .*, which is private"):
        await listed(site.source("moved.onnx"), private_hosts=(f"localhost:{site.port}",))
    assert len(site.seen) == 1


@pytest.mark.parametrize("target", ["http://localhost/x", "ftp://h/x", "file://h/x"])
async def test_a_redirect_away_from_https_is_refused(site: Site, target: str) -> None:
    site.to = target
    with pytest.raises(SourceForbidden, match="which is not HTTPS"):
        await listed(site.source("moved.onnx"))


async def test_a_redirect_to_a_file_is_refused(site: Site) -> None:
    site.to = "file:///etc/passwd"
    with pytest.raises(SourceUnavailable, match="to what is no address"):
        await listed(site.source("moved.onnx"))


async def test_redirects_in_a_circle(site: Site) -> None:
    site.to = "/moved.onnx"
    with pytest.raises(SourceUnavailable, match="redirects more than 10 times"):
        await listed(site.source("moved.onnx"))


async def test_an_endless_body_is_cut(site: Site) -> None:
    listing = await listed(site.source("endless.onnx"))
    assert listing.files[0].size is None
    with pytest.raises(SourceTooLarge, match="a file may have 1000000 bytes"):
        await content(listing, max_bytes=1_000_000)


async def test_a_server_that_stalls(site: Site) -> None:
    listing = await listed(site.source("stalling.onnx"))
    with pytest.raises(SourceUnavailable, match=r"in time|sent nothing"):
        await content(listing, idle_timeout=0.2)


async def test_a_server_that_breaks_off(site: Site) -> None:
    listing = await listed(site.source("short.onnx"))
    with pytest.raises(SourceUnavailable, match="broke off"):
        await content(listing)


async def test_a_certificate_of_nobody(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(SourceUnavailable, match="its certificate is not trusted"):
        await listed(site.source("model.onnx"))


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("fe80::1", False),
        ("fd00::1", False),
        ("::ffff:10.0.0.1", False),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::a00:1", False),
        ("64:ff9b::808:808", True),
        ("2002:a00:1::", False),
    ],
)
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert is_public(ipaddress.ip_address(address)) is public
