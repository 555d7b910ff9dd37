"""The newest traces, in memory."""

from collections import OrderedDict
from collections.abc import Iterable

from services.embedded.collector.core import Span, Summary, summary


class TraceStore:
    """Up to `max_spans` spans in up to `max_traces` traces.

    When either is exceeded, the trace that arrived first is dropped as a whole. A trace that would
    fill the store by itself loses its further spans. A span that is sent twice counts once.

    `dropped_spans` includes those of the `dropped_traces`.
    """

    def __init__(self, max_spans: int, max_traces: int) -> None:
        self._max_spans = max_spans
        self._max_traces = max_traces
        self._traces: OrderedDict[str, dict[str, Span]] = OrderedDict()
        self.spans = 0
        self.dropped_spans = 0
        self.dropped_traces = 0

    @property
    def traces(self) -> int:
        return len(self._traces)

    def add(self, spans: Iterable[Span]) -> None:
        for span in spans:
            self._add(span)

    def trace(self, trace_id: str) -> list[Span]:
        """Return the spans of a trace so far, in order of arrival; none if it is unknown."""
        return list(self._traces.get(trace_id, {}).values())

    def newest(self, limit: int) -> list[Summary]:
        """Return up to `limit` traces, the newest first."""
        chosen = list(reversed(self._traces.values()))[:limit]
        return [summary(trace.values()) for trace in chosen]

    def _add(self, span: Span) -> None:
        trace = self._traces.get(span.trace_id)
        if trace is None:
            if len(self._traces) == self._max_traces:
                self._drop(next(iter(self._traces)))
            trace = self._traces[span.trace_id] = {}
        if span.span_id not in trace:
            if self.spans == self._max_spans and not self._make_room(span.trace_id):
                self.dropped_spans += 1
                return
            self.spans += 1
        trace[span.span_id] = span

    def _make_room(self, but: str) -> bool:
        """Drop the oldest trace other than `but`; False if there is none."""
        oldest = next((trace_id for trace_id in self._traces if trace_id != but), None)
        if oldest is None:
            return False
        self._drop(oldest)
        return True

    def _drop(self, trace_id: str) -> None:
        size = len(self._traces.pop(trace_id))
        self.spans -= size
        self.dropped_spans += size
        self.dropped_traces += 1
