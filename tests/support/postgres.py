"""A PostgreSQL server for tests, if its programs are installed."""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

USER = "shoal"


def programs() -> Path | None:
    """Return the folder with initdb and pg_ctl, or None."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    found = shutil.which("initdb") or (installed[-1] if installed else None)
    return Path(found).parent if found else None


@contextlib.contextmanager
def server() -> Iterator[Path]:
    """Run a server, and give the folder with its socket; there is no port."""
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    owner = _unprivileged()
    if owner is not None:
        shutil.chown(folder, owner)
    data = folder / "data"
    options = f"-k {folder} -c listen_addresses= -c fsync=off -c shared_buffers=16MB"
    _run("initdb", "-D", data, "-U", USER, "-A", "trust", "--no-sync", user=owner)
    _run("pg_ctl", "-D", data, "-o", options, "-l", folder / "log", "-w", "start", user=owner)
    try:
        yield folder
    finally:
        _run("pg_ctl", "-D", data, "-m", "immediate", "-w", "stop", user=owner)
        shutil.rmtree(folder)


def url(folder: Path, name: str) -> str:
    """Return the URL of a database."""
    return f"postgresql://{USER}@/{name}?host={folder}"


@contextlib.asynccontextmanager
async def database(folder: Path, name: str) -> AsyncIterator[str]:
    """Make an empty database, give its URL, and drop it in the end."""
    await _execute(folder, f'CREATE DATABASE "{name}"')
    try:
        yield url(folder, name)
    finally:
        await _execute(folder, f'DROP DATABASE "{name}" WITH (FORCE)')


async def _execute(folder: Path, statement: str) -> None:
    import asyncpg

    connection = await asyncpg.connect(host=str(folder), user=USER, database="postgres")
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


def _unprivileged() -> str | None:
    """Return the user for the server, which refuses to run as root."""
    return "postgres" if os.geteuid() == 0 else None


def _run(program: str, *arguments: object, user: str | None) -> None:
    folder = programs()
    assert folder is not None
    subprocess.run(
        [str(folder / program), *map(str, arguments)],
        user=user,
        cwd="/",
        check=True,
        stdout=subprocess.DEVNULL,
    )
