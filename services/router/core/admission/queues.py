"""Requests that wait for their turn: by class, by tenant in turns, and in order of arrival."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from services.router.core.admission.priority import Priority

# One in so many requests to leave the queue is the one that has waited longest, whatever its class.
# More urgent requests thus slow down less urgent ones without stopping them.
AGING_TURNS: Final = 16


@dataclass(slots=True, eq=False)
class QueuedRequest:
    """A request that waits."""

    tenant: str
    priority: Priority
    #: Bytes.
    size: int
    arrived: float
    #: The last moment at which it makes sense to start the request.
    until: float


_Line = OrderedDict[QueuedRequest, None]


class Queue:
    """The requests that wait for one version. `size` is the number of their bytes."""

    def __init__(self) -> None:
        self._lines: tuple[OrderedDict[str, _Line], ...] = tuple(OrderedDict() for _ in Priority)
        self._counts = [0] * len(Priority)
        self._turn = 0
        self.size = 0

    def __len__(self) -> int:
        return sum(self._counts)

    def __contains__(self, waiting: QueuedRequest) -> bool:
        return waiting in self._lines[waiting.priority].get(waiting.tenant, ())

    def count(self, priority: Priority) -> int:
        """Return how many requests of the class wait."""
        return self._counts[priority]

    def any_up_to(self, priority: Priority) -> bool:
        """Return whether a request waits that is at least as urgent."""
        return any(self._counts[: priority + 1])

    def ahead(self, priority: Priority, tenant: str) -> int:
        """Return how many requests leave before the tenant's next one in that class, if none comes
        after it."""
        lines = self._lines[priority]
        own = len(lines.get(tenant, ()))
        same = sum(min(len(line), own + 1) for name, line in lines.items() if name != tenant)
        return sum(self._counts[:priority]) + own + same

    def put(self, waiting: QueuedRequest) -> None:
        lines = self._lines[waiting.priority]
        line = lines.get(waiting.tenant)
        if line is None:
            line = lines[waiting.tenant] = OrderedDict()
        line[waiting] = None
        self._counts[waiting.priority] += 1
        self.size += waiting.size

    def most_urgent(self) -> Priority:
        """Return the most urgent class that has a request waiting. Raises IndexError if nobody
        waits."""
        for priority in Priority:
            if self._counts[priority]:
                return priority
        raise IndexError("nobody waits")

    def take(self) -> QueuedRequest:
        """Remove and return the request whose turn it is. Raises IndexError if nobody waits."""
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

    def remove(self, waiting: QueuedRequest) -> None:
        """Remove a request. Raises KeyError if it does not wait."""
        lines = self._lines[waiting.priority]
        line = lines[waiting.tenant]
        del line[waiting]
        if not line:
            del lines[waiting.tenant]
        self._counts[waiting.priority] -= 1
        self.size -= waiting.size

    def to_displace(self, priority: Priority, tenant: str) -> QueuedRequest | None:
        """Return the request that gives its place to one more of the class and tenant, or None.

        It is the newest of the least urgent class, or of a tenant in the same class that has more
        requests than this one would have."""
        for lower in reversed(Priority):
            lines = self._lines[lower]
            if lower < priority or not lines:
                continue
            longest = max(lines.values(), key=len)
            if lower > priority or len(longest) > len(lines.get(tenant, ())) + 1:
                return next(reversed(longest))
        return None


def _head(lines: OrderedDict[str, _Line]) -> QueuedRequest:
    return next(iter(next(iter(lines.values()))))
