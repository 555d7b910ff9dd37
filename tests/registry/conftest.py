"""Both databases: an SQLite file, and a PostgreSQL server that the tests start."""

import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.support import postgres

_serial = itertools.count()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Path]:
    """The folder with the socket of a PostgreSQL server."""
    pytest.importorskip("asyncpg")
    if postgres.programs() is None:
        pytest.skip("PostgreSQL is not installed")
    with postgres.server() as folder:
        yield folder


@pytest.fixture(params=["sqlite", "postgresql"])
async def database(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[str]:
    """The URL of an empty database of each kind; on PostgreSQL, the one of every Registry."""
    if request.param == "sqlite":  # each Registry has its own file, as it does by default
        yield f"sqlite:///{tmp_path / 'registry.db'}"
        return
    folder = request.getfixturevalue("postgres_server")
    async with postgres.database(folder, f"shoal{next(_serial)}") as url:
        monkeypatch.setenv("SHOAL_REGISTRY_DATABASE_URL", url)
        yield url
