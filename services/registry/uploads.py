"""Uploads: files that a caller sends, each content from where it was broken off."""

import asyncio
from collections.abc import AsyncIterator, Iterable

from services.common.errors import InvalidField
from services.common.tasks import TaskScope
from services.registry.core.errors import ContentMismatch, UploadIncomplete
from services.registry.core.manifest import Item, TreeManifest
from services.registry.disk import Disk
from services.registry.locks import KeyedLocks
from services.registry.storage.arriving import Writer
from services.registry.storage.blobs import Arriving


class Uploads:
    """The uploads into a store.

    `contents` are the locks of what arrives there. `tasks` finish a write whose caller goes away.
    """

    def __init__(self, disk: Disk, contents: KeyedLocks, tasks: TaskScope) -> None:
        self._disk = disk
        self._contents = contents
        self._tasks = tasks

    async def begin(self, items: Iterable[Item]) -> tuple[str, dict[str, int]]:
        """Note what is to come, or comes again.

        Returns the digest of the upload, and how much has arrived of each content that is missing.
        Raises UnsafeContent, InvalidField.
        """
        manifest = TreeManifest.of(items)
        if len(manifest.contents) < len({(one.sha256, one.size) for one in manifest.items}):
            raise InvalidField(field="files", problem="one SHA-256 has two sizes")
        await self._tasks.complete(asyncio.to_thread(self._disk.trees.note, manifest))
        blobs = self._disk.blobs
        missing = [sha256 for sha256 in manifest.contents if sha256 not in blobs]
        return manifest.digest, {sha256: blobs.arrived(sha256) for sha256 in missing}

    async def receive(
        self, upload: str, sha256: str, offset: int, chunks: AsyncIterator[bytes]
    ) -> int:
        """Take in a content from `offset` on; return how much has arrived of it.

        Raises UploadIncomplete, InvalidField, StoreFull, ContentMismatch.
        """
        manifest = self._disk.trees.manifest(upload)
        if manifest is None:
            raise UploadIncomplete(upload=upload, problem="it was not begun, or has been forgotten")
        size = manifest.contents.get(sha256)
        if size is None:
            raise InvalidField(field="sha256", problem=f"upload {upload} has no such content")
        with self._disk.working(upload) as work:
            async with self._contents.hold((sha256,)):
                if sha256 in self._disk.blobs:
                    return size
                room, what = self._disk.room, "an upload"
                await room.promise(sha256, size, self._disk.free, what)
                try:
                    work.contents.add(sha256)
                    return await self._receive(sha256, size, offset, chunks)
                finally:
                    room.settle(sha256)

    async def _receive(
        self, sha256: str, size: int, offset: int, chunks: AsyncIterator[bytes]
    ) -> int:
        blobs = self._disk.blobs
        arriving = await asyncio.to_thread(blobs.begin, sha256, resume=True)
        try:
            if arriving.size != offset:
                raise InvalidField(
                    field="offset", problem=f"{arriving.size} bytes have arrived, not {offset}"
                )
            arrived = await self._write(arriving, size, chunks)
        except BaseException:
            arriving.pause()
            raise
        if arrived < size:
            arriving.pause()
            return arrived
        keep = asyncio.to_thread(blobs.keep, arriving, "an uploaded file", sha256)
        await self._tasks.complete(keep)
        return size

    async def _write(self, arriving: Arriving, size: int, chunks: AsyncIterator[bytes]) -> int:
        writer, arrived = Writer(arriving, self._tasks), arriving.size
        try:
            async for chunk in chunks:
                arrived += len(chunk)
                if arrived > size:
                    raise ContentMismatch(
                        path="an uploaded file",
                        problem=f"it has more than the {size} bytes announced",
                    )
                await writer.add(chunk)
            await writer.flush()
        finally:
            await writer.settle()
        return arrived
