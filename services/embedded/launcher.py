"""A program that becomes a command, which then dies with the process that started it.

    python launcher.py PARENT_PID COMMAND [ARGUMENT…]

It is a program of its own because the request (PR_SET_PDEATHSIG) is lost in a fork, kept in an
exec, and must not be made between the two in a process with threads. It imports little, because
every part waits for it.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, *command = sys.argv[1:]
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != int(parent):
        sys.exit("the process that started this one is gone")
    try:
        os.execv(command[0], command)  # noqa: S606  its purpose
    except OSError as error:
        sys.exit(f"{command[0]} cannot be started: {error.strerror}")


if __name__ == "__main__":
    main()
