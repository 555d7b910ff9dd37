"""Triton's statistics of a model: what the Controller reads from them.

A row is an inference.ModelStatistics.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Self

from services.controller.core.entities import Unit
from services.controller.core.memory import Memory
from shoal.names import parse_version

# A row's memory_usage says "GPU" with the device's number, or where on the host the memory is.
GPU_MEMORY: Final = "GPU"


@dataclass(frozen=True, slots=True)
class Statistics:
    """The counts of a unit since it was loaded.

    `queued`: requests that left its queue; `queue_seconds`: what they spent there, all together.
    `memory`: bytes by resource, where the backend tells. `last_inference`: seconds since the epoch,
    0 when there was none.
    """

    queued: int
    queue_seconds: float
    memory: Memory
    last_inference: float = 0.0

    @classmethod
    def of(cls, row: Any) -> Self:
        queue = row.inference_stats.queue
        memory, last = memory_of(row.memory_usage), row.last_inference / 1000
        return cls(queue.count, queue.ns / 1e9, memory, last)


def by_unit(rows: Iterable[Any]) -> dict[Unit, Any]:
    """Return the rows by their unit, without those whose version is no number."""
    found = {}
    for row in rows:
        version = parse_version(row.version)
        if version is not None:
            found[Unit(row.name, version)] = row
    return found


def memory_of(usage: Iterable[Any]) -> Memory:
    """Return the bytes by resource that a row's `memory_usage` tells."""
    found: dict[str, int] = {}
    for part in usage:
        resource = f"gpu:{part.id}" if part.type.upper() == GPU_MEMORY else "ram"
        found[resource] = found.get(resource, 0) + part.byte_size
    return found
