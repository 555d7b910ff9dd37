"""The servers that are worth a look for a newcomer, when there are too many to look at them all.

There are two heaps: the servers with most room, and those whose next victim is worth least. An
entry is a bound, put right when its turn comes: a server that has changed has a newer entry, and
use only ever makes a victim worth more. Where no load could begin now, nothing is evicted either:
such a server is in the first heap alone.
"""

import heapq
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final

LOOK_AT_ALL: Final = 32  # servers; with no more than that, every one is looked at
# With more, so many are looked at for room, and so many for victims: at first, and if none will do.
STEPS: Final = ((2, 8), (32, 32))
INFINITY: Final = float("inf")


class Roster:
    """The servers by room, and by their next victim."""

    def __init__(self) -> None:
        self._versions: dict[str, int] = {}
        self._roomy: list[tuple[float, str, int]] = []
        self._fronts: list[tuple[float, str, int]] = []

    def changed(self, server: str, room: float, front: float) -> None:
        """Take in what has become of a server. The higher `room`, the better a newcomer does there
        without an eviction; no victim there has a lower rank than `front`, which is infinite where
        nothing is to be evicted now."""
        version = self._versions[server] = self._versions.get(server, 0) + 1
        heapq.heappush(self._roomy, (-room, server, version))
        if front < INFINITY:
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
        found = islice(self._rising(self._roomy, None), count)
        return [server for _, server in found]

    def cheap(self, front: Callable[[str], float]) -> Iterator[tuple[float, str]]:
        """The servers in the order of their next victims, the one worth least first, each with its
        rank. `front` gives the rank as it is now, infinity where nothing may leave. The roster is
        not to be told or asked of anything until the iterator is closed."""
        return self._rising(self._fronts, front)

    def _rising(
        self, heap: list[tuple[float, str, int]], now: Callable[[str], float] | None
    ) -> Iterator[tuple[float, str]]:
        taken: list[tuple[float, str, int]] = []
        try:
            while heap:
                entry = heapq.heappop(heap)
                bound, server, version = entry
                if version != self._versions[server]:
                    continue
                actual = bound if now is None else now(server)
                if actual > bound:
                    heapq.heappush(heap, (actual, server, version))
                    continue
                taken.append(entry)
                if bound == INFINITY:
                    return
                yield bound, server
        finally:
            for entry in taken:
                heapq.heappush(heap, entry)

    def _compact(self) -> None:
        for heap in (self._roomy, self._fronts):
            heap[:] = [entry for entry in heap if entry[2] == self._versions[entry[1]]]
            heapq.heapify(heap)
