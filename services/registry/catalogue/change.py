"""One change of the catalogue: what it has read, what it wants, and how that is written."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import and_, bindparam, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from services.common.errors import InvalidField, ModelNotFound
from services.registry.catalogue import queries, rows
from services.registry.catalogue.schema import (
    catalogue,
    footprints,
    models,
    requests,
    uses,
    versions,
)
from services.registry.core.catalogue import Entry
from services.registry.core.rules import stamped

REMEMBERED_US: Final = 24 * 3600 * 1_000_000  # how long a request id is remembered


@dataclass(frozen=True, slots=True)
class Committed:
    """What a change has written.

    `changed` has each model's entry from `revision` on, or None for a deleted model. It is empty,
    and the revision is the old one, if nothing changed.
    """

    revision: int
    changed: Mapping[str, Entry | None]


class Change:
    """A change within one transaction that has locked the catalogue's row.

    `now_us` counts from 1970. Entries are loaded before they are put or removed.
    """

    def __init__(self, connection: AsyncConnection, revision: int, now_us: int) -> None:
        self._connection = connection
        self._revision = revision
        self._now_us = now_us
        self._before: dict[str, Entry | None] = {}
        self._after: dict[str, Entry | None] = {}

    @property
    def touched(self) -> set[str]:
        """Return the models that were put or removed."""
        return {name for name, entry in self._after.items() if entry is not self._before[name]}

    def entries(self) -> Iterator[Entry]:
        """Yield the entries that were put."""
        for name in sorted(self.touched):
            if entry := self._after[name]:
                yield entry

    async def load(self, names: Iterable[str]) -> None:
        """Read the entries of these models, unless they have been read."""
        missing = set(names) - self._after.keys()
        if missing:
            found = await queries.entries(self._connection, missing)
            for name in missing:
                self._before[name] = self._after[name] = found.get(name)

    def loaded(self, name: str) -> Entry | None:
        """Return a loaded entry as this change has it, or None."""
        return self._after[name]

    async def find(self, name: str) -> Entry | None:
        """Load one model's entry, and return it or None."""
        await self.load((name,))
        return self._after[name]

    async def entry(self, name: str) -> Entry:
        """Load one model's entry. Raises ModelNotFound."""
        entry = await self.find(name)
        if entry is None:
            raise ModelNotFound(model=name)
        return entry

    async def users(self, used: Collection[str]) -> list[Entry]:
        """Return the entries that may point at one of these models, by a part or by a policy."""
        names = await queries.users(self._connection, used)
        await self.load(names)
        names |= {
            name
            for name, entry in self._after.items()
            if entry and any(target in used for _, _, target in rows.use_rows(entry))
        }
        return [entry for name in sorted(names) if (entry := self._after[name])]

    def put(self, entry: Entry) -> None:
        """Set a model's entry, which must have been loaded even if there was none."""
        assert entry.name in self._before, entry.name
        self._after[entry.name] = entry

    def remove(self, name: str) -> None:
        """Delete a loaded model."""
        assert self._before[name] is not None, name
        self._after[name] = None

    async def remembered(self, request_id: str, digest: str) -> str | None:
        """Return the name of what an earlier request with this id made, or None.

        Raises InvalidField if that was a different request.
        """
        if not request_id:
            return None
        result = await self._connection.execute(
            select(requests.c.digest, requests.c.made).where(
                requests.c.id == request_id,
                requests.c.created_us > self._now_us - REMEMBERED_US,
            )
        )
        row = result.first()
        if row is None:
            return None
        if row.digest != digest:
            raise InvalidField(
                field="request_id", problem=f"{request_id!r} was used for a different request"
            )
        return str(row.made)

    async def remember(self, request_id: str, digest: str, made: str) -> None:
        """Remember for a day what a request made."""
        await self._connection.execute(
            delete(requests).where(requests.c.created_us <= self._now_us - REMEMBERED_US)
        )
        if request_id:
            await self._connection.execute(
                insert(requests).values(
                    id=request_id, digest=digest, made=made, created_us=self._now_us
                )
            )

    async def commit(self) -> Committed:
        """Write what differs, under the next revision, and end the transaction."""
        revision = self._revision + 1
        changed: dict[str, Entry | None] = {}
        for name, after in self._after.items():
            before = self._before[name]
            entry = after and stamped(before, after, revision, self._now_us)
            self._after[name] = entry
            if entry != before:
                changed[name] = entry
        if changed:
            await self._write(changed)
            await self._execute(update(catalogue), [{"revision": revision}])
        await self._connection.commit()
        return Committed(revision if changed else self._revision, changed)

    async def _write(self, changed: Mapping[str, Entry | None]) -> None:
        """Write the rows. Rows that point at others are deleted before them, and inserted after."""
        before = [entry for name in changed if (entry := self._before[name])]
        after = [entry for entry in changed.values() if entry]
        had, has = _use_rows(before), _use_rows(after)
        await self._execute(_delete(uses, "model", "number", "used"), _named(had - has, _USE))
        await self._write_models(before, after)
        await self._execute(
            insert(uses), [dict(zip(_USE, use, strict=True)) for use in sorted(has - had)]
        )

    async def _write_models(self, before: list[Entry], after: list[Entry]) -> None:
        known = {entry.name: rows.model_row(entry.model) for entry in before}
        wanted = {entry.name: rows.model_row(entry.model) for entry in after}
        await self._execute(insert(models), _new(known, wanted))
        await self._execute(_update(models, "name"), _differing(known, wanted, "name"))
        await self._write_versions(before, after)
        await self._execute(_delete(models, "name"), _named(_gone(known, wanted), ("name",)))

    async def _write_versions(self, before: list[Entry], after: list[Entry]) -> None:
        known, wanted = _version_rows(before), _version_rows(after)
        stale = {
            key
            for key, row in known.items()
            if key in wanted and wanted[key]["fingerprint"] != row["fingerprint"]
        }
        # Footprints of other files say nothing about these.
        await self._execute(_delete(footprints, *_VERSION), _named(stale, _VERSION))
        await self._execute(_delete(versions, *_VERSION), _named(_gone(known, wanted), _VERSION))
        await self._execute(insert(versions), _new(known, wanted))
        await self._execute(_update(versions, *_VERSION), _differing(known, wanted, *_VERSION))

    async def _execute(self, statement: Any, parameters: list[dict[str, Any]]) -> None:
        if parameters:
            await self._connection.execute(statement, parameters)


_VERSION: Final = ("model", "number")
_USE: Final = ("model", "number", "used")


def _version_rows(entries: Iterable[Entry]) -> dict[tuple[str, int], dict[str, Any]]:
    return {
        (version.model, version.number): rows.version_row(version)
        for entry in entries
        for version in entry.versions.values()
    }


def _use_rows(entries: Iterable[Entry]) -> set[Any]:
    return {row for entry in entries for row in rows.use_rows(entry)}


def _new(known: Mapping[Any, Any], wanted: Mapping[Any, dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for key, row in wanted.items() if key not in known]


def _gone(known: Mapping[Any, Any], wanted: Mapping[Any, Any]) -> set[Any]:
    return {key if isinstance(key, tuple) else (key,) for key in known.keys() - wanted.keys()}


def _differing(
    known: Mapping[Any, Any], wanted: Mapping[Any, dict[str, Any]], *key: str
) -> list[dict[str, Any]]:
    return [
        {**row, **_prefixed(row, key)}
        for identity, row in wanted.items()
        if known.get(identity, row) != row
    ]


def _named(keys: Iterable[Any], columns: tuple[str, ...]) -> list[dict[str, Any]]:
    return [_prefixed(dict(zip(columns, key, strict=True)), columns) for key in keys]


def _prefixed(row: Mapping[str, Any], columns: Iterable[str]) -> dict[str, Any]:
    """Name the parameters of a WHERE clause, which must differ from the columns' names."""
    return {f"at_{column}": row[column] for column in columns}


def _delete(table: Any, *columns: str) -> Any:
    return delete(table).where(_at(table, columns))


def _update(table: Any, *columns: str) -> Any:
    others = (column.name for column in table.c if column.name not in columns)
    values: dict[str, Any] = {name: bindparam(name) for name in others}
    return update(table).where(_at(table, columns)).values(values)


def _at(table: Any, columns: Iterable[str]) -> Any:
    return and_(*(table.c[column] == bindparam(f"at_{column}") for column in columns))
