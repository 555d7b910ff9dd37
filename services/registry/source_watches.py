"""Sources that are watched: looked at again and again, and imported when they have moved."""

import asyncio
from dataclasses import replace

import structlog

from services.common.errors import ShoalError
from services.registry.catalogue.storage import StorageTables
from services.registry.contents import Contents
from services.registry.core.errors import ImportNotFound, SourceWatchNotFound
from services.registry.core.imports import Import
from services.registry.core.source_watch import SourceWatch
from services.registry.imports import Imports

_log = structlog.get_logger(__name__)


class SourceWatches:
    """The watched sources of a Registry, each looked at every `seconds`."""

    def __init__(
        self, tables: StorageTables, contents: Contents, imports: Imports, seconds: float
    ) -> None:
        self._tables = tables
        self._contents = contents
        self._imports = imports
        self._seconds = seconds
        # Held while a source is looked at, so that a watch that was deleted does not come back.
        self._looking = asyncio.Lock()

    async def list(self) -> list[SourceWatch]:
        """Return all watches, by their ID."""
        return await self._tables.source_watches()

    async def delete(self, id_: str) -> None:
        """End a watch. Raises SourceWatchNotFound."""
        async with self._looking:
            if not await self._tables.delete_source_watch(id_):
                raise SourceWatchNotFound(name=f"sourceWatches/{id_}")

    async def forget(self, model: str) -> None:
        """End the watches for a model, which was deleted."""
        async with self._looking:
            await self._tables.forget_source_watches(model)

    async def follow(self) -> None:
        """Look at the sources, without end."""
        while True:
            await asyncio.sleep(self._seconds)
            try:
                for one in await self.list():
                    await self._look(one.id)
            except ShoalError as error:  # the database does not answer
                _log.warning("sources not looked at", problem=error.message)

    async def _look(self, id_: str) -> None:
        async with self._looking:
            known = await self._tables.find_source_watch(id_)
            if known is None:
                return
            try:
                listing = await self._contents.listing(replace(known.source, revision=""))
            except ShoalError as error:
                await self._note(known, error.message)
                return
            last = await self._last(known)
            wanted = known.wanted(listing.source, last, self._tables.now_us())
            if wanted is None:
                await self._note(known, "")
                return
            _log.info("a watched source has moved", name=known.name, source=str(known.source))
            await self._imports.start([wanted], replace(known, problem=""))

    async def _last(self, known: SourceWatch) -> Import | None:
        try:
            return (await self._imports.get(known.last_import))[0]
        except ImportNotFound:
            return None

    async def _note(self, known: SourceWatch, problem: str) -> None:
        if problem != known.problem:
            if problem:
                _log.warning("a watched source cannot be looked at", name=known.name, why=problem)
            await self._tables.put_source_watch(replace(known, problem=problem))
