"""Files of a source, fetched into the store: several at a time, verified as they arrive."""

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from services.common.tasks import TaskScope
from services.registry.core.errors import ContentMismatch
from services.registry.core.imports import Progress
from services.registry.core.manifest import Item, is_sha256
from services.registry.locks import KeyedLocks
from services.registry.sources.origin import Listing, Origin, RemoteFile
from services.registry.storage.arriving import Writer
from services.registry.storage.blobs import Arriving, Blobs
from services.registry.storage.room import Free, Room


@dataclass(eq=False, slots=True)
class Work:
    """What somebody works with: manifests and contents, which must not leave the disk meanwhile.

    `keys` are those of what it has begun to fetch. `temporary` are contents that nobody needs once
    it has ended, such as archives.
    """

    digests: set[str] = field(default_factory=set)
    contents: set[str] = field(default_factory=set)
    keys: set[str] = field(default_factory=set)
    temporary: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file to fetch: where it is, where it goes, and its SHA-256 if that is known."""

    remote: RemoteFile
    path: str
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Purpose:
    """What files are fetched for: in words, how room is made for it, and who hears how it goes.

    What is `urgent`, because a request waits for it, does not queue behind what is not.
    """

    words: str
    free: Free
    tell: Callable[[Progress], None] = lambda progress: None
    urgent: bool = False


class Fetcher:
    """Fetches files into `blobs`, at most `at_once` at a time, and as many that are urgent.

    `tasks` finish a write whose caller goes away.
    """

    def __init__(self, blobs: Blobs, room: Room, at_once: int, tasks: TaskScope) -> None:
        self.blobs = blobs
        self.room = room
        self.tasks = tasks
        self.slots = {urgent: asyncio.Semaphore(at_once) for urgent in (False, True)}
        self.locks = KeyedLocks()

    async def fetch(
        self,
        origin: Origin,
        listing: Listing,
        wanted: Sequence[Wanted],
        purpose: Purpose,
        work: Work,
    ) -> list[Item]:
        """Fetch the files that are not here yet; return all of them as a manifest's items.

        The contents are added to the `work`. Raises ContentMismatch, StoreFull, and what the origin
        raises.
        """
        meter = _Meter(wanted, purpose.tell)
        meter.tell()
        fetches = [
            _Fetch(self, origin, listing, purpose, work, meter, index, file)
            for index, file in enumerate(wanted)
        ]
        try:
            async with asyncio.TaskGroup() as group:
                running = [group.create_task(one.item()) for one in fetches]
        except* Exception as several:
            raise _first(several) from None
        return [task.result() for task in running]


@dataclass(frozen=True, slots=True)
class _Fetch:
    """One file on its way."""

    fetcher: Fetcher
    origin: Origin
    listing: Listing
    purpose: Purpose
    work: Work
    meter: "_Meter"
    index: int
    file: Wanted

    async def item(self) -> Item:
        async with self.fetcher.slots[self.purpose.urgent]:
            sha256 = await self._sha256()
        size = self.fetcher.blobs.size_of(sha256)
        self.meter.finished(self.index, size)
        return Item(self.file.path, sha256, size)

    async def _sha256(self) -> str:
        """Have the content here, and return its SHA-256."""
        blobs, room, remote = self.fetcher.blobs, self.fetcher.room, self.file.remote
        expected = self.file.sha256 or sha256_of(remote)
        key = expected or _key(self.listing, remote)
        pinned = bool(expected or remote.etag or self.listing.source.revision)
        async with self.fetcher.locks.hold((key,)):
            known = expected if expected in blobs else blobs.known(key) if pinned else ""
            if known:
                self.work.contents.add(known)
                return known
            self.work.keys.add(key)
            await room.promise(key, remote.size or 0, self.purpose.free, self.purpose.words)
            try:
                return await self._fetched(key, expected, resume=pinned)
            finally:
                room.settle(key)

    async def _fetched(self, key: str, expected: str, *, resume: bool) -> str:
        arriving = await self._begin(key, resume=resume)
        resumed = arriving.size > 0
        try:
            await self._receive(arriving)
        except BaseException:
            arriving.pause()
            raise
        self.work.contents.add(arriving.sha256)
        keep = asyncio.to_thread(self.fetcher.blobs.keep, arriving, self.file.path, expected)
        try:
            return await self.fetcher.tasks.complete(keep)
        except ContentMismatch:
            if not resumed:
                raise
        # What had arrived before may be damaged.
        return await self._fetched(key, expected, resume=False)

    async def _begin(self, key: str, *, resume: bool) -> Arriving:
        blobs, size = self.fetcher.blobs, self.file.remote.size
        arriving = await asyncio.to_thread(blobs.begin, key, resume=resume)
        if size is not None and arriving.size > size:
            arriving.discard()
            arriving = await asyncio.to_thread(blobs.begin, key, resume=False)
        return arriving

    async def _receive(self, arriving: Arriving) -> None:
        """Write what arrives while more arrives. Raises ContentMismatch, StoreFull."""
        remote, total = self.file.remote, arriving.size
        self.meter.at(self.index, total)
        if remote.size is None or total < remote.size:
            writer = Writer(arriving, self.fetcher.tasks)
            try:
                chunks = self.origin.read(self.listing, remote, total)
                async with aclosing(chunks):  # type: ignore[type-var]
                    async for chunk in chunks:
                        total += len(chunk)
                        await self._check(arriving.key, total)
                        await writer.add(chunk)
                        self.meter.at(self.index, total)
                await writer.flush()
            finally:
                await writer.settle()
        if remote.size is not None and total != remote.size:
            raise ContentMismatch(
                path=self.file.path,
                problem=f"it ended after {total} of the {remote.size} bytes listed",
            )

    async def _check(self, key: str, total: int) -> None:
        size = self.file.remote.size
        if size is None:
            purpose = self.purpose
            await self.fetcher.room.grow(key, total, purpose.free, purpose.words)
        elif total > size:
            raise ContentMismatch(
                path=self.file.path, problem=f"it has more than the {size} bytes listed"
            )


class _Meter:
    """Counts what has arrived of several files."""

    def __init__(self, wanted: Sequence[Wanted], tell: Callable[[Progress], None]) -> None:
        sizes = [one.remote.size for one in wanted]
        self._total = None if None in sizes else sum(size or 0 for size in sizes)
        self._arrived = [0] * len(wanted)
        self._bytes = 0
        self._files = 0
        self._tell = tell

    def at(self, index: int, size: int) -> None:
        self._bytes += size - self._arrived[index]
        self._arrived[index] = size
        self.tell()

    def finished(self, index: int, size: int) -> None:
        self._files += 1
        self.at(index, size)

    def tell(self) -> None:
        self._tell(Progress(self._bytes, self._files, self._total, len(self._arrived)))


def sha256_of(remote: RemoteFile) -> str:
    """Return the SHA-256 that a source says a file has, or ""."""
    sha256 = remote.digest.removeprefix("sha256:")
    return sha256 if is_sha256(sha256) else ""


def _key(listing: Listing, remote: RemoteFile) -> str:
    """Return a key for a content whose digest is not known: where it is, and its revision there."""
    revision = remote.etag or f"{listing.source.revision} of all"
    place = (str(listing.source), remote.path, str(remote.size), revision)
    return "at-" + hashlib.sha256("\0".join(place).encode()).hexdigest()


def _first(several: BaseExceptionGroup[BaseException]) -> BaseException:
    first = several.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
