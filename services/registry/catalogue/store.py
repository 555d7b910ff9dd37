"""The catalogue in a database: consistent reads, and changes made as a whole or not at all.

There is one writer at a time. A change first locks the catalogue's only row, so other changes wait,
in this process and in others. Footprints, repositories and the controller lease have tables of
their own, which change without a new revision.
"""

import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import NamedTuple, Self

import structlog
from sqlalchemy import ColumnElement, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.common.errors import ModelNotFound
from services.common.paging import Page
from services.registry.catalogue import migrate, queries, rows
from services.registry.catalogue.change import Change
from services.registry.catalogue.connections import connected
from services.registry.catalogue.database import open_engine
from services.registry.catalogue.lists import Lists
from services.registry.catalogue.schema import (
    catalogue,
    footprints,
    lease,
    repositories,
    versions,
)
from services.registry.catalogue.storage import StorageTables
from services.registry.core.catalogue import Entry
from services.registry.core.footprint import Footprint, merged
from services.registry.core.lease import Followers, Lease, held

_log = structlog.get_logger(__name__)


class Snapshot(NamedTuple):
    """The whole catalogue at `revision`."""

    revision: int
    entries: dict[str, Entry]


def wall_clock_us() -> int:
    return time.time_ns() // 1000


class Store:
    """The database. Every call raises NotReady while it does not answer."""

    def __init__(self, engine: AsyncEngine, reader: AsyncEngine, now_us: Callable[[], int]) -> None:
        self._engine = engine
        self._reader = reader
        self._now_us = now_us
        self.lists = Lists(reader)
        self.storage = StorageTables(engine, reader, now_us)

    @classmethod
    async def open(cls, url: str, now_us: Callable[[], int] = wall_clock_us) -> Self:
        """Connect, and bring the tables up to date. Raises UnknownDatabase."""
        engine, reader = open_engine(url)
        try:
            async with engine.begin() as connection:
                await connection.run_sync(migrate.upgrade)
        except BaseException:
            await engine.dispose()
            raise
        return cls(engine, reader, now_us)

    async def close(self) -> None:
        await self._engine.dispose()

    async def revision(self) -> int:
        async with connected(self._reader) as connection:
            return await queries.revision(connection)

    async def snapshot(self) -> Snapshot:
        async with connected(self._reader) as connection:
            revision = await queries.revision(connection)
            return Snapshot(revision, await queries.all_entries(connection))

    async def entries(self, names: Collection[str]) -> dict[str, Entry]:
        """Return the entries of those models that exist."""
        async with connected(self._reader) as connection:
            return await queries.entries(connection, names)

    async def entry(self, name: str) -> Entry:
        """Return one model's entry. Raises ModelNotFound."""
        found = await self.entries((name,))
        if name not in found:
            raise ModelNotFound(model=name)
        return found[name]

    @asynccontextmanager
    async def change(self) -> AsyncIterator[Change]:
        """Give a change, which is rolled back unless the block commits it."""
        async with connected(self._engine) as connection:
            # The value stays the same: this locks the row, and with SQLite the file.
            result = await connection.execute(
                update(catalogue)
                .values(revision=catalogue.c.revision)
                .returning(catalogue.c.revision)
            )
            yield Change(connection, result.scalar_one(), self._now_us())

    async def report_footprints(self, reported: Iterable[Footprint]) -> None:
        """Keep the peak of each footprint.

        Those of versions that are not registered, or have changed since, are dropped.
        """
        async with connected(self._engine) as connection:
            await self._take_lease_row(connection)
            for footprint in reported:
                await _report(connection, footprint)
            await connection.commit()

    async def list_footprints(self, page: Page) -> list[Footprint]:
        """Return footprints by model and number, one more than the page holds if there are more."""
        async with connected(self._reader) as connection:
            result = await connection.execute(
                select(footprints, _learned_with())
                .where(queries.beyond(footprints.c.model, footprints.c.number, page.after))
                .order_by(footprints.c.model, footprints.c.number)
                .limit(page.size + 1)
            )
            return [rows.footprint_of(row) for row in result.mappings()]

    async def repositories(self) -> dict[str, list[tuple[str, str]]]:
        """Return the repositories that were imported, each with its (path, reason) problems."""
        async with connected(self._reader) as connection:
            result = await connection.execute(select(repositories))
            return {
                row["path"]: [(path, reason) for path, reason in row["problems"]]
                for row in result.mappings()
            }

    async def put_repository(self, path: str, problems: Sequence[tuple[str, str]]) -> None:
        """Note that a repository was imported, and its (path, reason) problems."""
        async with connected(self._engine) as connection:
            await self._take_lease_row(connection)
            await connection.execute(delete(repositories).where(repositories.c.path == path))
            await connection.execute(
                insert(repositories).values(path=path, problems=[list(one) for one in problems])
            )
            await connection.commit()

    async def hold_lease(
        self, holder: str, incarnation: str, ttl_us: int, followers: Followers = None
    ) -> Lease:
        """Take or extend the controller lease, and return it. Raises LeaseHeld."""
        async with connected(self._engine) as connection:
            known = await self._take_lease_row(connection)
            now = held(known, holder, incarnation, ttl_us, self._now_us(), followers)
            await connection.execute(
                update(lease).values(
                    epoch=now.epoch,
                    holder=now.holder,
                    incarnation=now.incarnation,
                    ttl_us=now.ttl_us,
                    expires_us=now.expires_us,
                    followers=None if now.followers is None else list(now.followers),
                )
            )
            await connection.commit()
            return now

    async def _take_lease_row(self, connection: AsyncConnection) -> Lease:
        """Lock all that lies beside the catalogue until the transaction ends; return the lease."""
        result = await connection.execute(
            update(lease)
            .values(epoch=lease.c.epoch)
            .returning(
                lease.c.epoch,
                lease.c.holder,
                lease.c.incarnation,
                lease.c.ttl_us,
                lease.c.expires_us,
                lease.c.followers,
            )
        )
        known = Lease(*result.one())
        named = known.followers
        return replace(known, followers=None if named is None else tuple(named))


def _learned_with() -> ColumnElement[str]:
    """Return a column with the fingerprint that a footprint was learned with, or "".

    A footprint is deleted when its version's fingerprint changes, so it is the version's.
    """
    learned_with = (
        select(versions.c.fingerprint)
        .where(
            versions.c.model == footprints.c.model,
            versions.c.number == footprints.c.number,
            versions.c.config_digest == footprints.c.config_digest,
        )
        .scalar_subquery()
    )
    return func.coalesce(learned_with, "").label("fingerprint")


async def _report(connection: AsyncConnection, reported: Footprint) -> None:
    model, number = reported.version
    here = (footprints.c.model == model) & (footprints.c.number == number)
    result = await connection.execute(
        select(versions.c.fingerprint).where(versions.c.model == model, versions.c.number == number)
    )
    registered = result.first()
    if registered is None or reported.fingerprint not in ("", registered.fingerprint):
        return
    query = select(footprints, _learned_with()).where(here)
    row = (await connection.execute(query)).mappings().first()
    footprint = merged(rows.footprint_of(row) if row else None, reported)
    await connection.execute(delete(footprints).where(here))
    await connection.execute(insert(footprints).values(rows.footprint_row(footprint)))
