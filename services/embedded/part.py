"""What the supervisor keeps running, and what it tells about it."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path


@dataclass(frozen=True)
class Part:
    """One process of the stack.

    `ready` returns once the process answers; it is cancelled when that takes longer than
    `start_within` seconds. `stop_within` seconds after SIGTERM comes SIGKILL. `leftovers` is called
    with the number of a process that has ended, removes what it left behind, and may block for a
    few seconds. `advice` is given the end of the log of one that failed at the start, and says what
    to do, or nothing.
    """

    name: str
    command: tuple[str, ...] = field(repr=False)  # Triton's holds a secret
    environment: Mapping[str, str] = field(repr=False)
    log: Path
    ready: Callable[[], Awaitable[None]]
    start_within: float = 60.0
    stop_within: float = 10.0
    leftovers: Callable[[int], None] = lambda pid: None
    advice: Callable[[str], str] = lambda log: ""


class State(StrEnum):
    WAITING = "waiting"  # to be started
    STARTING = "starting"
    READY = "ready"
    DIED = "died"  # by itself; is started again
    STOPPING = "stopping"
    STOPPED = "stopped"


@dataclass(frozen=True)
class Event:
    """A part came into a state. `time` in seconds since the epoch; `text` for people."""

    time: float
    part: str
    state: State
    text: str
    pid: int | None = None


@dataclass(frozen=True)
class BackOff:
    """Seconds between a death and the next start: doubled with each one, up to `longest`.

    A life of `healthy_after` seconds or more counts as a recovery.
    """

    first: float = 0.25
    longest: float = 30.0
    healthy_after: float = 10.0

    def delay(self, deaths: int) -> float:
        """`deaths` in a row, from 1 up."""
        return min(self.first * 2.0 ** min(deaths - 1, 64), self.longest)

    def deaths(self, before: int, lived: float) -> int:
        """Deaths in a row, now that one more life has ended after `lived` seconds."""
        return 1 if lived >= self.healthy_after else before + 1
