"""CPU time of other processes, to the nanosecond and with threads that have ended."""

import ctypes
import time
from collections.abc import Iterable
from typing import Final

import psutil

_libc: Final = ctypes.CDLL(None, use_errno=True)


class Clock:
    """`pids`: processes; `with_children`: also those that they have now."""

    def __init__(self, *pids: int, with_children: bool = False) -> None:
        self._clocks = [_clock_of(pid) for pid in _all(pids, with_children)]

    def seconds(self) -> float:
        """User and system time together. Raises OSError when a process has ended."""
        return sum(map(time.clock_gettime, self._clocks))


def _all(pids: Iterable[int], with_children: bool) -> Iterable[int]:
    for pid in pids:
        yield pid
        if with_children:
            yield from (child.pid for child in psutil.Process(pid).children(recursive=True))


def _clock_of(pid: int) -> int:
    # psutil counts in ticks of 10 ms, which is 50 requests.
    clock = ctypes.c_int()
    if error := _libc.clock_getcpuclockid(pid, ctypes.byref(clock)):
        raise ProcessLookupError(error, f"no CPU clock for process {pid}")
    return clock.value
