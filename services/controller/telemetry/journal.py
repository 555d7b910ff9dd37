"""The journal: what happened and why, within bounds."""

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncGenerator, Iterable, Iterator
from itertools import chain
from typing import Final, NamedTuple

import structlog

from services.controller.core.entities import Unit
from services.controller.core.events import Kind, Record, Weighed
from shoal.controller.v1 import types_pb2
from shoal.names import parse_model_name, parse_version_name, server_name, version_name

LENGTH: Final = 10_000  # events kept
LENGTH_PER_MODEL: Final = 20  # a model's last events, kept even when those above have moved on
MODELS: Final = 2_000  # for the models with the latest events

_WARNINGS: Final = frozenset(
    {
        *(Kind.LOAD_FAILED, Kind.UNEXPECTED, Kind.BROKEN, Kind.SET_ASIDE, Kind.ROUTER_LOST),
        *(Kind.SERVER_LOST, Kind.SERVER_UNUSABLE, Kind.SERVER_DRAINING),
    }
)
_log = structlog.get_logger(__name__)


class Entry(NamedTuple):
    """An event; for an eviction with what was `weighed`: all that could leave, in that order."""

    event: types_pb2.Event
    weighed: tuple[Weighed, ...]


class Journal:
    """The events of one Controller, newest last.

    `epoch`: the Controller's; (epoch, sequence) names an event for good. `counts`: all entries so
    far, by kind. `evictions_by`: all evictions so far, by their reason in a word: "room" for
    another unit, "idle", "headroom", "over_limit", "copies", "request", …
    """

    def __init__(self, epoch: int = 0) -> None:
        self._epoch = epoch
        self._entries: deque[Entry] = deque(maxlen=LENGTH)
        self._of_models: OrderedDict[str, deque[Entry]] = OrderedDict()
        self._sequence = 0
        self.counts: Counter[Kind] = Counter()
        self.evictions_by: Counter[str] = Counter()
        self._wakers: set[asyncio.Event] = set()

    def add(self, record: Record) -> None:
        """Add an entry, log it, and wake those that follow."""
        self._sequence += 1
        self.counts[record.kind] += 1
        if record.why is not None:
            self.evictions_by[record.why.value] += 1
        entry = Entry(self._event(record), record.weighed)
        self._entries.append(entry)
        if record.unit is not None:
            self._keep(record.unit.model, entry)
        for waker in self._wakers:
            waker.set()
        level = _log.warning if record.kind in _WARNINGS else _log.info
        level(
            record.kind.name.lower(),
            reason=record.reason,
            server=record.server or None,
            unit=str(record.unit) if record.unit is not None else None,
        )

    def _event(self, record: Record) -> types_pb2.Event:
        event = types_pb2.Event(
            sequence=self._sequence,
            kind=types_pb2.EventKind.Value(f"EVENT_KIND_{record.kind.name}"),
            server=server_name(record.server) if record.server else "",
            version=version_name(*record.unit) if record.unit is not None else "",
            reason=record.reason,
            for_version=version_name(*record.for_unit) if record.for_unit is not None else "",
            trace_id=record.trace_id,
            epoch=self._epoch,
        )
        event.time.GetCurrentTime()
        return event

    def _keep(self, model: str, entry: Entry) -> None:
        kept = self._of_models.pop(model, None) or deque(maxlen=LENGTH_PER_MODEL)
        kept.append(entry)
        self._of_models[model] = kept
        if len(self._of_models) > MODELS:
            self._of_models.popitem(last=False)

    def newest(self, about: str) -> Iterator[types_pb2.Event]:
        """Yield the events about a model, a version or a server (all for ""), newest first."""
        return (entry.event for entry in self._newest(about))

    def evictions(self, unit: Unit) -> Iterator[Entry]:
        """Yield the evictions of a version, newest first."""
        kind = types_pb2.EVENT_KIND_EVICTING
        return (e for e in self._newest(version_name(*unit)) if e.event.kind == kind)

    def _newest(self, about: str) -> Iterator[Entry]:
        oldest = self._entries[0].event.sequence if self._entries else 0
        own: Iterable[Entry] = self._of_models.get(_model(about), ())
        earlier = [entry for entry in own if entry.event.sequence < oldest]
        both = chain(reversed(self._entries), reversed(earlier))
        return (entry for entry in both if _is_about(entry.event, about))

    async def follow(self, after: int, epoch: int = 0) -> AsyncGenerator[types_pb2.Event, None]:
        """Yield the events with a sequence above `after`, for ever.

        0 stands for new ones only, -1 for all that are kept. `epoch`: the epoch of `after`, 0 for
        this Controller's own; after an event of an earlier epoch come all that are kept.
        """
        seen = self._seen(after, epoch)
        waker = asyncio.Event()
        self._wakers.add(waker)
        try:
            while True:
                for event in self._after(seen):
                    seen = event.sequence
                    yield event
                await waker.wait()
                waker.clear()
        finally:
            self._wakers.discard(waker)

    def _seen(self, after: int, epoch: int) -> int:
        if epoch > self._epoch:  # of a successor: this Controller is about to end
            return self._sequence
        if 0 < epoch < self._epoch or after > self._sequence:
            return 0
        return after or self._sequence

    def _after(self, sequence: int) -> list[types_pb2.Event]:
        """Return the events since then, oldest first."""
        found: list[types_pb2.Event] = []
        for entry in reversed(self._entries):
            if entry.event.sequence <= sequence:
                break
            found.append(entry.event)
        return found[::-1]


def _model(about: str) -> str:
    """Return the model that a name means, alone or with a version; empty where it means none."""
    version = parse_version_name(about)
    return version.model if version is not None else parse_model_name(about) or ""


def _is_about(event: types_pb2.Event, about: str) -> bool:
    if not about or about in (event.server, event.version):
        return True
    return parse_model_name(about) is not None and event.version.startswith(f"{about}/")
