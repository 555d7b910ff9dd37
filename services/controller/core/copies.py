"""The number of replicas that a unit needs: more when they are busy for long, fewer when not.

A factor of two lies between what calls for another copy and what lets one go, and each has to last,
so that a load that swings does not make copies come and go.
"""

import math
from dataclasses import dataclass, replace
from typing import Final

from services.controller.core.entities import Batching, ReplicaKey, Unit
from services.controller.core.limits import Limits

SMOOTH_SECONDS: Final = 3.0  # time constant of the moving average


@dataclass(frozen=True, slots=True)
class Pressure:
    """How busy a unit is. `in_flight`: requests on all replicas, smoothed. `queue`: mean seconds in
    the servers' own queues beyond the wait for a batch, smoothed. `busy_since`, `idle_since`: since
    when they have called for another copy, or for one less, in seconds of the engine's clock."""

    at: float
    in_flight: float = 0.0
    queue: float = 0.0
    busy_since: float | None = None
    idle_since: float | None = None


@dataclass(frozen=True, slots=True)
class Adjustment:
    """A change in the number of copies. `by`: 1 for another one, -1 for one less."""

    by: int
    reason: str


class Pressures:
    """How busy the units are, and the servers' own queues."""

    __slots__ = ("by_unit", "queues")

    def __init__(self) -> None:
        #: The pressure on each unit that is in use, or has several copies.
        self.by_unit: dict[Unit, Pressure] = {}
        #: Mean seconds that requests waited in the server's own queue, as of the last look.
        self.queues: dict[ReplicaKey, float] = {}

    def put(self, unit: Unit, pressure: Pressure) -> None:
        self.by_unit[unit] = pressure

    def forget_unit(self, unit: Unit) -> None:
        self.by_unit.pop(unit, None)

    def queue_seen(self, key: ReplicaKey, seconds: float) -> None:
        self.queues[key] = seconds

    def forget_replica(self, key: ReplicaKey) -> None:
        self.queues.pop(key, None)


def step(
    pressure: Pressure,
    in_flight: int,
    queue: float,
    replicas: int,
    limits: Limits,
    now: float,
    batching: Batching | None = None,
) -> Pressure:
    """The pressure `now` that `in_flight` requests are on `replicas` replicas (at least 1), and
    wait `queue` seconds there.

    The time that requests wait for others of their batch is no load, and their number says nothing
    either: divided among more replicas, they would wait longer for a full batch. Only a wait beyond
    that, for an instance that is busy with earlier batches, calls for another copy then.
    """
    weight = 1 - math.exp(-max(0.0, now - pressure.at) / SMOOTH_SECONDS)
    flying = pressure.in_flight + weight * (in_flight - pressure.in_flight)
    waited = max(0.0, queue - batching.delay) if batching is not None else queue
    queued = pressure.queue + weight * (waited - pressure.queue)
    crowded = batching is None and flying / replicas > limits.copy_in_flight
    busy = crowded or queued > limits.copy_queue_seconds
    idle = (
        replicas > 1
        and flying / (replicas - 1) < _idle_below(limits, batching)
        and queued < limits.copy_queue_seconds / 2
    )
    return Pressure(
        now,
        flying,
        queued,
        _since(pressure.busy_since, busy, now),
        _since(pressure.idle_since, idle, now),
    )


def _idle_below(limits: Limits, batching: Batching | None) -> float:
    """The number of requests in flight on each replica below which one may leave: a full batch
    keeps no second replica busy."""
    half = limits.copy_in_flight / 2
    return half if batching is None else max(half, batching.size + 0.5)


def _since(before: float | None, holds: bool, now: float) -> float | None:
    if not holds:
        return None
    return now if before is None else before


def adjustment(
    pressure: Pressure,
    replicas: int,
    least: int,
    most: int,
    limits: Limits,
    now: float,
    batching: Batching | None = None,
) -> Adjustment | None:
    """The change that is due to `replicas` copies, of which at `least` and at `most` so many are
    wanted; None where they are right."""
    if replicas > max(most, least, 1):
        return Adjustment(-1, f"{replicas} copies, but at most {most} are allowed")
    busy, idle = pressure.busy_since, pressure.idle_since
    if busy is not None and now - busy >= limits.copy_up_seconds and replicas < most:
        crowd = f" (more than {limits.copy_in_flight:g})" if batching is None else ""
        beyond = "" if batching is None else " beyond the wait for a batch"
        return Adjustment(
            1,
            f"{pressure.in_flight / replicas:.1f} requests in flight on each of {replicas}{crowd}, "
            f"{pressure.queue * 1000:.0f} ms in its queue{beyond}, for {now - busy:.1f} s",
        )
    if idle is not None and now - idle >= limits.copy_down_seconds and replicas > max(least, 1):
        return Adjustment(
            -1,
            f"with one copy less, each would have had {pressure.in_flight / (replicas - 1):.1f} "
            f"requests in flight (less than {_idle_below(limits, batching):g}) "
            f"for {now - idle:.0f} s",
        )
    return None


def again(pressure: Pressure) -> Pressure:
    """The pressure after a change: the next one has to be called for anew."""
    return replace(pressure, busy_since=None, idle_since=None)
