"""How versions come and go: they are registered, imported, found changed or gone, and deleted.

Files are staged before the catalogue lists them and removed after it has dropped them, so nobody
who follows the catalogue ever sees a version without its files. A process that dies in between
leaves unknown folders behind, which the next start removes.
"""

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeVar

import structlog

from services.common.errors import ModelNotFound
from services.common.tasks import TaskScope
from services.registry.artifacts import tree
from services.registry.artifacts.discovery import (
    Found,
    number_conflict,
    rescan,
    rescan_missing,
    scan_models,
)
from services.registry.artifacts.scan import (
    Problem,
    Scan,
    Source,
    find_models,
    open_registered,
    scan_version,
)
from services.registry.artifacts.staging import Staging
from services.registry.catalogue.writer import Catalogue
from services.registry.core import rules
from services.registry.core.catalogue import Entry, Model, Version, VersionState
from services.registry.core.errors import InvalidArtifact
from services.registry.core.resolution import parts_first
from shoal import names

# Models scanned, and versions written, in one batch. Other calls get their turn between batches,
# and a watcher receives each written batch in one message.
SCANNED_AT_ONCE: Final = 100
WRITTEN_AT_ONCE: Final = 500

T = TypeVar("T")

# The errors that staging meets when a source has changed meanwhile or cannot be read. A full disk
# is not the source's fault.
_SOURCE_ERRORS: Final = (
    FileExistsError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)

_log = structlog.get_logger(__name__)


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


class Versions:
    """Registers, imports and deletes versions, in the catalogue and in the staging tree.

    `instance_kind` is the one of Triton's KIND_ names that configs without one get. `tasks` finish
    what has begun when a caller goes away.
    """

    def __init__(
        self, catalogue: Catalogue, staging: Staging, instance_kind: str, tasks: TaskScope
    ) -> None:
        self._catalogue = catalogue
        self._staging = staging
        self._kind = instance_kind
        self._tasks = tasks
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
                open_registered, wanted.path, wanted.model, wanted.number
            )
            number = wanted.number or source.newest or rules.next_number(known)
            _check_present(source, number)
            rules.check_registrable(known, number)
            scan = await asyncio.to_thread(scan_version, source, number, self._kind)
            return await self._tasks.complete(self._register(wanted, known, number, scan))

    async def import_repository(self, path: Path) -> tuple[list[Version], list[Problem]]:
        """Register every version of every model in the folder; repeating it changes nothing.

        A version whose files or config were changed in place is taken over as it is now, with a
        warning: a server's response cache knows only model, version and inputs, so it may still
        return answers from before. A new version number has no such past. Raises InvalidArtifact
        when the folder itself cannot be read.
        """
        async with self._staging_lock:
            models, problems = await asyncio.to_thread(find_models, path)
            found: list[Found] = []
            for batch in _batches(models, SCANNED_AT_ONCE):
                scanned, strays = await asyncio.to_thread(scan_models, batch, self._kind)
                found += scanned
                problems += strays
            everything = (await self._catalogue.store.snapshot()).entries
            missing = await asyncio.to_thread(
                list, rescan_missing(everything.values(), path, found, self._kind)
            )
            problems += await self._adopt_all([*found, *missing])
            entries = await self._catalogue.store.entries({one.model for one in found})
        imported = [
            entries[one.model].versions[one.number]
            for one in sorted(found, key=lambda one: (one.model, one.number))
            if one.model in entries and one.number in entries[one.model].versions
        ]
        return imported, problems

    async def restore(self) -> None:
        """Scan everything that is registered again, and stage what is missing."""
        async with self._staging_lock:
            entries = list((await self._catalogue.store.snapshot()).entries.values())
            for batch in _batches(entries, SCANNED_AT_ONCE):
                found = await asyncio.to_thread(list, rescan(batch, self._kind))
                await self._adopt_all(found)

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
        await asyncio.to_thread(self._stage, known, number, scan)
        async with self._catalogue.change() as change:
            entry = await change.find(wanted.model) or Entry(Model(name=wanted.model))
            version = replace(
                _version(scan, number),
                verdict=VersionState.PENDING if wanted.pending else VersionState.APPROVED,
                declared_memory=wanted.declared_memory,
            )
            change.put(entry.with_version(version))
            await change.remember(wanted.request_id, wanted.digest, version.name)
        return (await change.entry(wanted.model)).version(number)

    async def _adopt_all(self, found: Sequence[Found]) -> list[Problem]:
        """Stage and register what was found; return what could not be."""
        problems: list[Problem] = []
        for batch in _batches(_parts_first(found), WRITTEN_AT_ONCE):
            problems += await self._tasks.complete(self._adopt_batch(batch))
        return problems

    async def _adopt_batch(self, found: Sequence[Found]) -> list[Problem]:
        entries = await self._catalogue.store.entries({one.model for one in found})
        staged, problems = await asyncio.to_thread(self._stage_all, entries, found)
        async with self._catalogue.change() as change:
            await change.load({one.model for one in staged})
            for one in staged:
                entry = change.loaded(one.model) or Entry(Model(name=one.model))
                change.put(_adopt(entry, one))
        return problems

    def _stage_all(
        self, entries: Mapping[str, Entry], found: Iterable[Found]
    ) -> tuple[list[Found], list[Problem]]:
        staged: list[Found] = []
        problems: list[Problem] = []
        for one in found:
            entry = entries.get(one.model)
            known = entry.versions.get(one.number) if entry else None
            if problem := number_conflict(known, one):
                problems.append(problem)
                continue
            result = self._try_stage(entry, one)
            if isinstance(result.scan, InvalidArtifact):
                what = result.scan.metadata
                problems.append(Problem(what["path"], what["problem"]))
            if known or not isinstance(result.scan, InvalidArtifact):
                staged.append(result)
        return staged, problems

    def _try_stage(self, entry: Entry | None, found: Found) -> Found:
        if isinstance(found.scan, InvalidArtifact):
            return found
        try:
            self._stage(entry, found.number, found.scan)
        except InvalidArtifact as error:
            return replace(found, scan=error)
        return found

    def _stage(self, entry: Entry | None, number: int, scan: Scan) -> None:
        """Stage a version, unless its scan found a problem. Raises InvalidArtifact."""
        if scan.problem:
            return
        versions = entry.versions.values() if entry else ()
        others = {one.source for one in versions if one.number != number} - {scan.source}
        try:
            self._staging.stage(scan, number, others)
        except _SOURCE_ERRORS as error:
            raise tree.unreadable(Path(scan.source), error) from None

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


def _check_present(source: Source, number: int) -> None:
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


def _version(scan: Scan, number: int) -> Version:
    return Version(
        model=scan.model,
        number=number,
        verdict=VersionState.APPROVED,
        source=scan.source,
        config=scan.config,
        probe=scan.probe,
        config_digest=scan.config_digest,
        auxiliary_digest=scan.auxiliary_digest,
        artifact_bytes=scan.files.size,
        fingerprint=scan.fingerprint,
        ensemble=scan.ensemble,
        parts=scan.parts,
        artifact_problem=scan.problem,
    )


def _adopt(entry: Entry, found: Found) -> Entry:
    """Return the entry with one version as it was found on disk."""
    known = entry.versions.get(found.number)
    if isinstance(found.scan, InvalidArtifact):
        assert known is not None, found
        version = replace(known, artifact_problem=found.scan.message, fingerprint="")
    else:
        version = rules.adopted(known, _version(found.scan, found.number))
    if known and known.fingerprint and known.fingerprint != version.fingerprint:
        _log.warning(
            "a registered version was changed on disk",
            version=version.name,
            source=version.source,
            problem=version.artifact_problem or None,
        )
    return entry.with_version(version)


def _parts_first(found: Sequence[Found]) -> list[Found]:
    parts: dict[str, set[str]] = {}
    for one in found:
        made_of = () if isinstance(one.scan, InvalidArtifact) else one.scan.parts
        parts.setdefault(one.model, set()).update(part.model for part in made_of)
    rank = {model: index for index, model in enumerate(parts_first(parts))}
    return sorted(found, key=lambda one: (rank[one.model], one.number))


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
