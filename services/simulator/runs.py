"""One run of the residency engine over a trace."""

import copy
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from services.simulator.costs import Costs
from services.simulator.requests import Requests, Trace
from services.simulator.tally import Tally
from services.simulator.world import Hardware, Spent, World

ROUTINE: Final = ("RouterUsed", "Tick", "Due")  # comes whether anything was missed or not


@dataclass(frozen=True, slots=True)
class Case:
    """`trace`: begins anew at every call. `requests`: how many there are, the first `warm` of which
    are not counted. `resident`: models that are on the servers before, the newest first."""

    name: str
    trace: Callable[[], Trace]
    requests: int
    warm: int
    hardware: Hardware
    costs: Costs
    resident: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Speed:
    """Of the engine: `cpu_seconds` of the process for `decisions` requests, the simulator's own
    work included, and the engine's time by kind of event."""

    decisions: int
    cpu_seconds: float
    spent: dict[str, Spent] = field(default_factory=dict)

    @property
    def decisions_per_second(self) -> float:
        return _rate(self.decisions, self.cpu_seconds)

    @property
    def engine_seconds(self) -> float:
        return sum(spent.seconds for spent in self.spent.values())

    @property
    def events_per_second(self) -> float:
        return _rate(sum(spent.events for spent in self.spent.values()), self.engine_seconds)

    @property
    def misses_per_second(self) -> float:
        """Loads a second, each with all events from the first want to READY, and the unloads."""
        loads = self.spent.get("Loaded", Spent()).events
        seconds = sum(s.seconds for name, s in self.spent.items() if name not in ROUTINE)
        return _rate(loads, seconds)


class Row(NamedTuple):
    """`policy`: such as "engine lru" or "pool belady"."""

    trace: str
    policy: str
    tally: Tally
    speed: Speed | None = None


Step = Callable[[int], None]


def engine(case: Case, policy: str, step: Step = lambda requests: None) -> Row:
    """Run the real engine. `step` is told how many requests more are done."""
    world = World(case.hardware, case.costs, policy, case.resident)
    gc.collect()  # what earlier runs left is not this one's to clear away
    began = time.process_time()
    for counted, chunk in _split(case.trace(), case.warm):
        if counted == 0:
            world.reset()
            began = time.process_time()
        world.serve(chunk)
        step(len(chunk.times))
    seconds = time.process_time() - began
    spent = copy.deepcopy(world.figures.spent)
    world.finish()  # hardly anything happens any more: left out of the speed
    tally = world.figures.tally
    speed = Speed(tally.requests, seconds, spent)
    return Row(case.name, f"engine {policy}", tally, speed)


def _split(trace: Trace, warm: int) -> Iterator[tuple[int, Requests]]:
    """The trace, cut where counting begins: how many were counted before, -1 for none."""
    counted = -1 if warm else 0
    for chunk in trace:
        count = len(chunk.times)
        if counted < 0 and warm < count:
            if warm:
                yield -1, Requests(chunk.times[:warm], chunk.models[:warm])
            chunk = Requests(chunk.times[warm:], chunk.models[warm:])
            counted = 0
        elif counted < 0:
            warm -= count
        yield counted, chunk
        if counted >= 0:
            counted += len(chunk.times)


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds else 0.0
