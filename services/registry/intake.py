"""What was found on disk, taken into the staging tree and the catalogue."""

import asyncio
import errno
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, TypeVar

from services.common.tasks import TaskScope
from services.registry.adoption import adopt, parts_first
from services.registry.artifacts import tree
from services.registry.artifacts.discovery import Found, number_conflict
from services.registry.artifacts.repository import Problem
from services.registry.artifacts.scan import Scan
from services.registry.artifacts.staging import Staging
from services.registry.catalogue.writer import Catalogue
from services.registry.core.catalogue import Entry, Model
from services.registry.core.errors import InvalidArtifact
from services.registry.repositories import Repositories

# Versions written in one batch, which a watcher receives in one message.
WRITTEN_AT_ONCE: Final = 500

T = TypeVar("T")

# The errors of staging that are not the source's fault. All others are one version's problem.
_OWN_ERRORS: Final = frozenset(
    {errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EROFS}
)


class Intake:
    """Takes in versions that were found on disk. One call at a time may use it for each model."""

    def __init__(
        self, catalogue: Catalogue, staging: Staging, repositories: Repositories, tasks: TaskScope
    ) -> None:
        self._catalogue = catalogue
        self._staging = staging
        self._repositories = repositories
        self._tasks = tasks

    async def adopt(self, found: Sequence[Found]) -> list[Problem]:
        """Stage and register what was found; return what could not be."""
        problems: list[Problem] = []
        for batch in batches(parts_first(found), WRITTEN_AT_ONCE):
            problems += await self._tasks.complete(self._adopt_batch(batch))
        return problems

    async def _adopt_batch(self, found: Sequence[Found]) -> list[Problem]:
        entries = await self._catalogue.store.entries({one.model for one in found})
        staged, problems = await asyncio.to_thread(self._stage_all, entries, found)
        async with self._catalogue.change() as change:
            await change.load({one.model for one in staged})
            for one in staged:
                entry = change.loaded(one.model) or Entry(Model(name=one.model))
                change.put(adopt(entry, one))
        return problems

    def _stage_all(
        self, entries: Mapping[str, Entry], found: Iterable[Found]
    ) -> tuple[list[Found], list[Problem]]:
        staged: list[Found] = []
        problems: list[Problem] = []
        for one in found:
            entry = entries.get(one.model)
            known = entry.versions.get(one.number) if entry else None
            if problem := self._conflict(entry, one):
                problems.append(problem)
                continue
            result = self._try_stage(entry, one)
            if isinstance(result.scan, InvalidArtifact):
                what = result.scan.metadata
                problems.append(Problem(what["path"], what["problem"]))
            if known or not isinstance(result.scan, InvalidArtifact):
                staged.append(result)
        return staged, problems

    def _conflict(self, entry: Entry | None, found: Found) -> Problem | None:
        """Return a problem if what is registered from elsewhere has the model or the number."""
        known = entry.versions.get(found.number) if entry else None
        if entry is None or (known and known.source == found.source):
            return None
        if reason := self._repositories.duplicate(entry.versions.values(), Path(found.source)):
            return Problem(tree.shown(found.source), reason)
        return number_conflict(known, found)

    def _try_stage(self, entry: Entry | None, found: Found) -> Found:
        if isinstance(found.scan, InvalidArtifact):
            return found
        try:
            self.stage(entry, found.number, found.scan)
        except InvalidArtifact as error:
            return replace(found, scan=error)
        return found

    def stage(self, entry: Entry | None, number: int, scan: Scan) -> None:
        """Stage a version, unless its scan found a problem. Raises InvalidArtifact."""
        if scan.problem:
            return
        versions = entry.versions.values() if entry else ()
        others = {one.source for one in versions if one.number != number} - {scan.source}
        try:
            self._staging.stage(scan, number, others)
        except OSError as error:
            if error.errno in _OWN_ERRORS:
                raise
            raise tree.unreadable(Path(scan.source), error) from None


def batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Yield the items in batches of `size`."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
