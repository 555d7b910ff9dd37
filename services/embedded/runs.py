"""One run of a stack: its name, its folder, its locks, and the removal of dead runs.

The name of everything that a run makes outside its folder begins with the run's name. In the folder
there is a file `owner`, which the supervisor keeps locked while it lives. Whoever gets that lock
knows that the run is dead.
"""

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import IO, Final, NamedTuple

from services.embedded import leftovers
from services.embedded.errors import BadSettings, DataInUse

_PREFIX: Final = "shoal-"
_OWNER: Final = "owner"


class Run:
    """A run with its own folder in the temporary folder, until `close` removes it.

    Raises BadSettings if there is no temporary folder to write to.
    """

    def __init__(self) -> None:
        try:
            self.folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        except OSError as error:
            raise BadSettings(f"TMPDIR: no temporary folder can be made: {error}") from error
        # systemd-tmpfiles removes old files from a folder unless it is locked.
        self._folder_lock = os.open(self.folder, os.O_RDONLY)
        fcntl.flock(self._folder_lock, fcntl.LOCK_EX)
        self.name = self.folder.name
        self.started = time.time()
        # Locked before it gets its name, so that nobody ever sees it unlocked.
        draft = self.folder / f".{_OWNER}"
        self._owner = draft.open("w")
        fcntl.flock(self._owner, fcntl.LOCK_EX)
        json.dump({"pid": os.getpid(), "started": self.started}, self._owner)
        self._owner.flush()
        draft.rename(self.folder / _OWNER)

    def close(self) -> None:
        if self._owner.closed:
            return
        _remove(self.name, self.folder, self.started)
        self._owner.close()
        os.close(self._folder_lock)


class Swept(NamedTuple):
    """What a dead run had left behind."""

    name: str
    processes: int
    regions: int


def sweep() -> list[Swept]:
    """Remove what this user's dead runs have left. Runs whose owner lives are not touched."""
    found = []
    for owner in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/{_OWNER}"):
        with contextlib.suppress(OSError), owner.open("r+") as file:
            if _is_ours(owner.parent) and _lock(file):
                found.append(_remove(owner.parent.name, owner.parent, _started(file)))
    return found


def lock_data(folder: Path) -> IO[str]:
    """Lock the data folder for this process until the file is closed.

    Raises DataInUse, or BadSettings if the folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "lock").open("a+")
    except OSError as error:
        raise BadSettings(f"--data: {folder} cannot be used: {error.strerror}") from error
    if not _lock(file):
        file.seek(0)
        pid = file.read().strip()
        file.close()
        raise DataInUse(
            f"--data: {folder} is in use by another `shoal up` (process {pid or 'unknown'}): stop "
            "that one, or choose another folder."
        )
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def _remove(name: str, folder: Path, started: float) -> Swept:
    processes = leftovers.processes(name)
    leftovers.end(processes)
    regions = leftovers.remove_shared_memory(f"{name}-")
    leftovers.remove_backend_folders(started)
    for entry in folder.iterdir():
        if entry.name == _OWNER:
            continue  # last: without it, nobody would recognise the rest
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
    (folder / _OWNER).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()
    return Swept(name, len(processes), len(regions))


def _started(file: IO[str]) -> float:
    try:
        return float(json.load(file)["started"])
    except (ValueError, KeyError, TypeError):
        return time.time()


def _is_ours(folder: Path) -> bool:
    return folder.stat().st_uid == os.getuid() and not folder.is_symlink()


def _lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
