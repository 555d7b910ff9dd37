"""Archives in the store, unpacked into contents of their own."""

import asyncio
import hashlib
import shutil
import threading
from pathlib import Path

from services.registry.core.errors import SourceTooLarge
from services.registry.core.manifest import Item
from services.registry.sources.archives import unpack
from services.registry.sources.origin import Archive
from services.registry.storage.fetching import Fetcher, Purpose, Work

# What an archive is expected to unpack to at first: so many times its size, and so many bytes.
_GUESS_TIMES = 4
_GUESS_BYTES = 64 * 2**20


async def unpacked(
    fetcher: Fetcher, archive: Item, form: Archive, max_bytes: int, purpose: Purpose, work: Work
) -> list[Item]:
    """Have the files of an archive that is here as contents, and return them.

    Their paths are in the folder of the archive's. Raises SourceTooLarge for more than `max_bytes`,
    UnsafeContent, ContentMismatch, StoreFull.
    """
    key = f"unpacked-{archive.sha256}"
    allowed = min(max_bytes, max(_GUESS_BYTES, _GUESS_TIMES * archive.size))
    folder = fetcher.blobs.root / "making" / key
    async with fetcher.locks.hold((key,)):
        try:
            while True:
                await fetcher.room.promise(key, allowed, purpose.free, purpose.words)
                try:
                    paths = await _unpack(fetcher, archive, form, folder, allowed)
                except SourceTooLarge:
                    if allowed >= max_bytes:
                        raise
                    allowed = min(max_bytes, 2 * allowed)
                else:
                    break
            taken = asyncio.to_thread(_take, fetcher, folder, paths, work)
            items = await fetcher.tasks.complete(taken)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            fetcher.room.settle(key)
    prefix = archive.path.rpartition("/")[0]
    return [
        Item(f"{prefix}/{one.path}" if prefix else one.path, one.sha256, one.size) for one in items
    ]


async def _unpack(
    fetcher: Fetcher, archive: Item, form: Archive, folder: Path, max_bytes: int
) -> tuple[str, ...]:
    """Unpack in a thread, which ends early when the caller is cancelled."""
    given_up = threading.Event()

    def run() -> tuple[str, ...]:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        path = fetcher.blobs.path(archive.sha256)
        return unpack(path, form, folder, max_bytes, lambda: not given_up.is_set())

    running = fetcher.tasks.start(asyncio.to_thread(run), awaited=True)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        given_up.set()
        await asyncio.wait((running,))
        raise


def _take(fetcher: Fetcher, folder: Path, paths: tuple[str, ...], work: Work) -> list[Item]:
    """Make contents of files; they are in the `work` before they are contents."""
    items: list[Item] = []
    for path in paths:
        file = folder / path
        with file.open("rb") as opened:
            sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
        work.contents.add(sha256)
        items.append(Item(path, sha256, fetcher.blobs.take(file, sha256)))
    return items
