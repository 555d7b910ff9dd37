"""`oci://`: artifacts in OCI registries, by the distribution API.

Credentials come from Docker's own file (DOCKER_CONFIG, or ~/.docker/config.json), or from the
Registry's settings. They are sent to the registry and to the host that it names for tokens.
"""

import base64
import hashlib
import json
import os
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from services.registry.core.errors import (
    ContentMismatch,
    SourceDenied,
    SourceNotFound,
    UnsafeContent,
)
from services.registry.core.oci import (
    INDEXES,
    MANIFESTS,
    MODEL_CONFIG,
    Blob,
    read_index,
    read_manifest,
    read_model_config,
)
from services.registry.core.source import Source
from services.registry.sources.origin import Archive, Listing, RemoteFile
from services.registry.sources.settings import OriginSettings
from services.registry.sources.streams import guarded
from services.registry.sources.web import Web

if TYPE_CHECKING:
    from aiohttp import ClientResponse
    from yarl import URL

_MAX_DOCUMENT: Final = 4 * 2**20  # bytes of a manifest, a config or a token
_CHALLENGE: Final = re.compile(r'(\w+)="([^"]*)"')
# Where docker.io really answers.
_ALIASES: Final = {"docker.io": "registry-1.docker.io"}
# What `docker login` calls it in its file.
_KEYS: Final = {"docker.io": "https://index.docker.io/v1/"}


class Oci:
    """Reads artifacts out of registries."""

    def __init__(self, settings: OriginSettings) -> None:
        self._settings = settings
        self._web = Web("oci", settings)
        self._authorization: dict[str, dict[str, str]] = {}  # by host and name

    async def resolve(self, source: Source) -> Listing:
        host, name, reference = _parts(source)
        digest, body, kind = await self._manifest(source, host, name, reference)
        if kind in INDEXES:
            inner = [one for one in read_index(body) if one.media_type in MANIFESTS]
            if len(inner) != 1:
                raise UnsafeContent(
                    path=source,
                    problem=f"it is an index of {len(inner)} manifests. Name one by its digest: "
                    f"oci://{host}/{name}@sha256:…",
                )
            digest, body, kind = await self._manifest(source, host, name, inner[0].digest)
        manifest = read_manifest(body)
        about = dict(manifest.about)
        if manifest.config is not None and manifest.config.media_type == MODEL_CONFIG:
            about |= read_model_config(await self._document(source, host, name, manifest.config))
        files = tuple(
            RemoteFile(
                layer.path,
                layer.blob.size,
                layer.blob.digest,
                archive=cast("Archive", layer.archive),
            )
            for layer in manifest.layers
        )
        if not files:
            raise SourceNotFound(source=source, problem="the artifact has no layers")
        return Listing(replace(source, revision=digest), files, about)

    def read(
        self, listing: Listing, file: RemoteFile, start: int = 0
    ) -> AsyncGenerator[bytes, None]:
        chunks = self._chunks(listing, file, start)
        return guarded(chunks, listing, file, start, self._settings)

    async def _chunks(
        self, listing: Listing, file: RemoteFile, start: int
    ) -> AsyncGenerator[bytes, None]:
        if start == file.size:
            return
        host, name, _ = _parts(listing.source)
        path = f"v2/{name}/blobs/{file.digest}"
        headers = {"Range": f"bytes={start}-"} if start else {}
        async with self._get(listing.source, host, name, path, headers) as reply:
            length = reply.content_length
            if reply.status == 200 and length is not None and length != file.size:
                raise ContentMismatch(
                    path=file.path,
                    problem=f"the manifest says {file.size} bytes, and its registry has {length}",
                )
            async with aclosing(self._web.body(reply, listing, file, start)) as chunks:
                async for chunk in chunks:
                    yield chunk

    async def _manifest(
        self, source: Source, host: str, name: str, reference: str
    ) -> tuple[str, bytes, str]:
        """Return a manifest's digest, its bytes and its media type."""
        headers = {"Accept": ", ".join((*MANIFESTS, *INDEXES))}
        path = f"v2/{name}/manifests/{reference}"
        async with self._get(source, host, name, path, headers) as reply:
            body = await _small(reply, source)
            kind = reply.content_type
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        if reference.startswith("sha256:") and reference != digest:
            raise ContentMismatch(path=source, problem=f"its manifest has the digest {digest}")
        if kind not in (*MANIFESTS, *INDEXES):
            raise UnsafeContent(path=source, problem=f"its manifest is of type {kind[:100]}")
        return digest, body, kind

    async def _document(self, source: Source, host: str, name: str, blob: Blob) -> bytes:
        path = f"v2/{name}/blobs/{blob.digest}"
        async with self._get(source, host, name, path, {}) as reply:
            body = await _small(reply, source)
        if blob.digest != f"sha256:{hashlib.sha256(body).hexdigest()}":
            raise ContentMismatch(path=source, problem="its config has another digest")
        return body

    @asynccontextmanager
    async def _get(
        self, source: Source, host: str, name: str, path: str, headers: Mapping[str, str]
    ) -> AsyncIterator["ClientResponse"]:
        """Make a request of a registry, with a token if it asks for one, or for a new one."""
        url = self._web.url(_ALIASES.get(host, host), path)
        key = f"{host}/{name}"
        for expected in ((200, 206, 401), (200, 206)):
            sent = {**headers, **self._authorization.get(key, {})}
            async with self._web.get(url, source, sent, expected) as reply:
                if reply.status != 401:
                    yield reply
                    return
                challenge = reply.headers.get("WWW-Authenticate", "")
            answer = await self._answer(source, host, challenge)
            self._authorization[key] = {"Authorization": answer}

    async def _answer(self, source: Source, host: str, challenge: str) -> str:
        """Return the Authorization header that a registry asks for."""
        scheme, _, rest = challenge.partition(" ")
        basic = _docker_credentials(host)
        if scheme.lower() == "basic" and basic:
            return f"Basic {basic}"
        said = dict(_CHALLENGE.findall(rest))
        if scheme.lower() != "bearer" or "realm" not in said:
            raise SourceDenied(
                source=source,
                problem=f"{host} wants credentials. `docker login {host}` as the Registry's user "
                "writes them where they are looked for",
            )
        url = self._realm(source, said)
        headers = {"Authorization": f"Basic {basic}"} if basic else {}
        async with self._web.get(url, source, headers) as reply:
            body = await _small(reply, source)
        try:
            answer = json.loads(body)
            return f"Bearer {answer.get('token') or answer['access_token']}"
        except (ValueError, KeyError, AttributeError):
            raise SourceDenied(source=source, problem=f"{host} gives no token") from None

    def _realm(self, source: Source, said: Mapping[str, str]) -> "URL":
        from yarl import URL

        wanted = {key: said[key] for key in ("service", "scope") if key in said}
        return self._web.followed(URL("https://invalid/"), said["realm"], source).update_query(
            wanted
        )


def _parts(source: Source) -> tuple[str, str, str]:
    """Return host, name, and the tag or digest that is meant."""
    host, _, rest = source.locator.partition("/")
    name, _, digest = rest.partition("@")
    name, _, tag = name.partition(":")
    return host, name, source.revision or digest or tag


async def _small(reply: "ClientResponse", source: Source) -> bytes:
    body = b""
    async for chunk in reply.content.iter_chunked(2**16):
        body += chunk
        if len(body) > _MAX_DOCUMENT:
            raise UnsafeContent(
                path=source, problem=f"a document of it has more than {_MAX_DOCUMENT} bytes"
            )
    return body


def _docker_credentials(host: str) -> str:
    """Return user and password for a host in base64, as Docker keeps them, or ""."""
    folder = os.environ.get("DOCKER_CONFIG") or Path("~/.docker").expanduser()
    try:
        auths: Any = json.loads(Path(folder, "config.json").read_bytes()).get("auths", {})
        names = (host, f"https://{host}", _KEYS.get(host, host))
        found: Any = next((auths[name] for name in names if name in auths), {})
        if "auth" in found:
            return str(found["auth"])
        return base64.b64encode(f"{found['username']}:{found['password']}".encode()).decode()
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return ""
