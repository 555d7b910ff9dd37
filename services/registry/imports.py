"""Imports: versions fetched from their sources and registered, each as long as it takes."""

import asyncio
import uuid
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass, field, replace
from typing import Final

import structlog

from services.common.errors import NotReady, ShoalError
from services.common.paging import Key
from services.common.tasks import TaskScope
from services.registry.catalogue.storage import StorageTables
from services.registry.contents import Contents
from services.registry.core.catalogue import Version
from services.registry.core.errors import ImportNotFound
from services.registry.core.imports import Import, ImportState, Progress
from services.registry.core.provenance import Provenance
from services.registry.core.source_watch import SourceWatch
from services.registry.disk import Disk
from services.registry.inspections import Inspections
from services.registry.registrations import Registration, Registrations
from services.registry.signatures import Signatures
from services.registry.sources.origin import Listing
from services.registry.storage.fetching import Purpose, Work

# The shortest time between two messages to somebody who watches an import.
_TOLD_EVERY: Final = 0.1
# The most imports that are carried out at a time; others wait for their turn.
_AT_ONCE: Final = 32

_log = structlog.get_logger(__name__)


@dataclass(eq=False)
class _Running:
    """An import that is under way."""

    known: Import
    progress: Progress = field(default_factory=Progress)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    task: "asyncio.Task[None] | None" = None
    cancelled: bool = False
    ending: bool = False
    error: ShoalError | None = None
    version: Version | None = None

    def tell(self, progress: Progress) -> None:
        self.progress = progress
        self.wake()

    def wake(self) -> None:
        self.news.set()
        self.news = asyncio.Event()


class Imports:
    """The imports of a Registry. `tasks` finish what must not be broken off."""

    def __init__(
        self,
        tables: StorageTables,
        contents: Contents,
        registrations: Registrations,
        disk: Disk,
        signatures: Signatures,
        inspections: Inspections,
        tasks: TaskScope,
    ) -> None:
        self._signatures = signatures
        self._tables = tables
        self._contents = contents
        self._inspections = inspections
        self._registrations = registrations
        self._disk = disk
        self._tasks = tasks
        self.scope = TaskScope("imports")
        self._running: dict[str, _Running] = {}
        self._turns = asyncio.Semaphore(_AT_ONCE)

    def now_us(self) -> int:
        """Return the time in microseconds since 1970."""
        return self._tables.now_us()

    async def resume(self) -> None:
        """Go on with the imports that were under way when the last Registry ended."""
        for known in await self._tables.unfinished_imports():
            if known.id not in self._running:
                _log.info("import resumed", name=known.name, source=str(known.source))
                if known.state is ImportState.VALIDATING:
                    known = known.moved(ImportState.IMPORTING, self._tables.now_us())
                self._begin(known)

    async def close(self) -> None:
        """Break off the imports, which the next Registry goes on with."""
        await self.scope.close()

    async def start(
        self, wanted: Iterable[Import], watch: SourceWatch | None = None
    ) -> list[Import]:
        """Start imports, which are given their IDs here.

        The one import of a watched source is noted with its `watch` in one transaction.
        """
        started = [
            replace(one, id=uuid.uuid4().hex, started_us=self._tables.now_us()) for one in wanted
        ]
        for one in started:
            watched = watch and replace(watch, source=one.source, last_import=one.id)
            await self._tables.put_import(one, watched)
        for one in started:
            self._begin(one)
        return started

    async def get(self, id_: str) -> tuple[Import, Progress]:
        """Return an import, and how far it is. Raises ImportNotFound."""
        running = self._running.get(id_)
        known = running.known if running is not None else await self._tables.find_import(id_)
        if known is None:
            raise ImportNotFound(name=f"imports/{id_}")
        return self._with_progress(known)

    async def list(self, model: str, size: int, after: Key) -> list[tuple[Import, Progress]]:
        """Return at most `size` imports after one, the newest first; "" stands for all models."""
        found = await self._tables.list_imports(model, size, after)
        return [self._with_progress(known) for known in found]

    def _with_progress(self, known: Import) -> tuple[Import, Progress]:
        running = self._running.get(known.id)
        if running is not None:
            return running.known, running.progress
        return known, Progress(known.bytes, known.files, known.bytes, known.files)

    async def watch(self, id_: str) -> AsyncGenerator[tuple[Import, Progress]]:
        """Yield an import whenever it has changed, until it has ended.

        Raises ImportNotFound, and NotReady if it is broken off.
        """
        while (running := self._running.get(id_)) is not None:
            news, known = running.news, running.known
            yield known, running.progress
            if known.has_ended:  # not what it has become while this was told
                return
            await news.wait()
            await _ended(running, _TOLD_EVERY)
        last = await self.get(id_)
        yield last
        if not last[0].has_ended:
            raise NotReady(service="the Registry", cause="it is stopping", retry_after=1.0)

    async def finish(self, id_: str) -> Version:
        """Wait for an import's end, and return what it has registered.

        Raises the error that it has failed with.
        """
        running = self._running[id_]
        await _ended(running)
        if running.version is None:
            cause = running.known.reason or "it is stopping"
            raise running.error or NotReady(service="the Registry", cause=cause, retry_after=1.0)
        return running.version

    async def cancel(self, id_: str) -> Import:
        """End an import whose files are still arriving. Raises ImportNotFound."""
        running = self._running.get(id_)
        if running is not None and running.task is not None:
            if running.known.state is ImportState.IMPORTING and not running.ending:
                running.cancelled = True
                running.task.cancel()
            await _ended(running)
            return running.known
        return (await self.get(id_))[0]

    def _begin(self, known: Import) -> None:
        running = _Running(known)
        self._running[known.id] = running
        running.task = self.scope.start(self._run(running))

    async def _run(self, running: _Running) -> None:
        """Carry out an import, whatever comes. Its end is told after everything was tidied up."""
        try:
            with self._disk.working() as work:
                state, reason = await self._outcome(running, work)
                running.ending = True
            if state is not ImportState.REGISTERED:
                if not running.known.is_upload:  # which can be registered again
                    await self._tasks.complete(self._disk.abandon(work))
            elif work.temporary:
                await self._tasks.complete(self._disk.collect())
            await self._move(running, state, reason)
        finally:
            running.wake()
            self._running.pop(running.known.id, None)

    async def _outcome(self, running: _Running, work: Work) -> tuple[ImportState, str]:
        """Import, and return how that has ended and why."""
        try:
            await self._import(running, work)
        except asyncio.CancelledError:
            if not running.cancelled:
                raise
            return ImportState.CANCELLED, "somebody has cancelled it"
        except ShoalError as error:
            running.error = error
            return ImportState.FAILED, error.message
        except Exception as error:
            _log.exception("an import failed unexpectedly", name=running.known.name)
            # The error's own text is not Shoal's, and could name a credential.
            reason = f"an unexpected {type(error).__name__}: see the Registry's log"
            return ImportState.FAILED, reason
        return ImportState.REGISTERED, ""

    async def _import(self, running: _Running, work: Work) -> None:
        async with self._turns:
            await self._fetch_and_register(running, work)

    async def _fetch_and_register(self, running: _Running, work: Work) -> None:
        known = running.known
        listing = await self._contents.listing(known.source)
        if listing.source != known.source:
            known = running.known = replace(known, source=listing.source)
            await self._tables.put_import(known)
        purpose = Purpose(known.model, self._disk.free, running.tell)
        manifest = await self._contents.gather(listing, known.folder, known.number, purpose, work)
        size, files = manifest.size, len(manifest.items)
        running.tell(Progress(size, files, size, files))
        running.known = replace(running.known, bytes=size, files=files)
        await self._move(running, ImportState.VALIDATING)
        signature = await self._signatures.check(manifest)
        path = self._disk.trees.path(manifest.digest)
        found = await self._inspections.look(path, known.model, known.number, known.source)
        wanted = Registration(
            model=known.model,
            path=path,
            number=known.number,
            declared_memory=known.declared_memory,
            pending=known.pending,
            provenance=Provenance(
                source=listing.source,
                folder=known.folder,
                digest=manifest.digest,
                who=known.who,
                at_us=self._tables.now_us(),
                about={**_about(listing, signature), **found},
            ),
            # Whoever dies between two writes finds the version when it goes on.
            request_id=known.name,
            request_digest=known.id,
        )
        running.version = await self._registrations.register(wanted)
        running.known = replace(running.known, registered=running.version.number)

    async def _move(self, running: _Running, state: ImportState, reason: str = "") -> None:
        known = running.known.moved(state, self._tables.now_us(), reason)
        await self._tasks.complete(self._tables.put_import(known))
        running.known = known
        running.wake()
        _log.info(
            f"import {state.value}",
            name=known.name,
            model=known.model,
            source=str(known.source),
            version=known.version or None,
            reason=reason or None,
        )


def _about(listing: Listing, signature: dict[str, str]) -> dict[str, str]:
    """Return what a source says of itself, which is nothing of a signature that it may claim."""
    said = {key: value for key, value in listing.about.items() if not key.startswith("signature")}
    return said | signature


async def _ended(running: _Running, seconds: float | None = None) -> None:
    """Wait until an import has ended, for at most so many seconds."""
    assert running.task is not None
    await asyncio.wait((running.task,), timeout=seconds)
