"""`https://`: one file, which may be an archive."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace
from urllib.parse import unquote

from services.registry.core.errors import SourceChanged, UnsafeContent
from services.registry.core.source import Source, shown
from services.registry.sources.archives import form_of
from services.registry.sources.origin import Listing, RemoteFile
from services.registry.sources.settings import OriginSettings
from services.registry.sources.streams import guarded
from services.registry.sources.web import Web


class Https:
    """Reads the file at a URL."""

    def __init__(self, settings: OriginSettings) -> None:
        self._settings = settings
        self._web = Web("https", settings)

    async def resolve(self, source: Source) -> Listing:
        authority, _, path = source.locator.partition("/")
        async with self._web.get(self._web.url(authority, path), source) as reply:
            headers, size = reply.headers, reply.content_length
        name = unquote(path.rpartition("/")[2])
        form = form_of(name)
        if headers.get("Content-Encoding", "identity") != "identity" and form != "tar+gzip":
            raise UnsafeContent(
                path=shown(name), problem="its server compresses it although nobody asked for that"
            )
        revision = _revision(headers, size)
        if source.revision not in ("", revision):
            raise SourceChanged(source=source, problem="the file was written since")
        file = RemoteFile(name, size, etag=headers.get("ETag", ""), archive=form)
        about = {"media_type": headers["Content-Type"]} if "Content-Type" in headers else {}
        return Listing(replace(source, revision=revision), (file,), about)

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
        if start and not listing.source.revision:
            raise SourceChanged(
                source=listing.source,
                problem="its server does not tell whether the file is still the one that it was, "
                "so a fetch of it cannot go on",
            )
        authority, _, path = listing.source.locator.partition("/")
        url = self._web.url(authority, path)
        headers = {"Range": f"bytes={start}-"} if start else {}
        async with self._web.get(url, listing.source, headers) as reply:
            size = reply.content_length
            if size is not None and reply.status == 206:
                size += start
            if listing.source.revision not in ("", _revision(reply.headers, size)):
                raise SourceChanged(source=listing.source, problem="the file was written since")
            async with aclosing(self._web.body(reply, listing, file, start)) as chunks:
                async for chunk in chunks:
                    yield chunk


def _revision(headers: Mapping[str, str], size: int | None) -> str:
    """Return what tells one content from another, or "" where the server tells nothing."""
    etag = headers.get("ETag", "")
    if etag and not etag.startswith("W/"):
        return f"etag:{etag}"
    if "Last-Modified" in headers and size is not None:
        return f"modified:{headers['Last-Modified']};{size}"
    return ""
