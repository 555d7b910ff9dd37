"""What room costs on a server: the rank of the dearest victim, by what is needed."""

from bisect import bisect_left
from collections.abc import Iterable
from typing import Final

from services.controller.core.memory import Memory

INFINITY: Final = float("inf")
STEPS: Final = 12  # victims that a curve knows; beyond, it goes on level
SLOTS: Final = "models"  # stands for slots among the resources


class Curve:
    """The cost of room on one server.

    `free`: the bytes of each budgeted resource that are free, and perhaps `SLOTS`. `victims`: the
    rank of each and what it frees, the lowest first; as many as there are, or `STEPS`.
    """

    __slots__ = ("_free", "_freed", "_ranks")

    def __init__(self, free: Memory, victims: Iterable[tuple[float, Memory]]) -> None:
        self._free = free
        #: By resource: what is freed once each of the victims, and all before it, has left.
        self._freed: dict[str, list[int]] = {name: [] for name in free}
        self._ranks: list[float] = []
        for rank, amounts in victims:
            self._ranks.append(rank)
            for name, sums in self._freed.items():
                sums.append((sums[-1] if sums else 0) + amounts.get(name, 0))

    @property
    def lowest(self) -> float:
        """The rank of the first victim; infinity where nothing may leave."""
        return self._ranks[0] if self._ranks else INFINITY

    def cost(self, need: Memory) -> float:
        """A rank that the dearest victim for so much is not below; infinity where nothing may
        leave."""
        last = -1
        for name, free in self._free.items():
            over = need.get(name, 0) - free
            if over > 0:
                last = max(last, bisect_left(self._freed[name], over))
        if last < 0:
            return -INFINITY
        return self._ranks[min(last, len(self._ranks) - 1)] if self._ranks else INFINITY


class Curves:
    """The curves that are known. Use makes replicas worth more, so a curve is a bound until
    something else has changed on its server."""

    __slots__ = ("by_server",)

    def __init__(self) -> None:
        self.by_server: dict[str, Curve] = {}

    def put(self, server: str, curve: Curve) -> None:
        self.by_server[server] = curve

    def forget(self, server: str) -> None:
        self.by_server.pop(server, None)

    def forget_all(self) -> None:
        self.by_server.clear()
