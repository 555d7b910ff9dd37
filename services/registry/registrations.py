"""Versions that are registered one by one, from a folder on this host or in the store."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from services.common.errors import ModelNotFound
from services.common.tasks import TaskScope
from services.registry.adoption import version_of
from services.registry.artifacts import tree
from services.registry.artifacts.scan import ModelFolder, Scan, open_registered, scan_version
from services.registry.catalogue.writer import Catalogue
from services.registry.core import rules
from services.registry.core.catalogue import Entry, Model, Version, VersionState
from services.registry.core.errors import InvalidArtifact
from services.registry.core.provenance import Provenance
from services.registry.intake import Intake
from services.registry.locks import KeyedLocks
from services.registry.repositories import Repositories
from shoal import names


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """A request to register a version.

    `number` 0 stands for the number of the folder, or else the next free one. `request_digest` is
    that of the request whose ID is `request_id`.
    """

    model: str
    path: Path
    number: int
    declared_memory: Mapping[str, int]
    pending: bool
    provenance: Provenance
    request_id: str = ""
    request_digest: str = ""


class Registrations:
    """Registers versions. `models` are the locks of models, `kind` the default instance kind."""

    def __init__(
        self,
        catalogue: Catalogue,
        intake: Intake,
        repositories: Repositories,
        models: KeyedLocks,
        kind: str,
        tasks: TaskScope,
    ) -> None:
        self._catalogue = catalogue
        self._intake = intake
        self._repositories = repositories
        self._models = models
        self._kind = kind
        self._tasks = tasks

    async def register(self, wanted: Registration) -> Version:
        """Register one version. Raises InvalidArtifact, AlreadyExists, InvalidField."""
        async with self._models.hold((wanted.model,)):
            async with self._catalogue.change() as change:
                known = await change.find(wanted.model)
                made = await change.remembered(wanted.request_id, wanted.request_digest)
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
            return await self._tasks.complete(self._write(wanted, known, number, scan))

    async def _write(
        self, wanted: Registration, known: Entry | None, number: int, scan: Scan
    ) -> Version:
        await asyncio.to_thread(self._intake.stage, known, number, scan)
        async with self._catalogue.change() as change:
            entry = await change.find(wanted.model) or Entry(Model(name=wanted.model))
            rules.check_registrable(entry, number)
            version = replace(
                version_of(scan, number),
                verdict=VersionState.PENDING if wanted.pending else VersionState.APPROVED,
                declared_memory=wanted.declared_memory,
                provenance=wanted.provenance,
            )
            change.put(entry.with_version(version))
            await change.remember(wanted.request_id, wanted.request_digest, version.name)
        return (await change.entry(wanted.model)).version(number)


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
