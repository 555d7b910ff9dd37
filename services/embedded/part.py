"""What the supervisor keeps running, and what it reports about it."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path


@dataclass(frozen=True)
class Part:
    """One process of the stack.

    `ready` returns once the process answers, and is cancelled if that takes longer than
    `start_within` seconds. SIGKILL follows `stop_within` seconds after SIGTERM. `leftovers` gets
    the id of a process that has ended and removes what it left behind; it may block for a few
    seconds. `advice` gets the end of the log of a part that failed at the start, and says what to
    do, or nothing.
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
    DIED = "died"  # by itself; it is started again
    STOPPING = "stopping"
    STOPPED = "stopped"


@dataclass(frozen=True)
class Event:
    """A part's change of state, at `time` in epoch seconds, with a `text` for people."""

    time: float
    part: str
    state: State
    text: str
    pid: int | None = None


@dataclass(frozen=True)
class BackOff:
    """The seconds between a death and the next start, doubled with each death, up to `longest`.

    A part that has lived for `healthy_after` seconds counts as recovered.
    """

    first: float = 0.25
    longest: float = 30.0
    healthy_after: float = 5.0

    def delay(self, deaths: int) -> float:
        """Return the delay after `deaths` in a row, from 1 up."""
        return min(self.first * 2.0 ** min(deaths - 1, 64), self.longest)

    def deaths(self, before: int, lived: float) -> int:
        """Return the deaths in a row, after one more life of `lived` seconds."""
        return 1 if lived >= self.healthy_after else before + 1
