"""The files of a source, brought into the store as one version's folder."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

from services.registry.core.errors import SourceChanged, SourceNotFound, UploadIncomplete
from services.registry.core.manifest import Item, TreeManifest, inside, of_version, without_top
from services.registry.core.provenance import UPLOAD, Provenance
from services.registry.core.source import Source
from services.registry.disk import Disk
from services.registry.sources.origin import Listing, Origin
from services.registry.storage.fetching import Fetcher, Purpose, Wanted, Work
from services.registry.storage.unpacking import unpacked


class Contents:
    """Brings sources into the store.

    `origin_of` opens the origin of a source. An archive may unpack to `max_unpacked` bytes.
    """

    def __init__(
        self,
        origin_of: Callable[[Source], Origin],
        fetcher: Fetcher,
        disk: Disk,
        max_unpacked: int,
    ) -> None:
        self._origin_of = origin_of
        self._max_unpacked = max_unpacked
        self._fetcher = fetcher
        self._disk = disk

    async def listing(self, source: Source) -> Listing:
        """Return what a source has. Raises what its origin raises."""
        if source.scheme == UPLOAD:
            return Listing(source, ())
        return await self._origin_of(source).resolve(source)

    async def gather(
        self, listing: Listing, folder: str, number: int, purpose: Purpose, work: Work
    ) -> TreeManifest:
        """Have a version's files on disk, and return their manifest.

        `number` 0 stands for the highest version in the source. Raises StoreFull, InvalidArtifact,
        UploadIncomplete, and what the origin raises.
        """
        if listing.source.scheme == UPLOAD:
            manifest = self._uploaded(listing.source.locator)
            work.contents.update(manifest.contents)
        else:
            manifest = await self._fetched(listing, folder, number, purpose, work)
        await self._make(manifest, work)
        return manifest

    async def _make(self, manifest: TreeManifest, work: Work) -> None:
        """Have the folder of a manifest on disk, all of whose contents are."""
        work.digests.add(manifest.digest)
        async with self._disk.folders.hold((manifest.digest,)):
            made = asyncio.to_thread(self._disk.trees.make, manifest)
            await self._fetcher.tasks.complete(made)

    async def _fetched(
        self, listing: Listing, folder: str, number: int, purpose: Purpose, work: Work
    ) -> TreeManifest:
        files = {file.path: file for file in listing.files}
        paths = inside(files, folder)
        if not paths:
            place = f"folder {folder!r} has no files" if folder else "it has no files"
            raise SourceNotFound(source=listing.source, problem=place)
        archives = {path: files[remote].archive for remote, path in paths.items()}
        archives = {path: form for path, form in archives.items() if form}
        if not archives:
            paths = of_version(paths, number)
        wanted = [Wanted(files[remote], path) for remote, path in paths.items()]
        origin = self._origin_of(listing.source)
        items = await self._fetcher.fetch(origin, listing, wanted, purpose, work)
        if not archives:
            return TreeManifest.of(items)
        found: list[Item] = []
        for item in items:
            if form := archives.get(item.path):
                found += await unpacked(
                    self._fetcher, item, form, self._max_unpacked, purpose, work
                )
                work.temporary.add(item.sha256)
            else:
                found.append(item)
        below = without_top({item.path for item in found})
        chosen = of_version(below, number)
        return TreeManifest.of(
            replace(item, path=chosen[item.path]) for item in found if item.path in chosen
        )

    def _uploaded(self, digest: str) -> TreeManifest:
        manifest = self._disk.trees.manifest(digest)
        if manifest is None:
            raise UploadIncomplete(upload=digest, problem="it was not begun, or has been forgotten")
        missing = [one for one in manifest.contents if one not in self._disk.blobs]
        if missing:
            raise UploadIncomplete(
                upload=digest, problem=f"{len(missing)} of its contents have not arrived"
            )
        return manifest

    async def restore(self, provenance: Provenance, purpose: Purpose, work: Work) -> None:
        """Have files that have left the disk there again, the same ones.

        Raises SourceChanged, StoreFull, ContentMismatch, and what the origin raises.
        """
        source, digest = provenance.source, provenance.digest
        manifest = self._disk.trees.manifest(digest)
        if manifest is None or not provenance.is_refetchable:
            raise SourceNotFound(
                source=source,
                problem="the Registry has lost the list of its files, or cannot fetch it",
            )
        work.digests.add(digest)
        listing = await self.listing(source)
        files = {file.path: file for file in listing.files}
        placed = {path: remote for remote, path in inside(files, provenance.folder).items()}
        if any(files[remote].archive for remote in placed.values()):
            number = manifest.newest_folder
            again = await self._fetched(listing, provenance.folder, number, purpose, work)
            if again.digest != digest:
                raise SourceChanged(source=source, problem="its archive holds other files")
            await self._make(again, work)
            return
        wanted: list[Wanted] = []
        for item in manifest.items:
            remote = placed.get(item.path)
            if remote is None:
                raise SourceChanged(source=source, problem=f"{item.path} is no longer there")
            wanted.append(Wanted(files[remote], item.path, item.sha256))
        origin = self._origin_of(source)
        await self._fetcher.fetch(origin, listing, wanted, purpose, work)
        await self._make(manifest, work)
