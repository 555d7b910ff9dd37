"""What the engine has to look at again: before it is done with the present event, or at a time."""

import heapq

from services.controller.core.entities import ReplicaKey, Unit
from services.controller.core.timers import Timers


class Agenda:
    """Marks that the owners of the state leave for `residency`, which works them off.

    Each is a dictionary without values: what is marked twice is looked at once, in the order of
    the first marks.
    """

    __slots__ = ("arrived", "changed", "displaced", "fresh", "loads", "timers", "touched")

    def __init__(self) -> None:
        #: Servers where a load may start, or a want find a place, that could not before.
        self.changed: dict[str, None] = {}
        #: Servers whose replicas are not what they were, whether or not that lets anything start.
        self.touched: dict[str, None] = {}
        #: Wants that are new, have lost their place, or may be over.
        self.fresh: dict[Unit, None] = {}
        #: Units that have become READY somewhere.
        self.arrived: dict[Unit, None] = {}
        #: Replicas that are gone, or are leaving.
        self.displaced: dict[ReplicaKey, None] = {}
        #: When to look at each load that is under way, the earliest first: seconds of the engine's
        #: clock, and the number of the load.
        self.loads: list[tuple[float, int, ReplicaKey]] = []
        #: When something becomes due though nothing happens, on the engine's clock.
        self.timers = Timers()

    def look_at_server(self, server: str) -> None:
        self.changed[server] = None

    def touch_server(self, server: str) -> None:
        self.touched[server] = None

    def look_at_want(self, unit: Unit) -> None:
        self.fresh[unit] = None

    def forget_want(self, unit: Unit) -> None:
        self.fresh.pop(unit, None)

    def has_arrived(self, unit: Unit) -> None:
        self.arrived[unit] = None

    def is_displaced(self, key: ReplicaKey) -> None:
        self.displaced[key] = None

    def look_at_load(self, when: float, attempt: int, key: ReplicaKey) -> None:
        heapq.heappush(self.loads, (when, attempt, key))
        self.timers.at(when)

    def take_loads(self, now: float) -> list[tuple[int, ReplicaKey]]:
        """Return the loads that are to be looked at by now."""
        taken = []
        while self.loads and self.loads[0][0] <= now:
            _, attempt, key = heapq.heappop(self.loads)
            taken.append((attempt, key))
        return taken

    def take_changed(self) -> dict[str, None]:
        taken, self.changed = self.changed, {}
        return taken

    def take_touched(self) -> dict[str, None]:
        taken, self.touched = self.touched, {}
        return taken

    def take_fresh(self) -> list[Unit]:
        taken, self.fresh = self.fresh, {}
        return list(taken)

    def take_arrived(self) -> list[Unit]:
        taken, self.arrived = self.arrived, {}
        return list(taken)

    def take_displaced(self) -> list[ReplicaKey]:
        taken, self.displaced = self.displaced, {}
        return list(taken)
