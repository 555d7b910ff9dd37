"""The store's disk: who takes what, what leaves when there is no room, and what nothing needs."""

import asyncio
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import structlog

from services.common.tasks import TaskScope
from services.registry.artifacts.staging import Staging
from services.registry.catalogue.storage import StorageTables
from services.registry.core import disk
from services.registry.core.catalogue import Version, VersionState
from services.registry.core.disk import Holding, Leaving, Standing
from services.registry.locks import KeyedLocks
from services.registry.storage.fetching import Work
from services.registry.storage.room import Room
from services.registry.storage.trees import Trees
from shoal import names
from shoal.names import ModelVersionName
from shoal.sizes import format_size

# How long files that were checked for a load stay, where no Controller says what it holds.
_HELD_SECONDS: Final = 60.0
# How long an upload, or what is unfinished of a fetch, is kept for somebody to go on with it.
_ABANDONED_SECONDS: Final = 24 * 3600.0

_log = structlog.get_logger(__name__)


class Disk:
    """What the store holds, as the catalogue needs it.

    `models` are the locks of models, which are held while a version's files leave.
    """

    def __init__(
        self,
        tables: StorageTables,
        trees: Trees,
        room: Room,
        staging: Staging,
        models: KeyedLocks,
        tasks: TaskScope,
    ) -> None:
        self.trees = trees
        self.blobs = trees.blobs
        self.room = room
        self._tables = tables
        self._staging = staging
        self._models = models
        self._tasks = tasks
        #: The locks of manifests' folders, which are held while one is made or removed.
        self.folders = KeyedLocks()
        self._works: set[Work] = set()
        self._checked: dict[str, tuple[int, float]] = {}  # time of day in us, monotonic seconds
        self._residents: frozenset[ModelVersionName] | None = None

    @contextmanager
    def working(self, *digests: str) -> Iterator[Work]:
        """Keep what the block works with on disk."""
        work = Work(set(digests))
        self._works.add(work)
        try:
            yield work
        finally:
            self._works.discard(work)

    def report(self, residents: Iterable[ModelVersionName]) -> None:
        """Take in what servers hold, load or unload."""
        self._residents = frozenset(residents)

    def touch(self, digest: str) -> None:
        """Note that files are about to be loaded."""
        self._checked[digest] = time.time_ns() // 1000, time.monotonic()

    def is_present(self, version: Version) -> bool:
        """Return whether a version's files are on disk, as far as the store has them."""
        return not version.digest or self.trees.is_present(version.digest)

    def located(self, version: Version) -> Version:
        """Return a version whose files are read from where the store lies."""
        if not version.digest:
            return version
        return replace(version, source=str(self.trees.path(version.digest)))

    # --- who takes what -----------------------------------------------------------------------

    async def holdings(self) -> list[Holding]:
        """Return what the store has a manifest of: of versions, and of what may become one."""
        versions: dict[str, list[Version]] = {}
        for version in await self._tables.stored_versions():
            versions.setdefault(version.digest, []).append(version)
        uses = await self._tables.last_uses()
        known = await self._residents_known()
        manifests = await asyncio.to_thread(self._manifests, versions)
        found: list[Holding] = []
        for digest, (contents, present) in manifests.items():
            having = versions.get(digest, [])
            last = max(
                [self._checked.get(digest, (0, 0.0))[0]]
                + [uses.get((one.model, one.number), 0) for one in having]
                + [one.created_us for one in having]
            )
            found.append(
                Holding(
                    digest,
                    tuple(one.name for one in having),
                    contents,
                    last,
                    disk.why_kept(self._standing(digest, having, known)),
                    present,
                )
            )
        return found

    def _manifests(self, versions: Collection[str]) -> dict[str, tuple[dict[str, int], bool]]:
        """Return the contents of each manifest, and whether its folder is on disk."""
        found: dict[str, tuple[dict[str, int], bool]] = {}
        for digest in sorted(self.trees.manifests() | set(versions)):
            manifest = self.trees.manifest(digest)
            contents = manifest.contents if manifest else {}
            found[digest] = contents, self.trees.is_present(digest)
        return found

    def _standing(self, digest: str, versions: Collection[Version], known: bool) -> Standing:
        units = {ModelVersionName(one.model, one.number) for one in versions}
        checked = time.monotonic() - self._checked.get(digest, (0, float("-inf")))[1]
        return Standing(
            registered=bool(versions),
            refetchable=any(one.provenance and one.provenance.is_refetchable for one in versions),
            pinned=any(one.pinned for one in versions),
            resident=bool(units & (self._residents or frozenset())),
            residents_known=known,
            busy=digest in self._digests_in_work()
            or (self._residents is None and checked < _HELD_SECONDS),
            waiting=any(one.state is VersionState.WAITING for one in versions),
        )

    async def _residents_known(self) -> bool:
        """Return whether it is known what servers hold: nothing, while no Controller acts."""
        return self._residents is not None or not await self._tables.is_lease_held()

    # --- what leaves --------------------------------------------------------------------------

    async def free(self, needed: int, wanted_for: str) -> str:
        """Free so many bytes for something. Return why that is not possible, or ""."""
        why = f"{format_size(needed)} are needed for {wanted_for}"
        needed -= sum(one.frees for one in await self.collect())
        if needed <= 0:
            return ""
        holdings = await self.holdings()
        choice = disk.choose(holdings, needed, why)
        if choice.short:
            kept = Counter(one.kept for one in holdings if one.kept and one.takes_room)
            reasons = "; ".join(f"{number} because {cause}" for cause, number in kept.items())
            return f"the files of no more versions may leave: {reasons or 'there are none'}"
        for one in choice.leaving:
            await self._leave(one)
        return ""

    async def departures(self, size: int) -> list[Leaving]:
        """Return what has left the disk, the newest first."""
        return await self._tables.list_departures(size)

    async def clear(self, *, dry_run: bool) -> list[Leaving]:
        """Remove what nothing needs, and what exceeds the budget, unless it is a `dry_run`.

        Returns what that is.
        """
        garbage = await self.collect(dry_run=dry_run)
        over = self.room.over() - (sum(one.frees for one in garbage) if dry_run else 0)
        if over <= 0:
            return garbage
        choice = disk.choose(await self.holdings(), over, "the store is over its budget")
        if not dry_run:
            for one in choice.leaving:
                await self._leave(one)
        return [*garbage, *choice.leaving]

    async def _leave(self, leaving: Leaving) -> None:
        """Have files leave the disk, unless they are in use by now."""
        versions = [*filter(None, map(names.parse_version_name, leaving.versions))]
        models = {version.model for version in versions}
        async with self._models.hold(models), self.folders.hold((leaving.digest,)):
            sources = await self._tables.sources(models)
            holdings = {one.digest: one for one in await self.holdings()}
            one = holdings.pop(leaving.digest, None)
            if one is None or one.kept or not one.present:
                return
            freed = await self._tasks.complete(
                self._remove(one, list(holdings.values()), versions, sources)
            )
        self._checked.pop(leaving.digest, None)
        await self._note(Leaving(leaving.digest, leaving.versions, freed, leaving.reason))

    async def _remove(
        self,
        one: Holding,
        others: Collection[Holding],
        versions: Collection[ModelVersionName],
        sources: Mapping[str, Mapping[int, str]],
    ) -> int:
        """Remove the folder of a manifest, and the contents that this sets free."""

        def unlink() -> None:
            for model, number in versions:
                beside = {source for other, source in sources[model].items() if other != number}
                self._staging.leave(model, number, beside)
            self.trees.remove(one.digest)

        await asyncio.to_thread(unlink)
        retired = self.blobs.retire(self._unneeded(others).keys() & one.contents.keys())
        return await asyncio.to_thread(self.blobs.remove, retired)

    async def _note(self, left: Leaving) -> None:
        _log.info(
            "files have left the disk",
            digest=left.digest,
            versions=list(left.versions),
            freed=left.frees,
            reason=left.reason,
        )
        await self._tables.note_departure(left)

    # --- what nothing needs -------------------------------------------------------------------

    async def release(self, digests: Collection[str]) -> None:
        """Forget files that no version has any more, unless somebody works with them."""
        working = self._digests_in_work()
        unused = [
            one.digest
            for one in (await self.holdings() if any(digests) else ())
            if one.digest in digests and not one.versions and one.digest not in working
        ]
        for digest in unused:
            async with self.folders.hold((digest,)):
                if digest not in self._digests_in_work():
                    await self._tasks.complete(asyncio.to_thread(self.trees.forget, digest))
        if unused:
            await self.collect()

    async def abandon(self, work: Work) -> None:
        """Remove what ended work leaves behind, unless something else needs it."""
        await self.release(work.digests)
        await self.collect()
        for key in work.keys - self.room.arriving:
            await asyncio.to_thread(self.blobs.drop_partial, key)
            self.room.forget(key)

    async def collect(self, *, dry_run: bool = False) -> list[Leaving]:
        """Remove what no version needs, unless it is a `dry_run`; return what that is."""
        holdings, now = await self.holdings(), time.time()
        working = self._digests_in_work()
        gone = {
            one.digest
            for one in holdings
            if not one.versions
            and one.digest not in working
            and self.trees.age(one.digest, now) > _ABANDONED_SECONDS
        }
        left = [one for one in holdings if one.digest not in gone]
        contents = self._unneeded(left)
        idle = {
            key: size
            for key, (size, age) in (await asyncio.to_thread(self.blobs.partials)).items()
            if age > _ABANDONED_SECONDS and key not in self.room.arriving
        }
        if not dry_run:
            retired = self.blobs.retire(contents)
            for key in idle:
                self.room.forget(key)
            await self._tasks.complete(asyncio.to_thread(self._forget, gone, retired, idle))
        return [
            *(
                Leaving(one, (), size, "no version has this content")
                for one, size in contents.items()
            ),
            *(Leaving(key, (), size, "nobody has gone on with it") for key, size in idle.items()),
        ]

    def _forget(self, digests: Iterable[str], retired: Iterable[Path], keys: Iterable[str]) -> None:
        for digest in digests:
            self.trees.forget(digest)
        self.blobs.remove(retired)
        for key in keys:
            self.blobs.drop_partial(key)

    def _unneeded(self, holdings: Iterable[Holding]) -> dict[str, int]:
        busy = {content for work in self._works for content in work.contents}
        return disk.unneeded(self.blobs.sizes, holdings, busy)

    def _digests_in_work(self) -> set[str]:
        return {digest for work in self._works for digest in work.digests}
