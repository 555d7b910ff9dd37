"""Lists of models and versions: filtered, ordered, and in pages that nothing moves.

What a filter demands is looked for row by row, in batches, until a page is full.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final, TypeVar

from sqlalchemy import Column, ColumnElement, and_, or_, select, true
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.common.errors import ModelNotFound
from services.common.paging import START, Key, Page
from services.registry.catalogue import queries, rows
from services.registry.catalogue.connections import connected
from services.registry.catalogue.schema import models, versions
from services.registry.core.catalogue import Entry, Version
from services.registry.core.filters import Condition, Order, Values
from services.registry.formats.config import formats_of

MODEL_FIELDS: Final = ("name", "labels", "state", "format", "source")
VERSION_FIELDS: Final = ("name", "state", "format", "source")
MODEL_ORDERS: Final = ("name", "create_time", "update_time")
VERSION_ORDERS: Final = ("name", "create_time", "size")

_COLUMNS: Final[dict[str, Column[int]]] = {
    "create_time": versions.c.created_us,
    "size": versions.c.artifact_bytes,
}
_MODEL_COLUMNS: Final[dict[str, Column[int]]] = {
    "create_time": models.c.created_us,
    "update_time": models.c.updated_us,
}
_AT_ONCE: Final = 500  # rows that are looked at in one query, if some may not match

_T = TypeVar("_T")
_Columns = Sequence[Column[Any]]


class Lists:
    """The lists of a database. Every call raises NotReady while it does not answer."""

    def __init__(self, reader: AsyncEngine) -> None:
        self._reader = reader

    async def models(
        self, page: Page, order: Order, condition: Condition | None
    ) -> tuple[list[Entry], Key | None]:
        """Return a page of models, and the key of the next page, None after the last one."""
        by = _MODEL_COLUMNS.get(order.field)
        columns = [models.c.name] if by is None else [by, models.c.name]

        async def batch(connection: AsyncConnection, after: Key, size: int) -> list[Entry]:
            query = select(models.c.name).where(_beyond(columns, order, after))
            result = await connection.execute(query.order_by(*_ordered(columns, order)).limit(size))
            found = list(result.scalars())
            entries = await queries.entries(connection, found)
            return [entries[name] for name in found]

        def key(entry: Entry) -> Key:
            model = entry.model
            times = {"create_time": model.created_us, "update_time": model.updated_us}
            return _key(times.get(order.field), entry.name, 0)

        def matches(entry: Entry) -> bool:
            return condition is None or condition(_values_of_model(entry))

        async with connected(self._reader) as connection:
            size = _batch_size(page, condition)
            return await _page(_all(connection, batch, key, page.after, size), page.size, matches)

    async def versions(
        self, model: str | None, page: Page, order: Order, condition: Condition | None
    ) -> tuple[list[Version], Key | None]:
        """Return a page of a model's versions, or of all with None, and the key of the next one.

        Raises ModelNotFound.
        """
        by = _COLUMNS.get(order.field)
        columns: list[Column[Any]] = [versions.c.model, versions.c.number]
        columns = columns if by is None else [by, *columns]
        of_model = true() if model is None else versions.c.model == model

        async def batch(connection: AsyncConnection, after: Key, size: int) -> list[Version]:
            query = select(versions).where(of_model, _beyond(columns, order, after))
            result = await connection.execute(query.order_by(*_ordered(columns, order)).limit(size))
            return [rows.version_of(row) for row in result.mappings()]

        def key(version: Version) -> Key:
            found = {"create_time": version.created_us, "size": version.artifact_bytes}
            return _key(found.get(order.field), version.model, version.number)

        def matches(version: Version) -> bool:
            return condition is None or condition(_values_of_version(version))

        async with connected(self._reader) as connection:
            if model is not None and not await queries.entries(connection, (model,)):
                raise ModelNotFound(model=model)
            size = _batch_size(page, condition)
            return await _page(_all(connection, batch, key, page.after, size), page.size, matches)


async def _all(
    connection: AsyncConnection,
    batch: Callable[[AsyncConnection, Key, int], Any],
    key: Callable[[_T], Key],
    after: Key,
    size: int,
) -> AsyncIterator[tuple[Key, _T]]:
    """Yield each item after a key, with its own key."""
    while True:
        found: list[_T] = await batch(connection, after, size)
        for item in found:
            after = key(item)
            yield after, item
        if len(found) < size:
            return


async def _page(
    items: AsyncIterator[tuple[Key, _T]], size: int, matches: Callable[[_T], bool]
) -> tuple[list[_T], Key | None]:
    found: list[_T] = []
    last = START
    async for key, item in items:
        if matches(item):
            if len(found) == size:
                return found, last
            found.append(item)
            last = key
    return found, None


def _batch_size(page: Page, condition: Condition | None) -> int:
    return page.size + 1 if condition is None else _AT_ONCE


def _ordered(columns: _Columns, order: Order) -> list[ColumnElement[Any]]:
    return [one.desc() if order.descending else one.asc() for one in columns]


def _beyond(columns: _Columns, order: Order, after: Key) -> ColumnElement[bool]:
    """Return the condition for rows after a key, in the order of the columns."""
    if after == START:
        return true()
    first, _, model = after[0].rpartition("\0")
    values = [*([int(first)] if first else []), model, after[1]]
    ways: list[ColumnElement[bool]] = []
    for index, (column, value) in enumerate(zip(columns, values, strict=False)):
        later = column < value if order.descending else column > value
        same = [one == known for one, known in zip(columns[:index], values, strict=False)]
        ways.append(and_(*same, later))
    return or_(*ways)


def _key(first: int | None, model: str, number: int) -> Key:
    return (model if first is None else f"{first}\0{model}", number)


def _values_of_model(entry: Entry) -> Values:
    def values(field: str, key: str) -> tuple[str, ...]:
        if field == "name":
            return (entry.name,)
        if field == "labels":
            label = entry.model.labels.get(key)
            return () if label is None else (label,)
        return tuple(
            value
            for version in entry.versions.values()
            for value in _values_of_version(version)(field, "")
        )

    return values


def _values_of_version(version: Version) -> Values:
    def values(field: str, key: str) -> tuple[str, ...]:
        match field:
            case "name":
                return (version.model,)
            case "state":
                return (version.state.name,)
            case "format":
                return formats_of(version.config)
        return (str(version.provenance) if version.digest else version.source,)

    return values
