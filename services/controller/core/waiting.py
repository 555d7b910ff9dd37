"""Who waits for what, since when, and what became of it so far."""

import enum
from dataclasses import dataclass
from typing import NamedTuple

from services.controller.core.entities import Unit
from services.controller.core.events import Phase
from services.controller.core.limits import Limits


class Purpose(enum.IntEnum):
    """Why a unit is wanted, the more urgent the higher.

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


@dataclass(frozen=True, slots=True)
class Waiter:
    """`deadline`, `since`: seconds of the engine's clock."""

    id: int
    deadline: float
    since: float
    router: str | None
    trace_id: str


class Want(NamedTuple):
    """A unit that is to be READY on `target` servers: it is loaded once for all that wait.

    `why`: for people, why it is wanted; `status`: what it is waiting for now. `server`: where it
    has a place now. The times are those of its way so far; `no_server_since`: since when no
    server that could hold it takes anything. `until`: wanted without a waiter until
    then.
    """

    unit: Unit
    since: float
    purpose: Purpose = Purpose.REQUEST
    target: int = 1
    why: str = ""
    until: float = 0.0
    status: str = "queued"
    server: str | None = None
    reason: str = ""
    reserved_bytes: int = 0
    victims: tuple[Unit, ...] = ()
    placed_at: float | None = None
    load_began: float | None = None
    no_server_since: float | None = None

    def order(self, priority: int, limits: Limits) -> tuple[float, Unit]:
        """Its turn. A step of urgency or priority counts like so many seconds of waiting, so what
        is less urgent waits longer, and not for ever."""
        return (self.since - limits.aging_seconds * (self.purpose + priority), self.unit)

    def unplaced(self, status: str) -> "Want":
        """Back to the queue: its server is gone."""
        return self._replace(
            server=None, placed_at=None, load_began=None, victims=(), status=status
        )


def phases(want: Want, waiter: Waiter, now: float) -> tuple[Phase, ...]:
    """What this waiter waited for: queue, reserve, evict (if anything was evicted), load."""
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
