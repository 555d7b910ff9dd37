"""The time that requests spend in the servers' own queues."""

from collections.abc import Callable, Mapping
from typing import Any

from services.controller.core import events as ev
from services.controller.core.entities import Unit
from services.controller.triton.statistics import Statistics


class QueueTimes:
    """Feeds the mean time in queue of a server's units between two readings of its counters."""

    def __init__(self, feed: Callable[[ev.QueuesSeen], None]) -> None:
        self._feed = feed
        self._before: dict[str, Mapping[Unit, Statistics]] = {}

    def seen(self, server: str, rows: Mapping[Unit, Any]) -> None:
        """Take in a reading: an inference.ModelStatistics of every unit that is READY there."""
        now = {unit: Statistics.of(row) for unit, row in rows.items()}
        self._feed(ev.QueuesSeen(server, waits(self._before.get(server, {}), now)))
        self._before[server] = now


def waits(
    before: Mapping[Unit, Statistics], now: Mapping[Unit, Statistics]
) -> Mapping[Unit, float]:
    """Return the mean seconds in queue of the requests since `before`, of units that had any.

    A unit's counters begin anew when it is loaded.
    """
    found: dict[Unit, float] = {}
    for unit, statistics in now.items():
        count, seconds = statistics.queued, statistics.queue_seconds
        last = before.get(unit)
        if last is not None and last.queued <= count and last.queue_seconds <= seconds:
            count, seconds = count - last.queued, seconds - last.queue_seconds
        if count > 0:
            found[unit] = seconds / count
    return found
