"""Queries for catalogue entries, within the connection's transaction."""

from collections.abc import Collection, Iterator, Sequence
from typing import Final

from sqlalchemy import Column, ColumnElement, RowMapping, and_, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from services.common.paging import Key
from services.registry.catalogue import rows
from services.registry.catalogue.schema import catalogue, models, uses, versions
from services.registry.core.catalogue import Entry

# Names in one statement, whose number of parameters databases limit, and rows read at once.
_AT_ONCE: Final = 500


async def revision(connection: AsyncConnection) -> int:
    """Return the catalogue's revision."""
    return int((await connection.execute(select(catalogue.c.revision))).scalar_one())


async def entries(connection: AsyncConnection, names: Collection[str]) -> dict[str, Entry]:
    """Return the entries of those models that exist."""
    found: dict[str, Entry] = {}
    for some in _chunks(sorted(names)):
        found_models = await connection.execute(select(models).where(models.c.name.in_(some)))
        found_versions = await connection.execute(
            select(versions)
            .where(versions.c.model.in_(some))
            .order_by(versions.c.model, versions.c.number)
        )
        found |= rows.entries_of(found_models.mappings(), found_versions.mappings())
    return found


async def all_entries(connection: AsyncConnection) -> dict[str, Entry]:
    """Return the whole catalogue. The event loop does other work between batches of rows."""
    some: list[RowMapping] = []
    result = await connection.stream(select(versions).order_by(versions.c.model, versions.c.number))
    async for part in result.mappings().partitions(_AT_ONCE):
        some.extend(part)
    found_models = await connection.execute(select(models).order_by(models.c.name))
    return rows.entries_of(found_models.mappings(), some)


async def users(connection: AsyncConnection, used: Collection[str]) -> set[str]:
    """Return the models that point at one of these by a part or by an arm of their policy."""
    found: set[str] = set()
    for some in _chunks(sorted(used)):
        result = await connection.execute(
            select(uses.c.model).where(uses.c.used.in_(some)).distinct()
        )
        found.update(result.scalars())
    return found


def beyond(first: Column[str], second: Column[int], key: Key) -> ColumnElement[bool]:
    """Return the condition for rows after `key` in the order of both columns."""
    return or_(first > key[0], and_(first == key[0], second > key[1]))


def _chunks(names: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(names), _AT_ONCE):
        yield names[start : start + _AT_ONCE]
