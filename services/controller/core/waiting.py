"""A want and its waiters: since when they wait, and what has become of it so far."""

import enum
from typing import NamedTuple

from services.controller.core.entities import Unit
from services.controller.core.events import Phase
from services.controller.core.limits import Limits


class Purpose(enum.IntEnum):
    """The reason why a unit is wanted; the higher, the more urgent.

    PREDICTED and PRELOAD take spare room only; COPY evicts nothing but what is idle."""

    PREDICTED = 0
    PRELOAD = 1
    COPY = 2
    KEPT = 3
    REQUEST = 4

    @property
    def text(self) -> str:
        return _TEXTS[self]


_TEXTS = {
    Purpose.PREDICTED: "expected to be used soon",
    Purpose.PRELOAD: "to be loaded at start",
    Purpose.COPY: "another copy",
    Purpose.KEPT: "to be kept resident",
    Purpose.REQUEST: "asked for",
}


class Waiter(NamedTuple):
    """A caller that waits for a unit. Times are in seconds of the engine's clock."""

    id: int
    #: When it has to be answered.
    deadline: float
    since: float
    #: The Router that gets a use lease; None takes none.
    router: str | None
    trace_id: str


class Want(NamedTuple):
    """A unit that is to be READY somewhere: it is loaded once for all that wait for it. Times are
    in seconds of the engine's clock."""

    unit: Unit
    since: float
    purpose: Purpose = Purpose.REQUEST
    #: How many servers it is to be READY on.
    target: int = 1
    #: Why it is wanted, for people.
    why: str = ""
    #: Until when it is wanted though nobody waits for it.
    until: float = 0.0
    #: What it is waiting for, for people.
    status: str = "queued"
    #: The server on which it has a place.
    server: str | None = None
    #: Why it has its place there, for people.
    reason: str = ""
    #: What it takes there, over all resources.
    reserved_bytes: int = 0
    #: The units that have to leave for it.
    victims: tuple[Unit, ...] = ()
    placed_at: float | None = None
    load_began: float | None = None
    #: Since when no server that could hold it takes anything.
    no_server_since: float | None = None
    #: Whether nobody who waits for it could be served by a load that began now.
    too_late: bool = False

    def order(self, steps: float, limits: Limits) -> tuple[float, Unit]:
        """The turn of the want; the lowest comes first. A step of urgency counts like
        `aging_seconds` of waiting, so what is less urgent waits longer, but not for ever. What
        comes too late comes last."""
        if self.too_late:
            return (float("inf"), self.unit)
        return (self.since - limits.aging_seconds * (self.purpose + steps), self.unit)

    def unplaced(self, status: str) -> "Want":
        """The same want without its place."""
        return self._replace(
            server=None, placed_at=None, load_began=None, victims=(), status=status
        )


def phases(want: Want, waiter: Waiter, now: float) -> tuple[Phase, ...]:
    """The phases of a waiter's wait: queue, reserve, evict (if anything was evicted), load."""
    attributes: dict[str, str | int | float] = {
        "shoal.model": want.unit.model,
        "shoal.version": want.unit.version,
    }
    if want.placed_at is None or want.server is None:
        return (Phase("queue", waiter.since, now, attributes),)
    attributes["shoal.server"] = want.server
    placed = max(want.placed_at, waiter.since)
    loading = max(now if want.load_began is None else want.load_began, placed)
    found = [
        Phase("queue", waiter.since, placed, attributes),
        Phase(
            "reserve",
            placed,
            placed,
            {
                **attributes,
                "shoal.reserved_bytes": want.reserved_bytes,
                "shoal.reason": want.reason,
            },
        ),
    ]
    if want.victims:
        evicted = ", ".join(map(str, want.victims))
        found.append(Phase("evict", placed, loading, {**attributes, "shoal.evicted": evicted}))
    if want.load_began is not None:
        found.append(Phase("load", loading, now, attributes))
    return tuple(found)
