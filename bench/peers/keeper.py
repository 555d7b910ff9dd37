"""Runs a command, and leaves none of its processes behind.

    python keeper.py PARENT_PID COMMAND [ARGUMENT…]

SIGTERM, or the end of the process that started this one, ends the command; what it has started and
not ended is killed.
"""

import ctypes
import os
import signal
import subprocess
import sys
from typing import Final, NoReturn

import psutil

GRACE: Final = 20.0  # seconds for the command to end by itself

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36


class _Stop(Exception):
    pass


def main() -> int:
    parent, *command = sys.argv[1:]
    signal.signal(signal.SIGTERM, _stop)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    if os.getppid() != int(parent):
        return 1
    try:
        return _run(command)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _sweep()


def _run(command: list[str]) -> int:
    child = subprocess.Popen(command)
    try:
        while True:
            ended, status = os.wait()  # also what has lost its parent
            if ended == child.pid:
                return os.waitstatus_to_exitcode(status)
    except _Stop:
        child.terminate()
        try:
            child.wait(GRACE)
        except subprocess.TimeoutExpired:
            return 1
        return 0


def _sweep() -> None:
    """Those of a process that is killed become this one's own, and are next."""
    while True:
        for left in psutil.Process().children():
            left.kill()
        try:
            os.wait()
        except ChildProcessError:
            return


def _stop(*_: object) -> NoReturn:
    raise _Stop


if __name__ == "__main__":
    sys.exit(main())
