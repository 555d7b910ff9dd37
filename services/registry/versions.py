"""How versions come and go: they are registered, imported, found changed or gone, and deleted.

Files are staged before the catalogue lists them and removed after it has dropped them, so nobody
who follows the catalogue ever sees a version without its files. A process that dies in between
leaves unknown folders behind, which the next start removes.
"""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from services.common.tasks import TaskScope
from services.registry.adoption import (
    is_changed,
    is_unchanged,
    still_answering,
    unloadable,
    untold,
)
from services.registry.artifacts.discovery import (
    Found,
    rescan,
    rescan_completed,
    rescan_missing,
    scan_models,
)
from services.registry.artifacts.repository import Problem, find_models, not_a_model
from services.registry.artifacts.scan import Scan
from services.registry.artifacts.staging import Staging
from services.registry.catalogue.writer import Catalogue
from services.registry.core import rules
from services.registry.core.catalogue import Entry, Version
from services.registry.disk import Disk
from services.registry.intake import Intake, batches
from services.registry.locks import KeyedLocks
from services.registry.repositories import Repositories
from services.registry.returning import Returns
from shoal import names

# Models scanned in one batch. Other calls get their turn between batches.
SCANNED_AT_ONCE: Final = 100


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import has found: versions, problems, and the names of versions that it changed."""

    versions: list[Version]
    problems: list[Problem]
    changed: list[str]


class Versions:
    """Imports, checks and deletes versions, in the catalogue and in the staging tree.

    `models` are the locks of models: one call at a time touches what is staged of each.
    `instance_kind` is the one of Triton's KIND_ names that configs without one get. `tasks` finish
    what has begun when a caller goes away.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        staging: Staging,
        repositories: Repositories,
        intake: Intake,
        disk: Disk,
        returns: Returns,
        models: KeyedLocks,
        instance_kind: str,
        tasks: TaskScope,
    ) -> None:
        self._catalogue = catalogue
        self._staging = staging
        self._repositories = repositories
        self._intake = intake
        self._disk = disk
        self._returns = returns
        self._models = models
        self._kind = instance_kind
        self._tasks = tasks

    async def import_repository(self, path: Path) -> Imported:
        """Register every version of every model in the folder; repeating it changes nothing.

        A version whose files or config were changed in place is taken over as it is now, with a
        warning: a server's response cache knows only model, version and inputs, so it may still
        return answers from before. A new version number has no such past. Raises InvalidArtifact
        when the folder itself cannot be read.
        """
        async with self._models.hold((f"the repository {path}",)):
            fence = self._repositories.fence_of_repository(path)
            models, problems = await asyncio.to_thread(find_models, path, fence)
            self._repositories.add(path)
            everything = (await self._catalogue.store.snapshot()).entries
            known = {name for name, entry in everything.items() if _is_from(entry, path)}
            async with self._models.hold(known | {name for name, _ in models}):
                return await self._import(path, models, problems)

    async def _import(
        self, path: Path, models: Sequence[tuple[str, Path]], problems: list[Problem]
    ) -> Imported:
        found: list[Found] = []
        for batch in batches(models, SCANNED_AT_ONCE):
            scanned, strays = await asyncio.to_thread(
                scan_models, batch, self._kind, self._repositories.fence
            )
            found += scanned
            problems += strays
        everything = (await self._catalogue.store.snapshot()).entries
        missing = await asyncio.to_thread(
            list,
            rescan_missing(everything.values(), path, found, self._kind, self._repositories.fence),
        )
        imported = await self._take_over(found, missing, problems)
        unseen = untold(imported.problems, imported.versions, missing)
        await self._tasks.complete(self._repositories.keep(path, unseen))
        return imported

    async def refresh(self, model: str) -> Imported:
        """Read a model's folders again, and take over what has changed.

        A model that is not registered is looked for in the repositories. If no version of a model
        can be loaded any more, it stays as it was, as in Triton, and the reason is a problem.
        """
        async with self._models.hold((model,)):
            entries = await self._catalogue.store.entries({model})
            found: list[Found] = []
            problems: list[Problem] = []
            for repository, folder in self._repositories.folders(model, entries.get(model)):
                some, strange = await asyncio.to_thread(self._scan_folder, repository, folder)
                await self._tasks.complete(self._repositories.amend(repository, folder, strange))
                found += some
                problems += strange
            there = {(one.source, one.number) for one in found}
            again = await asyncio.to_thread(
                list, rescan(self._on_disk(entries.values()), self._kind, self._repositories.fence)
            )
            missing = [one for one in again if (one.source, one.number) not in there]
            kept = still_answering(entries.get(model), [*found, *missing])
            return await self._take_over(
                [one for one in found if one not in kept],
                [one for one in missing if one not in kept],
                [*problems, *(Problem(one.source, unloadable(one)) for one in kept)],
            )

    def _scan_folder(self, repository: Path, folder: Path) -> tuple[list[Found], list[Problem]]:
        if problem := not_a_model(folder, self._repositories.fence_of_repository(repository)):
            return [], [problem]
        return scan_models([(folder.name, folder)], self._kind, self._repositories.fence)

    async def check(self, model: str, number: int, seconds: float | None) -> tuple[Version, str]:
        """Compare a version's files with what was registered, and take over a change.

        Files that have left the disk are fetched again, for at most so many seconds, None for as
        long as it takes. Returns the
        version, and why its files cannot be loaded, or "". Files that are gone or can no longer be
        served change nothing in the catalogue: where the version is in memory it still answers.
        Raises ModelNotFound, VersionNotFound.
        """
        entry = await self._catalogue.store.entry(model)
        known = entry.version(number)
        if known.digest:
            return known, await self._check_stored(known, seconds)
        found = await asyncio.to_thread(self._look, entry, known)
        problem = unloadable(found)
        if problem or is_unchanged(known, found):
            return known, problem
        async with self._models.hold((model,)):
            entry = await self._catalogue.store.entry(model)
            found = await asyncio.to_thread(self._look, entry, entry.version(number))
            problem = unloadable(found)
            if not problem:
                await self._intake.adopt([found])
        version = (await self._catalogue.store.entry(model)).version(number)
        return version, problem or version.artifact_problem

    async def _check_stored(self, known: Version, seconds: float | None) -> str:
        """Have the files of a version in the store on disk and staged. Return why not, or ""."""
        with self._disk.working(known.digest):  # from here on, they stay
            while not (problem := await self._returns.bring_back(known, seconds)):
                async with self._models.hold((known.model,)):
                    if self._disk.is_present(known):
                        self._disk.touch(known.digest)
                        return await self._stage_again(known)
        return problem

    async def _stage_again(self, known: Version) -> str:
        """Stage a version whose files are on disk, if it is not. Return why not, or ""."""
        if self._staging.is_staged(known.model, known.number):
            return ""
        entry = await self._catalogue.store.entry(known.model)
        found = await asyncio.to_thread(self._look, entry, entry.version(known.number))
        if not (problem := unloadable(found)):
            await self._intake.adopt([found])
            await asyncio.to_thread(self._staging.write_configs, [entry])
        return problem

    async def complete(self, model: str, number: int, fingerprint: str, config: bytes) -> Version:
        """Take in the config that a server has completed for a version that was `fingerprint`.

        Files that have changed meanwhile are taken over as they are, and wait anew. Raises
        ModelNotFound, VersionNotFound.
        """
        async with self._models.hold((model,)):
            entry = await self._catalogue.store.entry(model)
            if _waits(entry.version(number), fingerprint):
                found = await asyncio.to_thread(
                    rescan_completed, entry, number, config, self._kind, self._repositories.fence
                )
                if isinstance(found.scan, Scan) and found.scan.scanned != fingerprint:
                    found = await asyncio.to_thread(self._look, entry, entry.version(number))
                await self._intake.adopt([found])
        return (await self._catalogue.store.entry(model)).version(number)

    async def not_completed(
        self, model: str, number: int, fingerprint: str, problem: str
    ) -> Version:
        """Note why no server could complete a version. Raises ModelNotFound, VersionNotFound."""
        async with self._catalogue.change() as change:
            entry = await change.entry(model)
            version = entry.version(number)
            if _waits(version, fingerprint):
                change.put(entry.with_version(replace(version, completion_problem=problem)))
        return (await change.entry(model)).version(number)

    async def forget_failed_completions(self) -> None:
        """Have servers asked again for what they could not complete: it may be for their lack."""
        failed = [
            entry
            for entry in (await self._catalogue.store.snapshot()).entries.values()
            if any(version.completion_problem for version in entry.versions.values())
        ]
        async with self._catalogue.change() as change:
            await change.load(entry.name for entry in failed)
            for entry in failed:
                for version in entry.versions.values():
                    entry = entry.with_version(replace(version, completion_problem=""))
                change.put(entry)

    def _look(self, entry: Entry, version: Version) -> Found:
        alone = replace(entry, versions={version.number: version})
        (found,) = rescan([alone], self._kind, self._repositories.fence)
        return found

    async def _take_over(
        self, found: Sequence[Found], missing: Sequence[Found], problems: Sequence[Problem]
    ) -> Imported:
        """Register what was found, and note what is missing."""
        names = {one.model for one in (*found, *missing)}
        before = await self._catalogue.store.entries(names)
        adopted = await self._intake.adopt([*found, *missing])
        after = await self._catalogue.store.entries(names)
        return Imported(
            [
                after[one.model].versions[one.number]
                for one in sorted(found, key=lambda one: (one.model, one.number))
                if one.model in after and one.number in after[one.model].versions
            ],
            list(dict.fromkeys([*problems, *adopted])),
            [
                version.name
                for name, entry in sorted(after.items())
                for number, version in entry.versions.items()
                if name not in before or is_changed(before[name].versions.get(number), version)
            ],
        )

    async def restore(self) -> None:
        """Scan everything that is registered and on disk again, and stage what is missing."""
        entries = list((await self._catalogue.store.snapshot()).entries)
        for batch in batches(entries, SCANNED_AT_ONCE):
            async with self._models.hold(batch):
                known = (await self._catalogue.store.entries(batch)).values()
                found = await asyncio.to_thread(
                    list, rescan(self._on_disk(known), self._kind, self._repositories.fence)
                )
                await self._intake.adopt(found)

    def _on_disk(self, entries: Iterable[Entry]) -> list[Entry]:
        """Return the entries with those versions that are served in place, or are on disk.

        The latter are looked for where the store lies now.
        """
        return [
            replace(
                entry,
                versions={
                    number: self._disk.located(version)
                    for number, version in entry.versions.items()
                    if self._disk.is_present(version)
                },
            )
            for entry in entries
        ]

    async def remove_unknown(self) -> None:
        """Remove staged folders that belong to no version in the catalogue."""
        for model, numbers in (await asyncio.to_thread(self._staging.staged)).items():
            async with self._models.hold((model,)):
                entry = (await self._catalogue.store.entries({model})).get(model)
                await self._tasks.complete(
                    asyncio.to_thread(self._remove_all_but, entry, model, numbers)
                )

    async def delete_version(self, model: str, number: int, etag: str) -> None:
        """Delete one version. Raises ModelNotFound, VersionNotFound, EtagMismatch, IllegalState."""
        async with self._models.hold((model,)):
            digest = await self._tasks.complete(self._delete_version(model, number, etag))
        await self._tasks.complete(self._disk.release({digest}))

    async def delete_model(self, model: str, etag: str) -> None:
        """Delete a model and all its versions. Raises ModelNotFound, EtagMismatch, IllegalState."""
        async with self._models.hold((model,)):
            digests = await self._tasks.complete(self._delete_model(model, etag))
        await self._tasks.complete(self._disk.release(digests))

    def _remove_all_but(self, entry: Entry | None, model: str, numbers: Iterable[int]) -> None:
        if entry is None:
            self._staging.remove(model)
            return
        for number in set(numbers) - entry.versions.keys():
            self._staging.remove(model, number)

    async def _delete_version(self, model: str, number: int, etag: str) -> str:
        async with self._catalogue.change() as change:
            entry = await change.entry(model)
            version = entry.version(number)
            rules.check_etag(version.name, etag, version.revision)
            change.put(rules.drop_version(entry, number, await change.users((model,))))
        if version.digest:
            others = {one.source for one in entry.versions.values() if one.number != number}
            await asyncio.to_thread(self._staging.leave, model, number, others)
        else:
            await asyncio.to_thread(self._staging.remove, model, number)
        return version.digest

    async def _delete_model(self, model: str, etag: str) -> set[str]:
        async with self._catalogue.change() as change:
            entry = await change.entry(model)
            rules.check_etag(names.model_name(model), etag, entry.model.revision)
            rules.check_removable(entry, await change.users((model,)))
            change.remove(model)
        await asyncio.to_thread(self._staging.remove, model)
        return {version.digest for version in entry.versions.values()}


def _is_from(entry: Entry, repository: Path) -> bool:
    """Return whether a version of the model was found in a repository."""
    return any(
        repository in (Path(version.source), Path(version.source).parent)
        for version in entry.versions.values()
    )


def _waits(version: Version, fingerprint: str) -> bool:
    """Return whether a version still waits to be completed as it was."""
    return bool(version.incomplete and not version.problem) and version.fingerprint == fingerprint
