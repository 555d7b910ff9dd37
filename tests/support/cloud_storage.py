"""Google's and Azure's storage, as far as obstore asks: lists in XML, ETags and ranges."""

import contextlib
import hashlib
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from xml.sax.saxutils import escape

from aiohttp import web

BUCKET = "models"


class CloudStorage:
    """One bucket, by both protocols."""

    def __init__(self, objects: Mapping[str, bytes]) -> None:
        self.objects = dict(objects)
        self.url = ""

    @contextlib.asynccontextmanager
    async def served(self, context: ssl.SSLContext | None) -> AsyncIterator["CloudStorage"]:
        """Serve the bucket, with TLS if there is a certificate for it."""
        app = web.Application()
        app.router.add_get(f"/{BUCKET}", self._google_list)
        app.router.add_get(f"/{BUCKET}/{{key:.*}}", self._object)
        app.router.add_get(f"/devstoreaccount1/{BUCKET}", self._azure_list)
        app.router.add_get(f"/devstoreaccount1/{BUCKET}/{{key:.*}}", self._object)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        scheme = "https" if context else "http"
        self.url = f"{scheme}://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            await runner.cleanup()

    def variables(self) -> dict[str, str]:
        """Return the environment in which obstore asks this server."""
        account = {
            "gcs_base_url": self.url,
            "disable_oauth": True,
            "client_email": "",
            "private_key": "",
            "private_key_id": "",
        }
        return {
            "GOOGLE_SERVICE_ACCOUNT_KEY": json.dumps(account),
            "AZURE_STORAGE_USE_EMULATOR": "true",
            "AZURITE_BLOB_STORAGE_URL": self.url,
        }

    def _below(self, request: web.Request) -> list[tuple[str, bytes]]:
        prefix = request.query.get("prefix", "")
        return [one for one in sorted(self.objects.items()) if one[0].startswith(prefix)]

    async def _google_list(self, request: web.Request) -> web.Response:
        rows = [
            f"<Contents><Key>{escape(key)}</Key><Size>{len(content)}</Size>"
            f"<LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f"<ETag>{_etag(content)}</ETag></Contents>"
            for key, content in self._below(request)
        ]
        return _xml(f"<ListBucketResult>{''.join(rows)}</ListBucketResult>")

    async def _azure_list(self, request: web.Request) -> web.Response:
        rows = [
            f"<Blob><Name>{escape(key)}</Name><Properties>"
            "<Last-Modified>Thu, 01 Jan 2026 00:00:00 GMT</Last-Modified>"
            f"<Content-Length>{len(content)}</Content-Length>"
            f"<Content-Type>application/octet-stream</Content-Type>"
            f"<Etag>{_etag(content)}</Etag></Properties></Blob>"
            for key, content in self._below(request)
        ]
        return _xml(
            f"<EnumerationResults><Blobs>{''.join(rows)}</Blobs><NextMarker/></EnumerationResults>"
        )

    async def _object(self, request: web.Request) -> web.Response:
        content = self.objects.get(request.match_info["key"])
        if content is None:
            raise web.HTTPNotFound
        if request.headers.get("If-Match", _etag(content)) != _etag(content):
            raise web.HTTPPreconditionFailed
        headers = {"ETag": _etag(content), "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}
        start = request.http_range.start or 0
        if not start:
            return web.Response(body=content, headers=headers)
        headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return web.Response(status=206, body=content[start:], headers=headers)


def _etag(content: bytes) -> str:
    return f'"{hashlib.md5(content).hexdigest()}"'


def _xml(body: str) -> web.Response:
    return web.Response(text=f"<?xml version='1.0'?>{body}", content_type="application/xml")
