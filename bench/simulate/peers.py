"""Other policies under the same trace, on one cache as large as the whole fleet.

A pool has no servers to place on and no room to wait for, and its victims are gone at once, so the
engine, which has all that to do, is not expected to reach it. A model that is not in the pool is
loaded in `load_seconds`, always; requests that come meanwhile wait for the rest of it.

lru            the least recently used leave until the newcomer fits
gdsf           GreedyDual-Size-Frequency (Cherkasova, 1998): the lowest of age + uses x load seconds
               / bytes leave; age is that of the last one that left
belady         Belady's MIN (1966), which knows the future: whose next use is farthest leaves.
               Nothing that has to be loaded does better with models of one size and one cost;
               where sizes differ it is a good guess and no bound (finding the optimum is NP-hard:
               Chrobak, Woeginger, Makino and Xu, 2012)
belady-cost    knows the future, too, and weighs: the lowest of load seconds / (bytes x requests
               until its next use) leave. No bound either
bound          what no policy can beat, whatever the sizes and costs; see `bound`
"""

import heapq
import math
from collections.abc import Callable
from typing import Final, Protocol

import numpy as np

from services.simulator.costs import Costs
from services.simulator.requests import Numbers, Reals, Requests
from services.simulator.tally import Tally

NEVER: Final = np.iinfo(np.int64).max


class Policy(Protocol):
    """Who leaves. `at` counts requests."""

    def used(self, model: int, at: int) -> None:
        """`model` is in the pool, perhaps since just now."""

    def victim(self, at: int) -> int:
        """Take one out."""


class Lru:
    def __init__(self) -> None:
        self._order: dict[int, None] = {}

    def used(self, model: int, at: int) -> None:
        self._order.pop(model, None)
        self._order[model] = None

    def victim(self, at: int) -> int:
        model = next(iter(self._order))
        del self._order[model]
        return model


class _Ranked:
    """The lowest rank leaves. A rank that has changed stays in the heap until it is met there."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int]] = []
        self._rank: dict[int, float] = {}

    def rank(self, model: int, value: float) -> None:
        self._rank[model] = value
        heapq.heappush(self._heap, (value, model))

    def lowest(self) -> tuple[float, int]:
        while True:
            value, model = heapq.heappop(self._heap)
            if self._rank.get(model) == value:
                del self._rank[model]
                return value, model


class Gdsf(_Ranked):
    def __init__(self, costs: Costs) -> None:
        super().__init__()
        self._worth = (costs.load_seconds / costs.bytes).tolist()
        self._uses: dict[int, int] = {}
        self._age = 0.0

    def used(self, model: int, at: int) -> None:
        self._uses[model] = self._uses.get(model, 0) + 1
        self.rank(model, self._age + self._uses[model] * self._worth[model])

    def victim(self, at: int) -> int:
        self._age, model = self.lowest()
        del self._uses[model]
        return model


class Belady(_Ranked):
    def __init__(self, following: Numbers) -> None:
        super().__init__()
        self._following = following.tolist()

    def used(self, model: int, at: int) -> None:
        self.rank(model, -self._following[at])

    def victim(self, at: int) -> int:
        return self.lowest()[1]


class BeladyCost:
    def __init__(self, costs: Costs, following: Numbers) -> None:
        self._following = following.tolist()
        self._worth = costs.load_seconds / costs.bytes
        self._next = np.full(len(costs.bytes), math.nan)  # of those in the pool

    def used(self, model: int, at: int) -> None:
        following = self._following[at]
        self._next[model] = math.inf if following == NEVER else following

    def victim(self, at: int) -> int:
        model = int(np.nanargmin(self._worth / (self._next - at)))
        self._next[model] = math.nan
        return model


Make = Callable[[Requests, Costs], Policy]

POLICIES: Final[dict[str, Make]] = {
    "lru": lambda requests, costs: Lru(),
    "gdsf": lambda requests, costs: Gdsf(costs),
    "belady": lambda requests, costs: Belady(following(requests.models)),
    "belady-cost": lambda requests, costs: BeladyCost(costs, following(requests.models)),
}


def pooled(policy: Policy, requests: Requests, costs: Costs, budget: int, warm: int = 0) -> Tally:
    """Run `requests` through one pool of `budget` bytes; the first `warm` are not counted.

    A model larger than `budget` is refused.
    """
    tally = Tally()
    sizes, load_seconds = costs.bytes.tolist(), costs.load_seconds.tolist()
    free = budget
    ready: dict[int, float] = {}  # when what is in the pool is loaded
    steps = zip(requests.times.tolist(), requests.models.tolist(), strict=True)
    for at, (now, model) in enumerate(steps):
        if at == warm:
            tally = Tally()
        size = sizes[model]
        tally.requests += 1
        tally.bytes_requested += size
        if size > budget:
            tally.refused += 1
            continue
        since = ready.get(model)
        if since is None:
            while size > free:
                gone = policy.victim(at)
                free += sizes[gone]
                del ready[gone]
                tally.evictions += 1
            free -= size
            ready[model] = now + load_seconds[model]
            tally.cold_starts += 1
            tally.load_seconds += load_seconds[model]
            tally.waited(load_seconds[model])
        elif since > now:
            tally.waited(since - now)
        else:
            tally.hits += 1
            tally.bytes_hit += size
        policy.used(model, at)
    return tally if warm < len(requests.times) else Tally()


def bound(requests: Requests, costs: Costs, budget: int, warm: int = 0) -> Tally:
    """The most hits and bytes hit, and the least loads and load seconds, that a pool of `budget`
    bytes can have; each for itself, no policy needs to reach them all.

    PFOO-L of Berger, Beckmann and Harchol-Balter, "Practical bounds on optimal caching with
    variable object sizes" (2018): to hit, a model must have been kept since it was last asked for,
    which takes its bytes for so many requests. All that was kept took at most `budget` bytes for as
    long as the trace is, so those that give most for what they take are the most there can be; the
    last of them counts in part.
    """
    models = requests.models
    ends = following(models)
    kept = np.flatnonzero((ends != NEVER) & (ends >= warm))
    model = models[kept]
    took = costs.bytes[model].astype(np.float64) * (ends[kept] - np.maximum(kept, warm))
    room = float(budget) * max(0, len(models) - warm)
    counted = models[warm:]
    tally = Tally(requests=len(counted), bytes_requested=int(costs.bytes[counted].sum()))
    tally.hits = math.floor(_most(np.ones(len(kept)), took, room) + 1e-6)
    tally.bytes_hit = math.floor(_most(costs.bytes[model].astype(np.float64), took, room))
    saved = _most(costs.load_seconds[model], took, room)
    tally.cold_starts = tally.requests - tally.hits
    tally.load_seconds = max(0.0, float(costs.load_seconds[counted].sum()) - saved)
    tally.waited_seconds = tally.load_seconds
    return tally


def _most(gain: Reals, took: Reals, room: float) -> float:
    """The most that `gain` can add up to within `room`: a knapsack whose things may be cut."""
    worth = np.divide(gain, took, out=np.full(len(gain), math.inf), where=took > 0)
    order = np.argsort(-worth)
    filled = np.cumsum(took[order])
    whole = int(np.searchsorted(filled, room, side="right"))
    total = float(gain[order[:whole]].sum())
    if whole < len(order):
        left = room - (float(filled[whole - 1]) if whole else 0.0)
        total += float(gain[order[whole]]) * left / float(took[order[whole]])
    return total


def following(models: Numbers) -> Numbers:
    """For each request the number of the next one for the same model, or NEVER."""
    order = np.argsort(models, kind="stable")
    found = np.full(len(models), NEVER, np.int64)
    same = models[order[:-1]] == models[order[1:]]
    found[order[:-1][same]] = order[1:][same]
    return found
