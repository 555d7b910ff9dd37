"""Lets requests through, makes them wait, or refuses them, as `core/admission` decides."""

import asyncio
import math
import random
import time
from collections import Counter
from collections.abc import Mapping
from typing import Final

from services.common.errors import DeadlineBeforeResident, ShoalError
from services.router.core.admission.gate import EVERY_MODEL, Bounds, Gate, Refusal, Refused
from services.router.core.admission.memory import MemoryBudget
from services.router.core.admission.priority import Priority, priority_of
from services.router.core.admission.queues import QueuedRequest
from services.router.core.admission.tenants import Tenant, TenantLimit, Tenants
from services.router.core.errors import Overloaded
from services.router.core.routing.routes import Target
from services.router.core.routing.table import Table

MANY: Final = 1000  # gates, beyond which those unused for long are forgotten
RETRY_SPREAD: Final = 0.5  # random share added to RetryInfo, so that not all return at once

_PROBLEMS: Final = {
    Refusal.FULL: "{queued} wait already, and the queue takes no more",
    Refusal.LATE: "its turn would come after its deadline: {queued} wait before it",
    Refusal.EXPIRED: "its turn did not come in {waited:.2f} s",
    Refusal.DISPLACED: "after {waited:.2f} s in the queue it gave its place to a more urgent one",
}


class Ticket:
    """One request's permission to be sent. If `turn` is not None, the request has to wait for it
    first."""

    __slots__ = ("began", "cold", "gate", "priority", "target", "tenant", "turn", "waiting")

    def __init__(
        self, target: Target, gate: Gate, tenant: Tenant, priority: Priority, cold: bool, now: float
    ) -> None:
        self.target = target
        self.gate = gate
        self.tenant = tenant
        self.priority = priority
        self.cold = cold
        self.began = now
        self.turn: asyncio.Future[ShoalError | None] | None = None
        self.waiting: QueuedRequest | None = None


class Admission:
    """Decides when each request may be sent.

    A request starts with `enter`, waits in `wait_turn` if it has to, and ends with `leave`,
    whatever becomes of it.

    `limits` holds the limits of tenants by name. `in_flight` bounds the requests in flight on one
    replica by model, with `EVERY_MODEL` for all models not named; where there is no bound, one is
    found by measuring. `memory_budget` counts the bytes of every request from its arrival until it
    is answered."""

    def __init__(
        self,
        table: Table,
        limits: Mapping[str, TenantLimit] | None = None,
        bounds: Bounds | None = None,
        in_flight: Mapping[str, int] | None = None,
        memory_budget: MemoryBudget | None = None,
    ) -> None:
        self._table = table
        self._bounds = bounds or Bounds()
        self._in_flight = in_flight or {}
        self._turns: dict[QueuedRequest, Ticket] = {}
        self._many = MANY
        self.tenants = Tenants(limits or {})
        self.memory_budget = memory_budget or MemoryBudget()
        self.gates: dict[Target, Gate] = {}
        #: Refused requests by reason, priority class and label of the tenant.
        self.refused: Counter[tuple[str, str, str]] = Counter()
        self.queued = [0] * len(Priority)
        self.queued_seconds = [0.0] * len(Priority)

    @property
    def workers(self) -> int:
        """The number of live Routers on the same ports, among which the limits are divided."""
        return self._bounds.workers

    @workers.setter
    def workers(self, number: int) -> None:
        self._bounds.workers = self.tenants.workers = max(1, number)
        for gate in self.gates.values():
            gate.divide()

    def waiting(self, target: Target) -> int:
        """Return how many requests wait for a replica of `target`."""
        gate = self.gates.get(target)
        return len(gate.queue) if gate is not None else 0

    def enter(
        self,
        tenant: str,
        target: Target,
        *,
        priority_header: str | bytes | None = None,
        priority_parameter: int = 0,
        deadline: float | None = None,
        size: int = 0,
        continues: bool = False,
    ) -> Ticket:
        """Admit a request for `target`. If the ticket has a `turn`, await `wait_turn(ticket)`
        before sending.

        `priority_header` and `priority_parameter` are what the request says about its urgency.
        `deadline` is in seconds of the monotonic clock. `size` is how many bytes the request holds
        while it waits. `continues` says that the request continues a sequence: it neither waits nor
        is refused, since the work done so far would be lost.

        Raises Overloaded, RateLimited, TenantLimited, InvalidField. After an error there is nothing
        to leave."""
        now = time.monotonic()
        who = self.tenants.tenant(tenant, now)
        priority = who.default_priority
        if priority_header is not None or priority_parameter:
            priority = priority_of(priority_header, priority_parameter, who.limit.priority)
        replicas = len(self._table.ready.get(target, ()))
        gate = self.gates.get(target)
        if gate is None:
            gate = self._new_gate(target, now)
        ticket = Ticket(target, gate, who, priority, not replicas, now)
        if continues:
            self.tenants.force(who, cold=ticket.cold)
            gate.force()
            who.admitted[priority] += 1
            return ticket
        try:
            self.tenants.enter(who, now, cold=ticket.cold)
        except ShoalError as error:
            self._count_refusal(error.reason.lower(), ticket)
            error.retry_after = _with_jitter(error.retry_after or 0.0)
            raise
        if gate.enter(priority, replicas, now):
            who.admitted[priority] += 1
        else:
            self._queue(ticket, replicas, deadline, size, now)
        return ticket

    async def wait_turn(self, ticket: Ticket) -> None:
        """Wait until the ticket's turn has come.

        Raises Overloaded, DeadlineBeforeResident. After an error or a cancellation there is nothing
        to leave."""
        assert ticket.turn is not None
        assert ticket.waiting is not None
        timer = None
        if ticket.waiting.until < math.inf:
            left = max(0.0, ticket.waiting.until - time.monotonic())
            timer = asyncio.get_running_loop().call_later(left, self._expire, ticket.waiting)
        try:
            refused = await ticket.turn
        except asyncio.CancelledError:
            if ticket.waiting in self._turns:
                self._withdraw(ticket.waiting)
            elif not ticket.turn.cancelled() and ticket.turn.result() is None:
                ticket.gate.leave(None)
                self._release(ticket)
            self.tenants.leave(ticket.tenant, cold=ticket.cold)
            raise
        finally:
            if timer is not None:
                timer.cancel()
        waited = time.monotonic() - ticket.began
        self.queued_seconds[ticket.priority] += waited
        if refused is not None:
            self.tenants.leave(ticket.tenant, cold=ticket.cold)
            raise refused
        ticket.tenant.admitted[ticket.priority] += 1
        ticket.began += waited

    def leave(self, ticket: Ticket, *, answered: bool, abandoned: bool = False) -> None:
        """End a request.

        `answered` says that a resident model answered it without an error, so that the time it took
        tells something about the model. `abandoned` says that its caller is gone while Triton still
        works on it, presumably for as long as it usually does."""
        gate, seconds = ticket.gate, time.monotonic() - ticket.began
        self.tenants.leave(ticket.tenant, cold=ticket.cold)
        if abandoned and not ticket.cold and seconds < gate.latency:
            left = gate.latency - seconds
            asyncio.get_running_loop().call_later(left, self._leave_late, ticket)
            return
        gate.leave(seconds if answered else None)
        if gate.waiting:
            self._release(ticket)

    # --- within -----------------------------------------------------------------------------------

    def _replicas(self, target: Target) -> int:
        return len(self._table.ready.get(target, ()))

    def _new_gate(self, target: Target, now: float) -> Gate:
        if len(self.gates) >= self._many:
            self.gates = {key: gate for key, gate in self.gates.items() if not gate.idle(now)}
            self._many = max(MANY, 2 * len(self.gates))
        fixed = self._in_flight.get(target.model, self._in_flight.get(EVERY_MODEL))
        gate = self.gates[target] = Gate(self._bounds, fixed)
        return gate

    def _queue(
        self, ticket: Ticket, replicas: int, deadline: float | None, size: int, now: float
    ) -> None:
        """Put a request in the queue. Raises Overloaded."""
        # Requests that ask the Controller wait there as long as it takes, as do those behind them.
        until = now + self._bounds.patience if replicas else math.inf
        if deadline is not None and deadline < until:
            until = deadline
        waiting = QueuedRequest(ticket.tenant.name, ticket.priority, size, now, until)
        refused, displaced = ticket.gate.offer(waiting, until, replicas, now)
        if refused is not None:
            self.tenants.leave(ticket.tenant, cold=ticket.cold)
            raise self._error_for(ticket, refused, now)
        ticket.turn = asyncio.get_running_loop().create_future()
        ticket.waiting = waiting
        self._turns[waiting] = ticket
        self.queued[ticket.priority] += 1
        if displaced is not None:
            self._refuse(displaced, Refusal.DISPLACED, now)
        # There may be another copy, which no request has left yet.
        self._release(ticket)

    def _release(self, ticket: Ticket) -> None:
        """Let those requests go on whose turn has come."""
        now = time.monotonic()
        for waiting, refused in ticket.gate.release(self._replicas(ticket.target), now):
            released = self._turns.pop(waiting)
            self._resolve(released, self._error_for(released, refused, now) if refused else None)

    def _expire(self, waiting: QueuedRequest) -> None:
        if waiting in self._turns:
            self._turns[waiting].gate.remove(waiting)
            self._refuse(waiting, Refusal.EXPIRED, time.monotonic())

    def _refuse(self, waiting: QueuedRequest, refusal: Refusal, now: float) -> None:
        """Refuse a request that has left the queue."""
        ticket = self._turns.pop(waiting)
        refused = ticket.gate.refused(refusal, waiting.priority, now)
        self._resolve(ticket, self._error_for(ticket, refused, now))

    def _resolve(self, ticket: Ticket, error: ShoalError | None) -> None:
        """End a request's wait with `error`, or with leave to be sent if that is None."""
        assert ticket.turn is not None
        if not ticket.turn.cancelled():
            ticket.turn.set_result(error)
        elif error is None:  # cancelled before it could see its turn
            ticket.gate.leave(None)

    def _withdraw(self, waiting: QueuedRequest) -> None:
        self._turns.pop(waiting).gate.remove(waiting)

    def _leave_late(self, ticket: Ticket) -> None:
        ticket.gate.leave(None)
        self._release(ticket)

    def _error_for(self, ticket: Ticket, refused: Refused, now: float) -> ShoalError:
        self._count_refusal(refused.refusal.value, ticket)
        model, version = ticket.target
        waited = now - ticket.began
        if refused.refusal is Refusal.EXPIRED and not self._replicas(ticket.target):
            return DeadlineBeforeResident(
                model=model,
                version=version,
                waited_seconds=f"{waited:.2f}",
                stage="others were to be answered first",
            )
        problem = _PROBLEMS[refused.refusal].format(queued=len(ticket.gate.queue), waited=waited)
        return Overloaded(
            model=model,
            version=version,
            priority=ticket.priority.label,
            problem=problem,
            retry_after=_with_jitter(refused.retry_after),
        )

    def _count_refusal(self, reason: str, ticket: Ticket) -> None:
        self.refused[reason, ticket.priority.label, ticket.tenant.label] += 1


def _with_jitter(seconds: float) -> float:
    return seconds * random.uniform(1.0, 1.0 + RETRY_SPREAD)
