"""What ended processes leave on the machine, and how it is recognised.

Every process of a stack has the stack's run and its part in its environment, which the processes
that it starts inherit. The name of every shared memory region of a Triton begins with the run.
Triton's Python backend also makes empty folders in /tmp, with names of its own choosing.
"""

import contextlib
import ctypes
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import psutil

RUN: Final = "SHOAL_RUN"
PART: Final = "SHOAL_PART"

_SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108  the system's own, only listed
_FIXED_TMP: Final = Path("/tmp")  # noqa: S108  the Python backend honours no TMPDIR
_BACKEND_FOLDER: Final = "python_env_??????"
_GONE_WITHIN: Final = 5.0  # seconds after SIGKILL
_TRITON: Final = "tritonserver"
_PR_SET_CHILD_SUBREAPER: Final = 36


def marks(run: str, part: str) -> dict[str, str]:
    """Return the variables by which a part's processes are recognised."""
    return {RUN: run, PART: part}


def processes(run: str, part: str | None = None) -> list[psutil.Process]:
    """Return the live processes of a run, or of one of its parts."""
    return [
        process
        for process, environment in _environments()
        if environment.get(RUN) == run and part in (None, environment.get(PART))
    ]


def end(found: list[psutil.Process]) -> list[psutil.Process]:
    """Send SIGKILL, and return the processes that are still there after a few seconds."""
    for process in found:
        with contextlib.suppress(psutil.Error):
            process.kill()
    deadline = time.monotonic() + _GONE_WITHIN
    while (left := [process for process in found if is_alive(process)]) and (
        time.monotonic() < deadline
    ):
        _reap(left)
        time.sleep(0.01)
    return left


def is_alive(process: psutil.Process) -> bool:
    """Return whether it runs. A zombie does not: it holds nothing, and waits for its parent."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def remove_shared_memory(prefix: str) -> list[str]:
    """Remove the regions whose names begin with `prefix`, and return those names."""
    found = list(_SHARED_MEMORY.glob(f"{prefix}*"))
    for region in found:
        with contextlib.suppress(OSError):
            region.unlink(missing_ok=True)
    return [region.name for region in found if not region.exists()]


def remove_backend_folders(since: float) -> list[Path]:
    """Remove the empty folders that dead Tritons made in /tmp after `since` (epoch seconds)."""
    tritons = [process.create_time() for process, _ in _environments() if _is_triton(process)]
    removed = []
    for folder in _FIXED_TMP.glob(_BACKEND_FOLDER):
        with contextlib.suppress(OSError):  # not empty, not ours, or already gone
            status = folder.lstat()
            ours = status.st_uid == os.getuid()
            if ours and is_abandoned(status.st_ctime, since=since, tritons=tritons):
                folder.rmdir()
                removed.append(folder)
    return removed


def is_abandoned(made: float, *, since: float, tritons: Sequence[float]) -> bool:
    """Return whether a folder made at `made` belongs to no live Triton.

    Its name does not tell whose it is, so it may belong to any Triton that was there at the time;
    `tritons` are the starting times of those that live.
    """
    return made >= since and all(start > made for start in tritons)


def adopt_orphans() -> None:
    """Make this process the parent of whatever its dying children leave running.

    The first process of a container often reaps nothing, and each dead model process would stay in
    the process table for ever.
    """
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def reap_session(leader: int) -> None:
    """Reap the ended children that a dead process has left to this one (see `adopt_orphans`)."""
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error, ProcessLookupError, ChildProcessError):
            if child.status() == psutil.STATUS_ZOMBIE and os.getsid(child.pid) == leader:
                os.waitpid(child.pid, os.WNOHANG)


def _reap(found: list[psutil.Process]) -> None:
    for process in found:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(process.pid, os.WNOHANG)


def _is_triton(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.name() == _TRITON and is_alive(process)
    return False


def _environments() -> Iterator[tuple[psutil.Process, dict[str, str]]]:
    """Yield the environment of each other process that this user may look into."""
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        with contextlib.suppress(psutil.Error, OSError):
            yield process, process.environ()
