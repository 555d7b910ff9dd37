"""The sums of what the replicas of a server take, kept as they change."""

from services.controller.core import memory
from services.controller.core.entities import Replica, Server, Unit
from services.controller.core.memory import Memory
from services.controller.core.states import LEAVING, State


class Account:
    """The sums over a server's replicas, in bytes by resource and in slots."""

    __slots__ = (
        "coming",
        "leaving",
        "leaving_slots",
        "loads",
        "overdue",
        "queued",
        "queued_slots",
        "ready_at",
        "staying",
        "staying_slots",
        "waiting",
    )

    def __init__(self) -> None:
        #: Bytes by resource of the replicas that are there, or coming, and are not leaving.
        self.staying: dict[str, int] = {}
        #: Bytes by resource of those that are leaving.
        self.leaving: dict[str, int] = {}
        #: Bytes by resource of the replicas that the server does not hold yet.
        self.queued: dict[str, int] = {}
        #: The same three, in slots.
        self.staying_slots = 0
        self.leaving_slots = 0
        self.queued_slots = 0
        #: The units of the replicas that are QUEUED or LOADING.
        self.coming: dict[Unit, None] = {}
        #: Replicas that are LOADING, without those that are overdue.
        self.loads = 0
        #: Replicas that are LOADING and overdue.
        self.overdue = 0
        #: Replicas that are QUEUED.
        self.waiting = 0
        #: When a replica became READY last, in seconds of the engine's clock.
        self.ready_at = float("-inf")

    def add(self, replica: Replica, sign: int) -> None:
        """Count `replica` in (`sign` 1) or out (-1)."""
        slots = sign * replica.slots
        state = replica.state
        if state in LEAVING:
            _add(self.leaving, replica.reserved, sign)
            self.leaving_slots += slots
            return
        _add(self.staying, replica.reserved, sign)
        self.staying_slots += slots
        if state is State.QUEUED:
            _add(self.queued, replica.reserved, sign)
            self.queued_slots += slots
            self.waiting += sign
            self._comes(replica.unit, sign)
        elif state is State.LOADING:
            if replica.overdue:
                self.overdue += sign
            else:
                self.loads += sign
            self._comes(replica.unit, sign)
        elif sign > 0:
            self.ready_at = max(self.ready_at, replica.since)

    def _comes(self, unit: Unit, sign: int) -> None:
        if sign > 0:
            self.coming[unit] = None
        else:
            del self.coming[unit]

    @property
    def occupied(self) -> Memory:
        """Bytes reserved by what the server holds, or may hold at any moment."""
        there = memory.plus(self.staying, self.leaving)
        return {name: size - self.queued.get(name, 0) for name, size in there.items()}

    @property
    def occupied_slots(self) -> int:
        return self.staying_slots + self.leaving_slots - self.queued_slots

    @property
    def busy(self) -> int:
        """Loads under way, without those that are overdue, or waiting for their turn."""
        return self.loads + self.waiting

    def fits(self, more: Memory, slots: int, server: Server) -> bool:
        """Return whether `more` bytes and `slots` fit beside what is occupied now."""
        if server.max_models and self.occupied_slots + slots > server.max_models:
            return False
        for name, limit in server.budget.items():
            occupied = self.staying.get(name, 0) + self.leaving.get(name, 0)
            if occupied - self.queued.get(name, 0) + more.get(name, 0) > limit:
                return False
        return True

    def excess(self, server: Server, limit: Memory, slots: int) -> Memory:
        """How far what stays exceeds `limit` bytes by resource and, as "models", `slots` (0 for no
        limit)."""
        over = {name: self.staying.get(name, 0) - most for name, most in limit.items()}
        if slots:
            over["models"] = self.staying_slots - slots
        return {name: amount for name, amount in over.items() if amount > 0}

    def free_share(self, server: Server) -> float:
        """The smallest free share of any budgeted resource and of `max_models`, in [0, 1]."""
        free = 1.0
        for name, size in server.budget.items():
            if size:
                free = min(free, 1 - self.staying.get(name, 0) / size)
        if server.max_models:
            free = min(free, 1 - self.staying_slots / server.max_models)
        return max(0.0, free)


def excess_text(over: Memory) -> str:
    """An excess in words: `1 too many models, ram 300 MiB`."""
    parts = []
    if "models" in over:
        parts.append(f"{over['models']} too many models")
    bytes_over = {name: amount for name, amount in over.items() if name != "models"}
    if bytes_over:
        parts.append(memory.text(bytes_over))
    return ", ".join(parts)


def _add(into: dict[str, int], amount: Memory, sign: int) -> None:
    for name, size in amount.items():
        into[name] = into.get(name, 0) + sign * size
