"""How versions come and go: they are registered, imported, found changed or gone, and deleted.

Files are staged before the catalogue lists them and removed after it has dropped them, so nobody
who follows the catalogue ever sees a version without its files. A process that dies in between
leaves unknown folders behind, which the next start removes.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from services.common.errors import ModelNotFound
from services.common.tasks import TaskScope
from services.registry.adoption import (
    is_changed,
    is_unchanged,
    still_answering,
    unloadable,
    untold,
    version_of,
)
from services.registry.artifacts import tree
from services.registry.artifacts.discovery import (
    Found,
    rescan,
    rescan_completed,
    rescan_missing,
    scan_models,
)
from services.registry.artifacts.repository import Problem, find_models, not_a_model
from services.registry.artifacts.scan import ModelFolder, Scan, open_registered, scan_version
from services.registry.artifacts.staging import Staging
from services.registry.catalogue.writer import Catalogue
from services.registry.core import rules
from services.registry.core.catalogue import Entry, Model, Version, VersionState
from services.registry.core.errors import InvalidArtifact
from services.registry.intake import Intake, batches
from services.registry.repositories import Repositories
from shoal import names

# Models scanned in one batch. Other calls get their turn between batches.
SCANNED_AT_ONCE: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """A request to register a version.

    `number` 0 stands for the number of the folder, or else the next free one.
    """

    model: str
    path: Path
    number: int
    declared_memory: Mapping[str, int]
    pending: bool
    request_id: str
    digest: str


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import has found: versions, problems, and the names of versions that it changed."""

    versions: list[Version]
    problems: list[Problem]
    changed: list[str]


class Versions:
    """Registers, imports and deletes versions, in the catalogue and in the staging tree.

    `instance_kind` is the one of Triton's KIND_ names that configs without one get. `tasks` finish
    what has begun when a caller goes away.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        staging: Staging,
        repositories: Repositories,
        instance_kind: str,
        tasks: TaskScope,
    ) -> None:
        self._catalogue = catalogue
        self._staging = staging
        self._repositories = repositories
        self._kind = instance_kind
        self._tasks = tasks
        self._intake = Intake(catalogue, staging, repositories, tasks)
        self._staging_lock = asyncio.Lock()  # one call at a time touches the staging tree

    async def register(self, wanted: Registration) -> Version:
        """Register one version. Raises InvalidArtifact, AlreadyExists, InvalidField."""
        async with self._staging_lock:
            async with self._catalogue.change() as change:
                known = await change.find(wanted.model)
                made = await change.remembered(wanted.request_id, wanted.digest)
            if made:
                return _made_earlier(known, wanted.model, made)
            source = await asyncio.to_thread(
                open_registered,
                wanted.path,
                wanted.model,
                wanted.number,
                self._repositories.fence,
            )
            number = wanted.number or source.newest or rules.next_number(known)
            _check_present(source, number)
            rules.check_registrable(known, number)
            scan = await asyncio.to_thread(scan_version, source, number, self._kind)
            return await self._tasks.complete(self._register(wanted, known, number, scan))

    async def import_repository(self, path: Path) -> Imported:
        """Register every version of every model in the folder; repeating it changes nothing.

        A version whose files or config were changed in place is taken over as it is now, with a
        warning: a server's response cache knows only model, version and inputs, so it may still
        return answers from before. A new version number has no such past. Raises InvalidArtifact
        when the folder itself cannot be read.
        """
        async with self._staging_lock:
            fence = self._repositories.fence_of_repository(path)
            models, problems = await asyncio.to_thread(find_models, path, fence)
            self._repositories.add(path)
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
                rescan_missing(
                    everything.values(), path, found, self._kind, self._repositories.fence
                ),
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
        async with self._staging_lock:
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
                list, rescan(entries.values(), self._kind, self._repositories.fence)
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

    async def check(self, model: str, number: int) -> tuple[Version, str]:
        """Compare a version's files with what was registered, and take over a change.

        Returns the version, and why its files cannot be loaded, or "". Files that are gone or can
        no longer be served change nothing in the catalogue: where the version is in memory it still
        answers. Raises ModelNotFound, VersionNotFound.
        """
        entry = await self._catalogue.store.entry(model)
        known = entry.version(number)
        found = await asyncio.to_thread(self._look, entry, known)
        problem = unloadable(found)
        if problem or is_unchanged(known, found):
            return known, problem
        async with self._staging_lock:
            entry = await self._catalogue.store.entry(model)
            found = await asyncio.to_thread(self._look, entry, entry.version(number))
            problem = unloadable(found)
            if not problem:
                await self._intake.adopt([found])
        version = (await self._catalogue.store.entry(model)).version(number)
        return version, problem or version.artifact_problem

    async def complete(self, model: str, number: int, fingerprint: str, config: bytes) -> Version:
        """Take in the config that a server has completed for a version that was `fingerprint`.

        Files that have changed meanwhile are taken over as they are, and wait anew. Raises
        ModelNotFound, VersionNotFound.
        """
        async with self._staging_lock:
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
        """Scan everything that is registered again, and stage what is missing."""
        async with self._staging_lock:
            entries = list((await self._catalogue.store.snapshot()).entries.values())
            for batch in batches(entries, SCANNED_AT_ONCE):
                found = await asyncio.to_thread(
                    list, rescan(batch, self._kind, self._repositories.fence)
                )
                await self._intake.adopt(found)

    async def remove_unknown(self) -> None:
        """Remove staged folders that belong to no version in the catalogue."""
        async with self._staging_lock:
            known = (await self._catalogue.store.snapshot()).entries
            await self._tasks.complete(asyncio.to_thread(self._remove_all_but, known))

    async def delete_version(self, model: str, number: int, etag: str) -> None:
        """Delete one version. Raises ModelNotFound, VersionNotFound, EtagMismatch, IllegalState."""
        async with self._staging_lock:
            await self._tasks.complete(self._delete_version(model, number, etag))

    async def delete_model(self, model: str, etag: str) -> None:
        """Delete a model and all its versions. Raises ModelNotFound, EtagMismatch, IllegalState."""
        async with self._staging_lock:
            await self._tasks.complete(self._delete_model(model, etag))

    async def _register(
        self, wanted: Registration, known: Entry | None, number: int, scan: Scan
    ) -> Version:
        await asyncio.to_thread(self._intake.stage, known, number, scan)
        async with self._catalogue.change() as change:
            entry = await change.find(wanted.model) or Entry(Model(name=wanted.model))
            version = replace(
                version_of(scan, number),
                verdict=VersionState.PENDING if wanted.pending else VersionState.APPROVED,
                declared_memory=wanted.declared_memory,
            )
            change.put(entry.with_version(version))
            await change.remember(wanted.request_id, wanted.digest, version.name)
        return (await change.entry(wanted.model)).version(number)

    def _remove_all_but(self, known: Mapping[str, Entry]) -> None:
        for model, numbers in self._staging.staged().items():
            if model not in known:
                self._staging.remove(model)
                continue
            for number in numbers - known[model].versions.keys():
                self._staging.remove(model, number)

    async def _delete_version(self, model: str, number: int, etag: str) -> None:
        async with self._catalogue.change() as change:
            entry = await change.entry(model)
            version = entry.version(number)
            rules.check_etag(version.name, etag, version.revision)
            change.put(rules.drop_version(entry, number, await change.users((model,))))
        await asyncio.to_thread(self._staging.remove, model, number)

    async def _delete_model(self, model: str, etag: str) -> None:
        async with self._catalogue.change() as change:
            entry = await change.entry(model)
            rules.check_etag(names.model_name(model), etag, entry.model.revision)
            rules.check_removable(entry, await change.users((model,)))
            change.remove(model)
        await asyncio.to_thread(self._staging.remove, model)


def _waits(version: Version, fingerprint: str) -> bool:
    """Return whether a version still waits to be completed as it was."""
    return bool(version.incomplete and not version.problem) and version.fingerprint == fingerprint


def _check_present(source: ModelFolder, number: int) -> None:
    """Raises InvalidArtifact unless the source holds that version."""
    if not source.bare and number not in source.numbers:
        raise InvalidArtifact(
            path=tree.shown(source.path),
            problem=f"it has no folder for version {number}, only for "
            f"{', '.join(map(str, source.numbers))}",
        )


def _made_earlier(entry: Entry | None, model: str, name: str) -> Version:
    """Return the version that an earlier request of the same id made.

    Raises ModelNotFound or VersionNotFound if it has been deleted since.
    """
    if entry is None:
        raise ModelNotFound(model=model)
    version = names.parse_version_name(name)
    assert version is not None, name
    return entry.version(version.version)
