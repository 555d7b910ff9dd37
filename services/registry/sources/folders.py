"""Folders and files on the Registry's own host, copied into the store."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

from services.registry.core.errors import SourceChanged, SourceNotFound
from services.registry.core.source import Source
from services.registry.sources.origin import Listing, RemoteFile

_READ = 1 << 20


class Folders:
    async def resolve(self, source: Source) -> Listing:
        files = await asyncio.to_thread(_files, source)
        revision = hashlib.sha256(repr(files).encode()).hexdigest()
        if source.revision not in ("", revision):
            raise SourceChanged(source=source, problem="its files have changed")
        return Listing(Source("file", source.locator, revision), tuple(files))

    async def read(
        self, listing: Listing, file: RemoteFile, start: int = 0
    ) -> AsyncIterator[bytes]:
        path = Path(listing.source.locator) / file.path
        with path.open("rb") as opened:
            opened.seek(start)
            while chunk := await asyncio.to_thread(opened.read, _READ):
                yield chunk


def _files(source: Source) -> list[RemoteFile]:
    top = Path(source.locator)
    if not top.is_dir():
        raise SourceNotFound(source=source, problem="it is not a folder")
    found = []
    for path in sorted(top.rglob("*")):
        if path.is_file() and not path.is_symlink():
            status = path.stat()
            etag = f"{status.st_mtime_ns}-{status.st_ino}-{status.st_size}"
            relative = path.relative_to(top).as_posix()
            found.append(RemoteFile(relative, status.st_size, etag=etag))
    return found
