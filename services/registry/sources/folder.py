"""`file://`: a folder or a file on the Registry's own host, read to be copied."""

import asyncio
import hashlib
import os
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

from services.registry.artifacts import tree
from services.registry.core.errors import SourceChanged, SourceDenied, SourceNotFound
from services.registry.core.source import Source, shown
from services.registry.sources.archives import form_of
from services.registry.sources.origin import Listing, RemoteFile
from services.registry.sources.settings import OriginSettings
from services.registry.sources.streams import guarded, of_file


class Folder:
    """Reads a file, or everything below a folder. No link in it may lead out of it."""

    def __init__(self, settings: OriginSettings) -> None:
        self._settings = settings

    async def resolve(self, source: Source) -> Listing:
        """List the files. Raises InvalidArtifact for a link that leads out of the folder, too."""
        files = await asyncio.to_thread(_files, source)
        digest = hashlib.sha256()
        for file in files:
            digest.update(f"{file.path}\0{file.etag}\n".encode())
        revision = f"stat:{digest.hexdigest()}"
        if source.revision not in ("", revision):
            raise SourceChanged(source=source, problem="files were added, removed or written")
        return Listing(replace(source, revision=revision), files)

    def read(
        self, listing: Listing, file: RemoteFile, start: int = 0
    ) -> AsyncGenerator[bytes, None]:
        return guarded(_chunks(listing, file, start), listing, file, start, self._settings)


def _files(source: Source) -> tuple[RemoteFile, ...]:
    top = Path(source.locator)
    try:
        if not tree.is_folder(top):
            found = top.stat()
            etag = _etag(found.st_size, found.st_mtime_ns)
            return (RemoteFile(top.name, found.st_size, etag=etag, archive=form_of(top.name)),)
    except FileNotFoundError:
        raise SourceNotFound(source=source, problem="its host has no such file or folder") from None
    except OSError as error:
        raise SourceDenied(source=source, problem=error.strerror or str(error)) from None
    files = tuple(
        RemoteFile(file.relative, file.size, etag=_etag(file.size, file.mtime_ns))
        for file in tree.read(top, [top]).files
    )
    if not files:
        raise SourceNotFound(source=source, problem="the folder is empty")
    return files


async def _chunks(listing: Listing, file: RemoteFile, start: int) -> AsyncGenerator[bytes, None]:
    path = await asyncio.to_thread(_same, listing.source, file)
    async with aclosing(of_file(path, start)) as chunks:
        async for chunk in chunks:
            yield chunk


def _same(source: Source, file: RemoteFile) -> Path:
    """Return the real path of a file. Raises SourceChanged unless it is the one that was listed."""
    top = Path(source.locator)
    inside = top / file.path if tree.is_folder(top) else top
    real, fence = Path(os.path.realpath(inside)), os.path.realpath(top)
    try:
        found = real.stat()
    except OSError:
        raise SourceChanged(source=source, problem=f"{shown(file.path)} is gone") from None
    if not real.is_relative_to(fence) or _etag(found.st_size, found.st_mtime_ns) != file.etag:
        raise SourceChanged(source=source, problem=f"{shown(file.path)} was written since")
    return real


def _etag(size: int, mtime_ns: int) -> str:
    return f"{size}-{mtime_ns}"
