"""What the database keeps beside the catalogue for the store: imports, uses and departures.

These tables change without a new revision of the catalogue.
"""

from collections.abc import Callable, Collection
from typing import Final

from sqlalchemy import ColumnElement, delete, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.common.paging import Key
from services.registry.catalogue import rows
from services.registry.catalogue.connections import connected
from services.registry.catalogue.schema import (
    departures,
    footprints,
    imports,
    lease,
    source_watches,
    versions,
)
from services.registry.core.catalogue import Version
from services.registry.core.disk import Leaving
from services.registry.core.imports import ENDED, Import
from services.registry.core.source_watch import SourceWatch

_KEPT_DEPARTURES: Final = 1000
_KEPT_US: Final = 24 * 3600 * 1_000_000  # how long an import that has ended is kept

_ENDED: Final = [state.value for state in ENDED]


class StorageTables:
    """The tables of the store. Every call raises NotReady while the database does not answer."""

    def __init__(self, engine: AsyncEngine, reader: AsyncEngine, now_us: Callable[[], int]) -> None:
        self._engine = engine
        self._reader = reader
        self.now_us = now_us

    async def stored_versions(self) -> list[Version]:
        """Return the versions whose files the store has."""
        async with connected(self._reader) as connection:
            result = await connection.execute(select(versions).where(versions.c.digest != ""))
            return [rows.version_of(row) for row in result.mappings()]

    async def sources(self, models: Collection[str]) -> dict[str, dict[int, str]]:
        """Return the folders that the versions of some models are read from."""
        found: dict[str, dict[int, str]] = {model: {} for model in models}
        query = select(versions.c.model, versions.c.number, versions.c.source)
        async with connected(self._reader) as connection:
            for model, number, source in await connection.execute(
                query.where(versions.c.model.in_(found))
            ):
                found[model][number] = source
        return found

    async def last_uses(self) -> dict[tuple[str, int], int]:
        """Return when each version in the store was last used, in microseconds since 1970."""
        same = (versions.c.model == footprints.c.model) & (versions.c.number == footprints.c.number)
        query = select(footprints.c.model, footprints.c.number, footprints.c.used_us)
        async with connected(self._reader) as connection:
            result = await connection.execute(
                query.join(versions, same).where(versions.c.digest != "")
            )
            return {(model, number): used_us for model, number, used_us in result}

    async def is_lease_held(self) -> bool:
        """Return whether a Controller holds the lease."""
        async with connected(self._reader) as connection:
            expires_us = (await connection.execute(select(lease.c.expires_us))).scalar_one()
            return bool(expires_us > self.now_us())

    async def put_import(self, known: Import, watch: SourceWatch | None = None) -> None:
        """Write an import, with its `watch`, and forget those that ended long ago."""
        row = rows.import_row(known)
        async with connected(self._engine) as connection:
            found = await connection.execute(
                update(imports).where(imports.c.id == known.id).values(row)
            )
            if not found.rowcount:
                await connection.execute(insert(imports).values(row))
            if watch is not None:
                await _put_source_watch(connection, watch)
            long_ago = self.now_us() - _KEPT_US
            await connection.execute(
                delete(imports).where(imports.c.ended_us > 0, imports.c.ended_us < long_ago)
            )
            await connection.commit()

    async def find_import(self, id_: str) -> Import | None:
        async with connected(self._reader) as connection:
            result = await connection.execute(select(imports).where(imports.c.id == id_))
            row = result.mappings().first()
            return rows.import_of(row) if row else None

    async def unfinished_imports(self) -> list[Import]:
        """Return the imports that are under way, the oldest first."""
        query = select(imports).where(imports.c.state.not_in(_ENDED))
        async with connected(self._reader) as connection:
            result = await connection.execute(query.order_by(imports.c.started_us, imports.c.id))
            return [rows.import_of(row) for row in result.mappings()]

    async def list_imports(self, model: str, size: int, after: Key) -> list[Import]:
        """Return at most `size` imports, the newest first; "" stands for those of all models.

        `after` is the ID and the start of the last one before.
        """
        query = select(imports).order_by(imports.c.started_us.desc(), imports.c.id).limit(size)
        if model:
            query = query.where(imports.c.model == model)
        if after[0]:
            id_, started_us = after
            same = imports.c.started_us == started_us
            query = query.where(or_(imports.c.started_us < started_us, same & (imports.c.id > id_)))
        async with connected(self._reader) as connection:
            result = await connection.execute(query)
            return [rows.import_of(row) for row in result.mappings()]

    async def put_source_watch(self, watch: SourceWatch) -> None:
        async with connected(self._engine) as connection:
            await _put_source_watch(connection, watch)
            await connection.commit()

    async def source_watches(self) -> list[SourceWatch]:
        """Return the watched sources, by their ID."""
        async with connected(self._reader) as connection:
            result = await connection.execute(select(source_watches).order_by(source_watches.c.id))
            return [rows.source_watch_of(row) for row in result.mappings()]

    async def find_source_watch(self, id_: str) -> SourceWatch | None:
        query = select(source_watches).where(source_watches.c.id == id_)
        async with connected(self._reader) as connection:
            row = (await connection.execute(query)).mappings().first()
            return rows.source_watch_of(row) if row else None

    async def delete_source_watch(self, id_: str) -> bool:
        """Delete a watch, and return whether there was one."""
        return await self._delete_source_watches(source_watches.c.id == id_)

    async def forget_source_watches(self, model: str) -> None:
        """Delete the watches for a model."""
        await self._delete_source_watches(source_watches.c.model == model)

    async def _delete_source_watches(self, condition: ColumnElement[bool]) -> bool:
        async with connected(self._engine) as connection:
            found = await connection.execute(delete(source_watches).where(condition))
            await connection.commit()
            return bool(found.rowcount)

    async def note_departure(self, left: Leaving) -> None:
        """Note what has left the disk. Of those long ago, only the newest are kept."""
        async with connected(self._engine) as connection:
            await connection.execute(
                insert(departures).values(
                    digest=left.digest,
                    versions=list(left.versions),
                    freed=left.frees,
                    reason=left.reason,
                    at_us=self.now_us(),
                )
            )
            newest = select(func.max(departures.c.id)).scalar_subquery()
            await connection.execute(
                delete(departures).where(departures.c.id <= newest - _KEPT_DEPARTURES)
            )
            await connection.commit()

    async def list_departures(self, size: int) -> list[Leaving]:
        """Return what has left the disk, the newest first."""
        query = select(departures).order_by(departures.c.id.desc()).limit(size)
        async with connected(self._reader) as connection:
            result = await connection.execute(query)
            return [
                Leaving(
                    row["digest"], tuple(row["versions"]), row["freed"], row["reason"], row["at_us"]
                )
                for row in result.mappings()
            ]


async def _put_source_watch(connection: AsyncConnection, watch: SourceWatch) -> None:
    row = rows.source_watch_row(watch)
    same = source_watches.c.id == watch.id
    found = await connection.execute(update(source_watches).where(same).values(row))
    if not found.rowcount:
        await connection.execute(insert(source_watches).values(row))
