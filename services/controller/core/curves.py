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
    rank of each, and the bytes and slots that it frees, the lowest first. They are taken until
    there is room for `need`; a curve that is asked for more has to be made anew.
    """

    __slots__ = ("_ranks", "_rooms", "_whole")

    def __init__(
        self, free: Memory, victims: Iterable[tuple[float, Memory, int]], need: Memory
    ) -> None:
        #: By resource: what is free at first, and once each of the victims has left.
        self._rooms: dict[str, list[int]] = {name: [amount] for name, amount in free.items()}
        self._ranks: list[float] = []
        #: Whether no more victims could be known than are.
        self._whole = False
        for rank, freed, slots in victims:
            self._ranks.append(rank)
            for name, rooms in self._rooms.items():
                rooms.append(rooms[-1] + (slots if name == SLOTS else freed.get(name, 0)))
            if len(self._ranks) == STEPS:
                break
            if self._has_room(need):
                return
        self._whole = True

    @property
    def lowest(self) -> float:
        """The rank of the first victim; infinity where nothing may leave."""
        return self._ranks[0] if self._ranks else INFINITY

    def reaches(self, need: Memory) -> bool:
        """Return whether `cost` knows what so much room costs."""
        return self._whole or self._has_room(need)

    def cost(self, need: Memory) -> float:
        """A rank that the dearest victim for so much is not below; infinity where nothing may
        leave."""
        victims = 0
        for name, rooms in self._rooms.items():
            wanted = need.get(name, 0)
            if wanted > rooms[0]:
                victims = max(victims, bisect_left(rooms, wanted))
        if not victims:
            return -INFINITY
        return self._ranks[min(victims, len(self._ranks)) - 1] if self._ranks else INFINITY

    def _has_room(self, need: Memory) -> bool:
        for name, rooms in self._rooms.items():  # noqa: SIM110  all() takes twice as long
            if need.get(name, 0) > rooms[-1]:
                return False
        return True


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
