"""Versions come and go: registered, imported, found changed or gone, deleted.

Files are staged before the catalogue tells of them and removed after it has forgotten them, so who
follows the catalogue never sees a version without its files. A process that dies in between leaves
folders that nobody knows, which the next start removes.
"""

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeVar

import structlog

from services.common.errors import InvalidArtifact, ModelNotFound
from services.registry.artifacts import discovery as finding
from services.registry.artifacts import scan as artifacts
from services.registry.artifacts import tree
from services.registry.artifacts.discovery import Found
from services.registry.artifacts.scan import Problem, Scan, Source
from services.registry.artifacts.staging import Staging
from services.registry.catalogue.writer import Catalogue
from services.registry.completion import finish
from services.registry.core import catalogue as catalog
from services.registry.core.catalogue import Entry, Model, Version, VersionState
from services.registry.core.resolution import parts_first
from shoal import names

# Models looked at, and versions written, at once. Between portions others get their turn, and a
# portion is what a watcher has to take in one message.
SCANNED_AT_ONCE: Final = 100
WRITTEN_AT_ONCE: Final = 500

T = TypeVar("T")

# What a folder that changes, or one of its files, makes of an attempt to stage it. A full disk is
# none of its faults.
_OF_THE_SOURCE: Final = (
    FileExistsError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """What somebody asks to have registered. `number` 0: the folder's, else the next free one."""

    model: str
    path: Path
    number: int
    declared_memory: Mapping[str, int]
    pending: bool
    request_id: str
    digest: str


class Inventory:
    """`instance_kind`: where a config says none, one of Triton's KIND_ names."""

    def __init__(self, catalogue: Catalogue, staging: Staging, instance_kind: str) -> None:
        self._catalogue = catalogue
        self._staging = staging
        self._kind = instance_kind
        self._busy = asyncio.Lock()  # whoever touches the staging tree

    async def register(self, wanted: Registration) -> Version:
        """Raises InvalidArtifact, AlreadyExists, InvalidField."""
        async with self._busy:
            async with self._catalogue.change() as change:
                known = await change.find(wanted.model)
                made = await change.remembered(wanted.request_id, wanted.digest)
            if made:
                return _made(known, wanted.model, made)
            source = await asyncio.to_thread(
                artifacts.open_registered, wanted.path, wanted.model, wanted.number
            )
            number = wanted.number or max(source.numbers) or catalog.next_number(known)
            _check_there(source, number)
            catalog.check_registrable(known, number)
            scan = await asyncio.to_thread(artifacts.scan, source, number, self._kind)
            return await finish(self._register(wanted, known, number, scan))

    async def import_repository(self, path: Path) -> tuple[list[Version], list[Problem]]:
        """Every version of every model in the folder. Doing it again changes nothing.

        Versions whose files or config were changed in place are taken over as they are now, with a
        warning: a server's response cache knows only model, version and inputs, so it may go on
        answering from the time before. A new version number has no such past. Raises
        InvalidArtifact where the folder itself cannot be read.
        """
        async with self._busy:
            models, problems = await asyncio.to_thread(artifacts.find_models, path)
            found: list[Found] = []
            for some in _portions(models, SCANNED_AT_ONCE):
                more, strange = await asyncio.to_thread(finding.in_models, some, self._kind)
                found += more
                problems += strange
            everything = (await self._catalogue.store.snapshot()).entries
            lost = await asyncio.to_thread(
                list, finding.missing(everything.values(), path, found, self._kind)
            )
            problems += await self._take([*found, *lost])
            entries = await self._catalogue.store.entries({one.model for one in found})
        imported = [
            entries[one.model].versions[one.number]
            for one in sorted(found, key=lambda one: (one.model, one.number))
            if one.model in entries and one.number in entries[one.model].versions
        ]
        return imported, problems

    async def restore(self) -> None:
        """Looks again at everything that is registered, and stages what is missing."""
        async with self._busy:
            entries = list((await self._catalogue.store.snapshot()).entries.values())
            for some in _portions(entries, SCANNED_AT_ONCE):
                found = await asyncio.to_thread(list, finding.registered(some, self._kind))
                await self._take(found)

    async def remove_strangers(self) -> None:
        """Removes staged folders that are no version's in the catalogue."""
        async with self._busy:
            known = (await self._catalogue.store.snapshot()).entries
            await finish(asyncio.to_thread(self._remove_all_but, known))

    async def delete_version(self, model: str, number: int, etag: str) -> None:
        """Raises ModelNotFound, VersionNotFound, EtagMismatch, IllegalState."""
        async with self._busy:
            await finish(self._delete_version(model, number, etag))

    async def delete_model(self, model: str, etag: str) -> None:
        """With all its versions. Raises ModelNotFound, EtagMismatch, IllegalState."""
        async with self._busy:
            await finish(self._delete_model(model, etag))

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

    async def _take(self, found: Sequence[Found]) -> list[Problem]:
        """Stages and registers what was found; what cannot be is told."""
        problems: list[Problem] = []
        for some in _portions(_parts_first(found), WRITTEN_AT_ONCE):
            problems += await finish(self._take_portion(some))
        return problems

    async def _take_portion(self, found: Sequence[Found]) -> list[Problem]:
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
            if problem := finding.taken(known, one):
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
        """Raises InvalidArtifact."""
        if scan.problem:
            return
        versions = entry.versions.values() if entry else ()
        others = {one.source for one in versions if one.number != number} - {scan.source}
        try:
            self._staging.stage(scan, number, others)
        except _OF_THE_SOURCE as error:
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
            catalog.check_etag(version.name, etag, version.revision)
            change.put(catalog.drop_version(entry, number, await change.users((model,))))
        await asyncio.to_thread(self._staging.remove, model, number)

    async def _delete_model(self, model: str, etag: str) -> None:
        async with self._catalogue.change() as change:
            entry = await change.entry(model)
            catalog.check_etag(names.model_name(model), etag, entry.model.revision)
            catalog.check_removable(entry, await change.users((model,)))
            change.remove(model)
        await asyncio.to_thread(self._staging.remove, model)


def _check_there(source: Source, number: int) -> None:
    """Raises InvalidArtifact."""
    if not source.bare and number not in source.numbers:
        raise InvalidArtifact(
            path=tree.shown(source.path),
            problem=f"it has no folder for version {number}, but for "
            f"{', '.join(map(str, source.numbers))}",
        )


def _made(entry: Entry | None, model: str, name: str) -> Version:
    """What an earlier request of the same id has made. Raises where it was deleted since."""
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
    known = entry.versions.get(found.number)
    if isinstance(found.scan, InvalidArtifact):
        assert known is not None, found
        version = replace(known, artifact_problem=found.scan.message, fingerprint="")
    else:
        version = catalog.adopted(known, _version(found.scan, found.number))
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


def _portions(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
