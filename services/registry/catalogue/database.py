"""How the databases differ. Everything else is the same for all of them."""

from pathlib import Path
from typing import Any, Final

from sqlalchemy import URL, Connection, event, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

DRIVERS: Final = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg"}
BUSY_TIMEOUT_MS: Final = 10_000  # an import writes for two seconds at most


class UnknownDatabase(ValueError):
    """The URL names no database that the Registry supports."""


def open_engine(text: str) -> tuple[AsyncEngine, AsyncEngine]:
    """Return an engine for writing and one for reading, over one pool.

    A reader's transaction sees the database at one moment. Raises UnknownDatabase.
    """
    url = make_url(text)
    kind = url.get_backend_name()
    if kind not in DRIVERS:
        raise UnknownDatabase(f"{kind!r} is not one of {', '.join(sorted(DRIVERS))}")
    url = url.set(drivername=DRIVERS[kind])
    if kind == "sqlite":
        engine = _sqlite(url)
        return engine, engine
    # Database servers restart, so the pool tries a connection before it lends it.
    engine = create_async_engine(url, pool_pre_ping=True)
    return engine, engine.execution_options(isolation_level="REPEATABLE READ")


def _sqlite(url: URL) -> AsyncEngine:
    if not url.database or url.database == ":memory:":
        raise UnknownDatabase("an SQLite database needs a file: sqlite:////path/to/registry.db")
    Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_async_engine(url)
    event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return engine


def _begin_sqlite(connection: Connection) -> None:
    # The driver would begin a transaction only at the first write, and two reads could differ.
    connection.exec_driver_sql("BEGIN")


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # the driver leaves transactions to us
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", f"busy_timeout={BUSY_TIMEOUT_MS}", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
