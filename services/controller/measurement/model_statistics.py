"""Triton's counters of every unit, added up over servers and over lives.

A life is what a unit counts on one server from one load to the next; Triton's counters begin at
zero with each. A row is an inference.ModelStatistics.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from tritonclient.grpc import service_pb2

from services.controller.core.entities import ReplicaKey, Unit

_COUNTERS: Final = ("inference_count", "execution_count")


class Totals:
    """The sums over all lives.

    They never go down, whatever becomes of servers and units, as long as every server's counters
    are taken in in the order in which they were read.
    """

    def __init__(self) -> None:
        self._living: dict[str, dict[Unit, Any]] = {}
        self._own: dict[ReplicaKey, Any] = {}
        self._ended: dict[Unit, Any] = {}

    def all_seen(self, server: str, rows: Mapping[Unit, Any]) -> None:
        """Take in the rows of all that is READY on the server."""
        here = self._living.setdefault(server, {})
        for unit in here.keys() - rows.keys():
            self._end(unit, here.pop(unit))
        self.seen(server, rows)

    def seen(self, server: str, rows: Mapping[Unit, Any]) -> None:
        """Take in the rows of some units on the server."""
        here = self._living.setdefault(server, {})
        for unit, row in rows.items():
            now = self._asked(ReplicaKey(server, unit), row)
            if unit in here and _fell(here[unit], now):
                self._end(unit, here[unit])
            here[unit] = now

    def own(self, server: str, rows: Mapping[Unit, Any]) -> None:
        """Leave out what the units have counted on the server before any client asked them."""
        for unit, row in rows.items():
            self._own[ReplicaKey(server, unit)] = row

    def _asked(self, key: ReplicaKey, row: Any) -> Any:
        """Return the row without what was counted before any client asked."""
        own = self._own.get(key)
        if own is None:
            return row
        if _fell(own, row):
            del self._own[key]
            return row
        asked = service_pb2.ModelStatistics()
        asked.CopyFrom(row)
        _add(asked, own, -1)
        batches = [batch for batch in asked.batch_stats if batch.compute_infer.count]
        del asked.batch_stats[:]
        asked.batch_stats.extend(batches)
        if not asked.inference_stats.success.count:
            asked.last_inference = 0
        return asked

    def begins(self, key: ReplicaKey) -> None:
        """Begin a new life of the unit, which is about to be loaded there."""
        self._own.pop(key, None)
        before = self._living.get(key.server, {}).pop(key.unit, None)
        if before is not None:
            self._end(key.unit, before)

    def counted(self) -> set[Unit]:
        """Return every unit that has counters."""
        return set(self._ended).union(*self._living.values())

    def forget(self, units: Iterable[Unit]) -> None:
        """Drop what the units counted in lives that have ended."""
        for unit in units:
            self._ended.pop(unit, None)

    def of(self, unit: Unit) -> Any:
        """Return a row with all that was counted of the unit, and the memory that it takes.

        What was never counted is set to zero, as Triton does, for clients that read JSON expect it.
        """
        total = service_pb2.ModelStatistics(name=unit.model, version=str(unit.version))
        for field in total.inference_stats.DESCRIPTOR.fields:
            getattr(total.inference_stats, field.name).SetInParent()
        lives = [here[unit] for here in self._living.values() if unit in here]
        for life in lives:
            _add_memory(total, life.memory_usage)
        for life in [*lives, *([self._ended[unit]] if unit in self._ended else [])]:
            _add(total, life)
        return total

    def _end(self, unit: Unit, life: Any) -> None:
        ended = self._ended.get(unit)
        if ended is None:
            ended = service_pb2.ModelStatistics(name=unit.model, version=str(unit.version))
            self._ended[unit] = ended
        _add(ended, life)


def _fell(before: Any, now: Any) -> bool:
    """Return whether a counter is lower than before: it has begun anew in between."""
    if any(getattr(now, name) < getattr(before, name) for name in _COUNTERS):
        return True
    return any(
        getattr(now.inference_stats, field.name).count < duration.count
        for field, duration in before.inference_stats.ListFields()
    )


def _add(total: Any, life: Any, sign: int = 1) -> None:
    """Add `life` to `total`, or with `sign` -1 subtract it.

    Nothing falls below zero, as it would where somebody else has loaded the unit anew and its probe
    took less time.
    """
    total.last_inference = max(total.last_inference, life.last_inference)
    for name in _COUNTERS:
        setattr(total, name, max(0, getattr(total, name) + sign * getattr(life, name)))
    _add_durations(total.inference_stats, life.inference_stats, sign)
    sizes = {batch.batch_size: batch for batch in total.batch_stats}
    for batch in life.batch_stats:
        into = sizes.get(batch.batch_size)
        if into is None:
            total.batch_stats.add().CopyFrom(batch)
        else:
            _add_durations(into, batch, sign)
    for key, responses in life.response_stats.items():
        _add_durations(total.response_stats[key], responses, sign)


def _add_durations(total: Any, more: Any, sign: int) -> None:
    """Add every field that is an inference.StatisticDuration."""
    for field, duration in more.ListFields():
        if field.message_type is not None:
            into = getattr(total, field.name)
            into.count = max(0, into.count + sign * duration.count)
            into.ns = max(0, into.ns + sign * duration.ns)


def _add_memory(total: Any, usage: Iterable[Any]) -> None:
    places = {(row.type, row.id): row for row in total.memory_usage}
    for row in usage:
        into = places.get((row.type, row.id))
        if into is None:
            total.memory_usage.add().CopyFrom(row)
        else:
            into.byte_size += row.byte_size
