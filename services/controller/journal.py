"""What happened and why, newest last; bounded."""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator
from typing import Final

import structlog

from services.controller.core.events import Kind, Record
from shoal.controller.v1 import types_pb2
from shoal.names import parse_model_name, server_name, version_name

LENGTH: Final = 10_000  # events kept

_WARNINGS: Final = frozenset(
    {Kind.LOAD_FAILED, Kind.SERVER_LOST, Kind.SERVER_UNUSABLE, Kind.UNEXPECTED, Kind.ROUTER_LOST}
)
_log = structlog.get_logger(__name__)


class Journal:
    def __init__(self) -> None:
        self._events: deque[types_pb2.Event] = deque(maxlen=LENGTH)
        self._sequence = 0
        self.counts: Counter[Kind] = Counter()
        self._wakers: set[asyncio.Event] = set()

    def add(self, record: Record) -> None:
        self._sequence += 1
        self.counts[record.kind] += 1
        event = types_pb2.Event(
            sequence=self._sequence,
            kind=types_pb2.EventKind.Value(f"EVENT_KIND_{record.kind.name}"),
            server=server_name(record.server) if record.server else "",
            version=version_name(*record.unit) if record.unit is not None else "",
            reason=record.reason,
            for_version=version_name(*record.for_unit) if record.for_unit is not None else "",
            trace_id=record.trace_id,
        )
        event.time.GetCurrentTime()
        self._events.append(event)
        for waker in self._wakers:
            waker.set()
        level = _log.warning if record.kind in _WARNINGS else _log.info
        level(
            record.kind.name.lower(),
            reason=record.reason,
            server=record.server or None,
            unit=str(record.unit) if record.unit is not None else None,
        )

    def newest(self, about: str) -> Iterator[types_pb2.Event]:
        """Events about a model, a version or a server (all for ""), the newest first."""
        return (event for event in reversed(self._events) if _is_about(event, about))

    async def follow(self, after: int) -> AsyncIterator[types_pb2.Event]:
        """Events with a sequence above `after` (0: only new ones), for ever."""
        seen = after or self._sequence
        waker = asyncio.Event()
        self._wakers.add(waker)
        try:
            while True:
                for event in [event for event in self._events if event.sequence > seen]:
                    seen = event.sequence
                    yield event
                await waker.wait()
                waker.clear()
        finally:
            self._wakers.discard(waker)


def _is_about(event: types_pb2.Event, about: str) -> bool:
    if not about or about in (event.server, event.version):
        return True
    return parse_model_name(about) is not None and event.version.startswith(f"{about}/")
