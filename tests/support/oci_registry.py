"""OCI registries for tests: a real one where it is installed, and a small one that can misbehave.

The small one answers the distribution API as far as ORAS pushes and the Registry pulls.
"""

import asyncio
import base64
import contextlib
import hashlib
import os
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from aiohttp import web

from tests.support.storage import free_ports
from tests.support.waiting import wait_until

TOKEN = "token-of-tests"
USER = base64.b64encode(b"user:password-of-tests").decode()


def program() -> str | None:
    """Return the distribution registry's program (Debian: docker-registry), or None."""
    return os.environ.get("SHOAL_TEST_OCI_REGISTRY") or shutil.which("docker-registry")


@contextlib.contextmanager
def real_registry() -> Iterator[str]:
    """Run the distribution registry, and give its host and port."""
    found = program()
    assert found is not None
    folder = Path(tempfile.mkdtemp(prefix="oci"))
    (port,) = free_ports(1)
    host = f"127.0.0.1:{port}"
    config = folder / "config.yml"
    config.write_text(
        "version: 0.1\n"
        f"storage: {{filesystem: {{rootdirectory: {folder}/blobs}}}}\n"
        f"http: {{addr: '{host}', secret: tests}}\n"
    )
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([found, "serve", str(config)], stdout=log, stderr=log)
    try:
        wait_until(lambda: _answers(host), 30, "the registry answers")
        yield host
    finally:
        server.kill()
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)


class SmallRegistry:
    """The distribution API, in memory."""

    def __init__(self) -> None:
        self.host = ""
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, tuple[str, bytes]] = {}
        self.elsewhere = ""  # where it redirects those who want a blob
        self.wants_token = False
        self.token = TOKEN
        self.realm = ""  # who gives tokens, if not the registry itself
        self.seen: list[web.Request] = []
        self._uploads: dict[str, bytes] = {}

    @contextlib.asynccontextmanager
    async def served(self) -> AsyncIterator["SmallRegistry"]:
        app = web.Application(client_max_size=2**30)
        name = "/v2/{name:.+}"
        app.router.add_get("/v2/", self._root)
        app.router.add_get("/token", self._token)
        app.router.add_get(f"{name}/manifests/{{reference}}", self._manifest)
        app.router.add_put(f"{name}/manifests/{{reference}}", self._put_manifest)
        app.router.add_get(f"{name}/blobs/{{digest:sha256:.*}}", self._blob)
        app.router.add_post(f"{name}/blobs/uploads/", self._start)
        app.router.add_put(f"{name}/blobs/uploads/{{upload}}", self._finish)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.host = f"127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            await runner.cleanup()

    def put(self, content: bytes) -> str:
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        self.blobs[digest] = content
        return digest

    async def _root(self, request: web.Request) -> web.Response:
        return web.json_response({})

    async def _token(self, request: web.Request) -> web.Response:
        self.seen.append(request)
        if request.headers.get("Authorization") != f"Basic {USER}":
            raise web.HTTPUnauthorized
        return web.json_response({"token": self.token})

    def _check(self, request: web.Request) -> None:
        self.seen.append(request)
        if self.wants_token and request.headers.get("Authorization") != f"Bearer {self.token}":
            realm = self.realm or f"http://{self.host}/token"
            challenge = f'Bearer realm="{realm}",service="s",scope="pull"'
            raise web.HTTPUnauthorized(headers={"WWW-Authenticate": challenge})

    async def _manifest(self, request: web.Request) -> web.Response:
        self._check(request)
        found = self.manifests.get(request.match_info["reference"])
        if found is None:
            raise web.HTTPNotFound
        return web.Response(body=found[1], content_type=found[0])

    async def _put_manifest(self, request: web.Request) -> web.Response:
        body = await request.read()
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        for reference in (request.match_info["reference"], digest):
            self.manifests[reference] = request.content_type, body
        return web.Response(status=201, headers={"Docker-Content-Digest": digest})

    async def _blob(self, request: web.Request) -> web.StreamResponse:
        self._check(request)
        if self.elsewhere:
            raise web.HTTPTemporaryRedirect(self.elsewhere)
        content = self.blobs.get(request.match_info["digest"])
        if content is None:
            raise web.HTTPNotFound
        start = request.http_range.start or 0
        if not start:
            return web.Response(body=content)
        part = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return web.Response(status=206, body=content[start:], headers={"Content-Range": part})

    async def _start(self, request: web.Request) -> web.Response:
        upload = uuid.uuid4().hex
        location = f"/v2/{request.match_info['name']}/blobs/uploads/{upload}"
        return web.Response(status=202, headers={"Location": location})

    async def _finish(self, request: web.Request) -> web.Response:
        content = await request.read()
        await asyncio.to_thread(self.put, content)
        return web.Response(status=201)


def _answers(host: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{host}/v2/", timeout=1):
            return True
    except OSError:
        return False
