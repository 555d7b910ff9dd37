"""Files that have left the disk, fetched again when a version is to be loaded."""

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from services.common.errors import ShoalError
from services.common.tasks import TaskScope
from services.registry.contents import Contents
from services.registry.core.catalogue import Version
from services.registry.core.imports import Progress
from services.registry.disk import Disk
from services.registry.storage.fetching import Purpose
from shoal.sizes import format_size

_log = structlog.get_logger(__name__)


@dataclass(eq=False)
class _Return:
    """Files on their way back, since a time in seconds of the monotonic clock."""

    since: float
    progress: Progress = field(default_factory=Progress)
    before: int | None = None  # bytes that were here when it began


class Returns:
    """Brings files back, each digest once, however many ask for it."""

    def __init__(self, contents: Contents, disk: Disk, tasks: TaskScope) -> None:
        self._contents = contents
        self._disk = disk
        self._tasks = tasks
        self._under_way: dict[str, tuple[_Return, asyncio.Task[str]]] = {}

    async def bring_back(self, version: Version, seconds: float | None) -> str:
        """Have a version's files on disk. Return why they are not after so many seconds, or ""."""
        if self._disk.is_present(version):
            return ""
        digest = version.digest
        if digest not in self._under_way:
            began = _Return(time.monotonic())
            task = self._tasks.start(self._fetch(version, began), awaited=True)
            self._under_way[digest] = began, task
            task.add_done_callback(lambda _: self._under_way.pop(digest, None))
        began, task = self._under_way[digest]
        done, _ = await asyncio.wait(
            (task,), timeout=None if seconds is None else max(0.0, seconds)
        )
        return task.result() if done else _words(version, began, time.monotonic())

    async def _fetch(self, version: Version, began: _Return) -> str:
        """Fetch a version's files again. Return why that has failed, or ""."""
        provenance = version.provenance
        assert provenance is not None, version
        purpose = Purpose(version.name, self._disk.free, _noting(began), urgent=True)
        _log.info("files are fetched again", version=version.name, source=str(provenance))
        try:
            with self._disk.working(version.digest) as work:
                await self._contents.restore(provenance, purpose, work)
            if work.temporary:
                await self._disk.collect()
        except ShoalError as error:
            _log.warning("files not fetched again", version=version.name, why=error.message)
            return f"its files have left the disk and cannot be fetched again: {error.message}"
        _log.info(
            "files are on disk again",
            version=version.name,
            seconds=round(time.monotonic() - began.since, 3),
        )
        return ""


def _noting(began: _Return) -> Callable[[Progress], None]:
    def tell(progress: Progress) -> None:
        if began.before is None:
            began.before = progress.bytes_done
        began.progress = progress

    return tell


def _words(version: Version, began: _Return, now: float) -> str:
    """Say how far files on their way back are, and how long the rest takes at this pace."""
    progress = began.progress
    text = f"its files are being fetched again from {version.provenance}"
    if progress.bytes_total is None:
        return f"{text}: {format_size(progress.bytes_done)} have arrived; ask again later"
    arrived = progress.bytes_done - (began.before or 0)
    text = f"{text}: {format_size(progress.bytes_done)} of {format_size(progress.bytes_total)}"
    if not arrived:
        return f"{text} have arrived; ask again later"
    left = (progress.bytes_total - progress.bytes_done) * (now - began.since) / arrived
    return (
        f"{text} have arrived, and the rest takes about {math.ceil(left)} s: ask again after that"
    )
