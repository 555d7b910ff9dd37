"""Requests that wait for their turn: by class, in turns by tenant, then as they came."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from services.router.core.admission.priority import Priority

# Of so many that leave the queue one is whoever waits longest, whatever its class: so the less
# urgent are slowed down by the more urgent, and not stopped.
AGING_TURNS: Final = 16


@dataclass(slots=True, eq=False)
class Waiting:
    """A request that waits. `size` in bytes. `until`: the last moment at which it makes sense to
    begin with it."""

    tenant: str
    priority: Priority
    size: int
    arrived: float
    until: float


_Line = OrderedDict[Waiting, None]


class Queue:
    """`size`: bytes of all that wait."""

    def __init__(self) -> None:
        self._lines: tuple[OrderedDict[str, _Line], ...] = tuple(OrderedDict() for _ in Priority)
        self._counts = [0] * len(Priority)
        self._turn = 0
        self.size = 0

    def __len__(self) -> int:
        return sum(self._counts)

    def __contains__(self, waiting: Waiting) -> bool:
        return waiting in self._lines[waiting.priority].get(waiting.tenant, ())

    def count(self, priority: Priority) -> int:
        """Those of the class."""
        return self._counts[priority]

    def any_up_to(self, priority: Priority) -> bool:
        """Whether one waits that is as urgent or more."""
        return any(self._counts[: priority + 1])

    def ahead(self, priority: Priority, tenant: str) -> int:
        """How many will leave before the next one of the tenant in that class does, if nobody
        comes after it."""
        lines = self._lines[priority]
        own = len(lines.get(tenant, ()))
        same = sum(min(len(line), own + 1) for name, line in lines.items() if name != tenant)
        return sum(self._counts[:priority]) + own + same

    def put(self, waiting: Waiting) -> None:
        lines = self._lines[waiting.priority]
        line = lines.get(waiting.tenant)
        if line is None:
            line = lines[waiting.tenant] = OrderedDict()
        line[waiting] = None
        self._counts[waiting.priority] += 1
        self.size += waiting.size

    def most_urgent(self) -> Priority:
        """The class of whoever is the most urgent. Raises IndexError when nobody waits."""
        for priority in Priority:
            if self._counts[priority]:
                return priority
        raise IndexError("nobody waits")

    def take(self) -> Waiting:
        """Whoever's turn it is. Raises IndexError when nobody waits."""
        waiting = _head(self._lines[self.most_urgent()])
        self._turn = (self._turn + 1) % AGING_TURNS
        if not self._turn:
            heads = [_head(lines) for lines in self._lines if lines]
            waiting = min(heads, key=lambda head: head.arrived)
        self.remove(waiting)
        lines = self._lines[waiting.priority]
        if waiting.tenant in lines:
            lines.move_to_end(waiting.tenant)
        return waiting

    def remove(self, waiting: Waiting) -> None:
        """Raises KeyError if it does not wait."""
        lines = self._lines[waiting.priority]
        line = lines[waiting.tenant]
        del line[waiting]
        if not line:
            del lines[waiting.tenant]
        self._counts[waiting.priority] -= 1
        self.size -= waiting.size

    def yielding(self, priority: Priority, tenant: str) -> Waiting | None:
        """Who gives its place to one more of the class and tenant: the newest of the least urgent
        class, or of a tenant in the same class that has more than this one would have."""
        for lower in reversed(Priority):
            lines = self._lines[lower]
            if lower < priority or not lines:
                continue
            longest = max(lines.values(), key=len)
            if lower > priority or len(longest) > len(lines.get(tenant, ())) + 1:
                return next(reversed(longest))
        return None


def _head(lines: OrderedDict[str, _Line]) -> Waiting:
    return next(iter(next(iter(lines.values()))))
