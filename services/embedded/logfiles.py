"""The parts' log files, bounded in size, and read back when something goes wrong."""

import asyncio
import contextlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, Final

LIMIT: Final = 16 << 20  # bytes; one earlier file of that size is kept
_CHECK_EVERY: Final = 5.0  # seconds
_TAIL: Final = 4096  # bytes


def open_log(path: Path) -> BinaryIO:
    """Open a log for a process's output, to append, so that it can be truncated meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("ab")


def begin(path: Path) -> None:
    """Move the log of an earlier run aside."""
    with contextlib.suppress(FileNotFoundError):
        path.replace(_earlier(path))


async def bound(paths: Iterable[Path], limit: int = LIMIT) -> None:
    """Cut each file that has grown beyond `limit` bytes, until cancelled."""
    watched = tuple(paths)
    while True:
        await asyncio.sleep(_CHECK_EVERY)
        for path in watched:
            await asyncio.to_thread(cut, path, limit)


def cut(path: Path, limit: int) -> None:
    """Copy and truncate a file that another process keeps open. Lines in between may be lost."""
    with contextlib.suppress(OSError):  # not there yet, or the disk is full: try again later
        if path.stat().st_size > limit:
            shutil.copyfile(path, _earlier(path))
            os.truncate(path, 0)


def head(path: Path) -> str:
    """Return the first line of a log, or "" if there is none."""
    try:
        with path.open(errors="replace") as log:
            return log.readline(_TAIL)
    except OSError:
        return ""


def tail(path: Path, lines: int = 15) -> str:
    """Return the last `lines` of a log, indented."""
    try:
        with path.open("rb") as log:
            log.seek(max(path.stat().st_size - _TAIL, 0))
            text = log.read().decode(errors="replace")
    except OSError as error:
        return f"  (cannot be read: {error.strerror})"
    return "\n".join(f"  {line}" for line in text.splitlines()[-lines:]) or "  (it is empty)"


def _earlier(path: Path) -> Path:
    return path.with_name(f"{path.name}.1")
