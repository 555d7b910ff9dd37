"""The servers that are worth a look for a newcomer, when there are too many to look at them all.

There are two heaps: the servers with most room, and those whose next victim matters least. An entry
is a bound, put right when its turn comes: a server that has changed has a newer entry, and use only
ever makes a victim matter more.
"""

import heapq
from collections.abc import Callable, Iterator
from typing import Final

LOOK_AT_ALL: Final = 32  # servers; with no more than that, every one is looked at
STEPS: Final = (2, 8, 32)  # servers; with more, so many are looked at until one will do


class Roster:
    """The servers by room, and by their next victim."""

    def __init__(self) -> None:
        self._versions: dict[str, int] = {}
        self._roomy: list[tuple[float, str, int]] = []
        self._fronts: list[tuple[float, str, int]] = []

    def changed(self, server: str, room: float, front: float) -> None:
        """Take in what has become of a server. The higher `room`, the better a newcomer does there
        without an eviction; no victim there matters less than `front`."""
        version = self._versions[server] = self._versions.get(server, 0) + 1
        heapq.heappush(self._roomy, (-room, server, version))
        heapq.heappush(self._fronts, (front, server, version))
        if len(self._roomy) > 4 * len(self._versions) + 64:
            self._compact()

    def rooms(self) -> dict[str, float]:
        """The room of every server that was told of, as of the last time."""
        return {
            server: -room
            for room, server, version in self._roomy
            if version == self._versions[server]
        }

    def roomy(self, count: int) -> list[str]:
        """The `count` servers with most room."""
        return [server for _, server, _ in self._take(self._roomy, None, count)]

    def cheap(self, front: Callable[[str], float], count: int) -> list[str]:
        """The `count` servers whose next victim matters least. `front` gives how much it matters
        now."""
        return [server for _, server, _ in self._take(self._fronts, front, count)]

    def _take(
        self,
        heap: list[tuple[float, str, int]],
        now: Callable[[str], float] | None,
        count: int,
    ) -> list[tuple[float, str, int]]:
        taken: list[tuple[float, str, int]] = []
        for entry in self._current(heap, now):
            taken.append(entry)
            if len(taken) == count:
                break
        for entry in taken:
            heapq.heappush(heap, entry)
        return taken

    def _current(
        self, heap: list[tuple[float, str, int]], now: Callable[[str], float] | None
    ) -> Iterator[tuple[float, str, int]]:
        while heap:
            entry = heap[0]
            bound, server, version = entry
            if bound == float("inf"):
                return
            heapq.heappop(heap)
            if version != self._versions[server]:
                continue
            actual = bound if now is None else now(server)
            if actual > bound:
                heapq.heappush(heap, (actual, server, version))
            else:
                yield entry

    def _compact(self) -> None:
        for heap in (self._roomy, self._fronts):
            heap[:] = [entry for entry in heap if entry[2] == self._versions[entry[1]]]
            heapq.heapify(heap)
