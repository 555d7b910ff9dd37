"""Who waits for what, since when, and what became of it so far."""

from dataclasses import dataclass, replace

from services.controller.core.entities import Unit
from services.controller.core.events import Phase


@dataclass(frozen=True, slots=True)
class Waiter:
    """`deadline`, `since`: seconds of the engine's clock."""

    id: int
    deadline: float
    since: float
    router: str | None
    trace_id: str


@dataclass(frozen=True, slots=True)
class Want:
    """All the waiters for one unit: it is loaded once for all of them.

    `desired`: wanted even when nobody waits, because it is pinned. `status`: for people, what the
    want is waiting for now. The times are those of its way so far.
    """

    unit: Unit
    since: float
    waiters: tuple[Waiter, ...] = ()
    desired: bool = False
    status: str = "queued"
    server: str | None = None
    reason: str = ""
    reserved_bytes: int = 0
    victims: tuple[Unit, ...] = ()
    placed_at: float | None = None
    load_began: float | None = None

    @property
    def order(self) -> tuple[bool, float, Unit]:
        """Requests before pins, then the oldest first."""
        return (not self.waiters, self.since, self.unit)

    def joined(self, waiter: Waiter) -> "Want":
        return replace(self, waiters=(*self.waiters, waiter))

    def without(self, waiter: int) -> "Want":
        return replace(self, waiters=tuple(w for w in self.waiters if w.id != waiter))

    def unplaced(self, status: str) -> "Want":
        """Back to the queue: its server is gone."""
        return replace(
            self, server=None, placed_at=None, load_began=None, victims=(), status=status
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
