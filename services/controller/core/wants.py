"""Everything that is wanted, who waits for it, and the queue of what has found no place."""

import math
from bisect import bisect_left, insort
from collections.abc import Iterator
from heapq import heappop, heappush
from typing import Final

from services.controller.core.agenda import Agenda
from services.controller.core.entities import ReplicaKey, Unit, UnitSpec
from services.controller.core.knowledge import Knowledge
from services.controller.core.limits import Limits
from services.controller.core.waiting import Purpose, Waiter, Want

URGENT: Final = 1.0  # steps of priority that the waiters for a second of loading make at most
SHORTEST_SECONDS: Final = 0.01  # a load is taken to last at least so long


class Wants:
    """One want for each unit that is to be READY somewhere, and one place for each waiter."""

    __slots__ = (
        "_agenda",
        "_known",
        "_limits",
        "_retried",
        "asked",
        "by_unit",
        "claims",
        "deadlines",
        "evictions",
        "leaving",
        "turns",
        "unplaced",
        "waiting",
    )

    def __init__(self, limits: Limits, known: Knowledge, agenda: Agenda) -> None:
        self._limits = limits
        self._known = known
        self._agenda = agenda
        #: What is wanted.
        self.by_unit: dict[Unit, Want] = {}
        #: Who waits for each unit, by number. Never empty for a unit.
        self.waiting: dict[Unit, dict[int, Waiter]] = {}
        #: The unit that each waiter waits for.
        self.asked: dict[int, Unit] = {}
        #: When each waiter has to be answered, in seconds of the engine's clock: a heap. It also
        #: has waiters that have been answered.
        self.deadlines: list[tuple[float, int]] = []
        #: The wants that have found no place, each with its turn, sorted by it.
        self.unplaced: list[tuple[float, Unit]] = []
        #: The entry of each of these wants in `unplaced`.
        self.turns: dict[Unit, tuple[float, Unit]] = {}
        #: Servers that are kept for a want that has waited for long.
        self.claims: dict[str, Unit] = {}
        #: What each waiter for an eviction wants gone.
        self.evictions: dict[int, tuple[ReplicaKey, ...]] = {}
        #: What of that has not been gone yet. One that comes back was gone all the same.
        self.leaving: dict[int, set[ReplicaKey]] = {}
        #: How many wants were given another try at ticks; says whose turn is next.
        self._retried = 0

    # --- what is wanted ---------------------------------------------------------------------------

    def want(
        self,
        unit: Unit,
        purpose: Purpose,
        since: float,
        *,
        target: int = 1,
        until: float = 0.0,
        why: str = "",
    ) -> None:
        """Have `unit` READY on `target` servers; what is wanted already keeps its turn, unless it
        is wanted for longer than was known."""
        known = self.by_unit.get(unit)
        if known is None:
            self.by_unit[unit] = Want(unit, since, purpose, target, why or purpose.text, until)
            self._agenda.look_at_want(unit)
            return
        fresh = known._replace(target=max(known.target, target), until=max(known.until, until))
        if purpose > known.purpose:
            fresh = fresh._replace(purpose=purpose, why=why or purpose.text)
        if since < known.since:
            fresh = fresh._replace(since=since)
        if (fresh.purpose, fresh.since) != (known.purpose, known.since):
            self.leave_queue(unit)
            self._agenda.look_at_want(unit)
        self.by_unit[unit] = fresh

    def put(self, want: Want) -> None:
        """Replace what is known of a want."""
        self.by_unit[want.unit] = want

    def unplace(self, want: Want, status: str) -> Want:
        """Take its place from a want, which looks for another."""
        fresh = self.by_unit[want.unit] = want.unplaced(status)
        self._agenda.look_at_want(want.unit)
        return fresh

    def drop(self, unit: Unit) -> None:
        """Forget a want: nobody has it any longer, or it is where it was wanted."""
        want = self.by_unit.pop(unit, None)
        self._agenda.forget_want(unit)
        if want is not None:
            self.leave_queue(unit)
            self.give_claims_back(unit)

    def review(self) -> None:
        """Have the wants that nobody waits for looked at: they may be over."""
        for unit in self.by_unit:
            if unit not in self.waiting:
                self._agenda.look_at_want(unit)

    def on_server(self, server: str) -> list[Want]:
        """The wants that have their place on the server."""
        return [want for want in self.by_unit.values() if want.server == server]

    def placed_at(self, key: ReplicaKey) -> list[Want]:
        """The wants that have their place on the server and need the unit there."""
        wants = map(self.by_unit.get, self._known.with_users(key.unit))
        return [want for want in wants if want is not None and want.server == key.server]

    # --- the queue --------------------------------------------------------------------------------

    def order(self, want: Want) -> tuple[float, Unit]:
        """The turn of a want; the lowest comes first."""
        spec = self._known.specs.get(want.unit)
        if spec is None:
            return want.order(0.0, self._limits)
        waiters = max(1, len(self.waiting.get(want.unit, ())))
        return want.order(spec.priority + self._urgency(spec, waiters), self._limits)

    def _urgency(self, spec: UnitSpec, waiters: int) -> float:
        """Waiters for a second of loading, as steps of priority: four times as many are a step, and
        at most `URGENT` steps either way."""
        seconds = sum(self._known.reload_seconds(member.unit) for member in self._known.group(spec))
        steps = math.log(waiters / max(seconds, SHORTEST_SECONDS), 4)
        return min(URGENT, max(-URGENT, steps))

    def note_lateness(self, want: Want, now: float) -> Want:
        """Find out whether anybody who waits could be served by a load that began now. A request
        that was refused because it could not waits no longer."""
        spec = self._known.specs[want.unit]
        seconds = spec.load_seconds or 0.0
        waiting = self.waiting.get(want.unit, {}).values()
        too_late = want.purpose is Purpose.REQUEST and not any(
            now + seconds <= waiter.deadline for waiter in waiting
        )
        if too_late != want.too_late:
            want = self.by_unit[want.unit] = want._replace(too_late=too_late)
        return want

    def enqueue(self, want: Want) -> None:
        """Have a want that found no place tried again in its turn."""
        turn = self.turns[want.unit] = self.order(want)
        insort(self.unplaced, turn)

    def leave_queue(self, unit: Unit) -> None:
        turn = self.turns.pop(unit, None)
        if turn is not None:
            del self.unplaced[bisect_left(self.unplaced, turn)]

    def _requeue(self, unit: Unit) -> None:
        """Put a want that waits in the queue into its right place: its waiters have changed."""
        if unit in self.turns:
            self.leave_queue(unit)
            self.enqueue(self.by_unit[unit])

    def some_unplaced(self, most: int) -> list[Unit]:
        """The next `most` wants in the queue, in rotation: the first of it may wait for long."""
        queue = [unit for _, unit in self.unplaced]
        start = self._retried % len(queue) if queue else 0
        self._retried = start + most
        return (queue + queue)[start : start + min(most, len(queue))]

    # --- claims -----------------------------------------------------------------------------------

    def claim(self, server: str, unit: Unit) -> None:
        """Keep a server for `unit`."""
        self.claims[server] = unit

    def unclaim(self, server: str) -> None:
        """Open a server to all again, if it is kept for somebody."""
        if self.claims.pop(server, None) is not None:
            self._agenda.look_at_server(server)

    def give_claims_back(self, unit: Unit) -> None:
        for server in [server for server, other in self.claims.items() if other == unit]:
            self.unclaim(server)

    # --- waiters ----------------------------------------------------------------------------------

    def wait(self, waiter: Waiter, unit: Unit) -> None:
        """Have `waiter` wait for `unit`, which is wanted."""
        self.waiting.setdefault(unit, {})[waiter.id] = waiter
        self._requeue(unit)
        if self.by_unit[unit].too_late:  # perhaps not for this one
            self._agenda.look_at_want(unit)
        self.asked[waiter.id] = unit
        last = self._last_moment(waiter)
        heappush(self.deadlines, (last, waiter.id))
        self._agenda.timers.at(last)

    def take_waiters(self, unit: Unit) -> list[Waiter]:
        """Everybody who waits for `unit`: they are to be answered at once."""
        taken = list(self.waiting.pop(unit, {}).values())
        for waiter in taken:
            del self.asked[waiter.id]
            self._agenda.timers.cancel(self._last_moment(waiter))
        return taken

    def take_overdue(self, now: float) -> Iterator[tuple[Unit, Waiter]]:
        """The waiters that have to be answered by now, each with the unit that it waits for. Each
        is forgotten once it was answered."""
        while self.deadlines and self.deadlines[0][0] <= now:
            _, id_ = heappop(self.deadlines)
            unit = self.asked.get(id_)
            if unit is not None:
                yield unit, self.waiting[unit][id_]
                self.forget_waiter(id_)

    def forget_waiter(self, id_: int) -> None:
        self.evictions.pop(id_, None)
        self.leaving.pop(id_, None)
        unit = self.asked.pop(id_, None)
        if unit is None:
            return
        waiting = self.waiting[unit]
        self._agenda.timers.cancel(self._last_moment(waiting.pop(id_)))
        if waiting:
            self._requeue(unit)
        else:
            del self.waiting[unit]
            self._agenda.look_at_want(unit)  # is it still wanted?

    def _last_moment(self, waiter: Waiter) -> float:
        """The time at which a waiter has to be answered, so that it hears why."""
        return waiter.deadline - self._limits.answer_margin_seconds

    def wait_for_eviction(self, waiter: int, keys: tuple[ReplicaKey, ...]) -> None:
        self.evictions[waiter], self.leaving[waiter] = keys, set(keys)

    def end_eviction(self, waiter: int) -> None:
        del self.evictions[waiter], self.leaving[waiter]

    def trace_of(self, unit: Unit) -> str:
        """The trace of a request that waits for `unit`, or for something that it is a part of."""
        for user in self._known.with_users(unit):
            for waiter in self.waiting.get(user, {}).values():
                return waiter.trace_id
        return ""
