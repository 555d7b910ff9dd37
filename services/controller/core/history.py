"""The last events of the engine and what it wanted done, for whoever has to explain a fault."""

import enum
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from itertools import islice
from typing import Any, Final, NamedTuple

from services.controller.core import events as ev

KEPT: Final = 256  # events
KEPT_INSTRUCTIONS: Final = 16  # of each event
LARGE: Final = 32  # parts; of a larger event only the text is kept
SHOWN: Final = 4  # parts of a collection, in a text
UNTOLD: Final = {"phases", "weighed"}  # fields that would make a text long, and are told elsewhere

# Events and instructions that are tuples, since those are quicker to make.
_TUPLES: Final = (
    *(ev.ResidentWanted, ev.Loaded, ev.Unloaded),
    *(ev.RouterAcked, ev.RouterDrained, ev.RouterStarted),
    *(ev.Load, ev.Unload, ev.Granted, ev.Publish, ev.Record),
)

# How many parts the events have that can have any number of them.
_PARTS: Final[dict[type, Callable[[Any], int]]] = {
    ev.CatalogueChanged: lambda event: len(event.models) + len(event.specs),
    ev.UsesRecalled: lambda event: len(event.uses),
    ev.ServerFound: lambda event: len(event.resident) + len(event.loading) + len(event.unloading),
    ev.IndexSeen: lambda event: len(event.resident),
    ev.EvictionWanted: lambda event: len(event.units),
    ev.Measured: lambda event: len(event.units),
    ev.QueuesSeen: lambda event: len(event.seconds),
    ev.RouterJoined: lambda event: len(event.in_use),
    ev.RouterUsed: lambda event: len(event.usage),
}


class Line(NamedTuple):
    """An event in words, taken in at `now` (seconds of the engine's clock)."""

    now: float
    event: str
    instructions: tuple[str, ...]


class History:
    """A ring of the last events.

    Noting an event keeps references to it and to its instructions; texts are made when somebody
    asks. Two things are made texts at once, so that nothing large stays alive: events with many
    parts, and refusals, whose error carries the frames that it was raised through.
    """

    __slots__ = ("_ring", "_start", "events")

    def __init__(self, now: float) -> None:
        self._ring: deque[tuple[float, ev.Event | str, Sequence[ev.Instruction | str], int]] = (
            deque(maxlen=KEPT)
        )
        self._start = now
        #: Events since the start.
        self.events = 0

    @property
    def now(self) -> float:
        """The time at which the newest event was taken in, in seconds of the engine's clock."""
        return self._ring[-1][0] if self._ring else self._start

    def note(self, now: float, event: ev.Event, out: Sequence[ev.Instruction]) -> None:
        """Take in an event and its instructions, which are not changed any more."""
        self.events += 1
        parts = _PARTS.get(type(event))
        if len(out) > KEPT_INSTRUCTIONS or (parts is not None and parts(event) > LARGE):
            some = tuple(map(text, out[:KEPT_INSTRUCTIONS]))
            self._ring.append((now, text(event), some, len(out)))
        elif out and ev.Refused in map(type, out):
            light = [text(each) if type(each) is ev.Refused else each for each in out]
            self._ring.append((now, event, light, len(out)))
        else:
            self._ring.append((now, event, out, len(out)))

    def lines(self) -> list[Line]:
        """The last events, the oldest first."""
        return [
            Line(now, text(event), (*map(text, out), *_more(count - len(out))))
            for now, event, out, count in self._ring
        ]


def text(value: object) -> str:
    """An event or an instruction on one line, such as `Load(key=m:1 on t0, attempt=3)`. Empty
    fields are left out, and long collections are cut."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, BaseException):
        return f"{type(value).__name__}: {value}"
    if isinstance(value, Mapping):
        return _listed((f"{text(key)}: {text(each)}" for key, each in value.items()), len(value))
    if isinstance(value, Set):
        return _listed(map(text, sorted(value)), len(value))
    if type(value) in (tuple, list):
        return _listed(map(text, value), len(value))  # type: ignore[call-overload, arg-type]
    if is_dataclass(value) or isinstance(value, _TUPLES):
        names = [each.name for each in fields(value)] if is_dataclass(value) else value._fields
        shown = (
            f"{name}={text(part)}"
            for name in names
            if name not in UNTOLD
            and (part := getattr(value, name)) not in (None, "", (), {}, frozenset())
        )
        return f"{type(value).__name__}({', '.join(shown)})"
    return str(value)


def _listed(texts: Iterable[str], count: int) -> str:
    return f"[{', '.join((*islice(texts, SHOWN), *_more(count - SHOWN)))}]"


def _more(count: int) -> tuple[str, ...]:
    return (f"{count} more",) if count > 0 else ()
