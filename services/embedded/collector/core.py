"""Traces, and the order in which people read them. No I/O, no clock."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["unspecified", "internal", "server", "client", "producer", "consumer"]
Status = Literal["unset", "ok", "error"]


@dataclass(frozen=True, slots=True)
class Span:
    """A span. Ids are lower-case hexadecimal, times are nanoseconds since 1970 by its sender.

    `instance` is the sender's service.instance.id, which for Triton is the server's id. Attributes
    have JSON's types.
    """

    trace_id: str
    span_id: str
    parent_span_id: str
    service: str
    instance: str
    name: str
    kind: Kind
    start_unix_nano: int
    end_unix_nano: int
    status: Status = "unset"
    message: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Row:
    """One span of a trace, in reading order.

    An `orphan`'s parent was not received, so it is shown at the top. If a `critical` span had been
    shorter, the outermost span would have ended earlier.
    """

    span: Span
    depth: int
    orphan: bool
    critical: bool


@dataclass(frozen=True, slots=True)
class Summary:
    """A trace in one line. `root` is the name of its outermost span, the earliest of several."""

    trace_id: str
    root: str
    services: tuple[str, ...]
    start_unix_nano: int
    end_unix_nano: int
    spans: int
    errors: int


def rows(spans: Iterable[Span]) -> list[Row]:
    """Return every span once, parents before their children, siblings by starting time."""
    ordered = sorted(spans, key=lambda span: (span.start_unix_nano, span.span_id))
    known = {span.span_id for span in ordered}
    children = _children(ordered, known)
    tops = [span for span in ordered if span.parent_span_id not in known]
    critical = {span_id for top in tops for span_id in _critical(top, children)}
    shown: set[str] = set()
    found: list[Row] = []
    # Spans that are their own ancestors have no top, so the earliest serves as one.
    for top in (*tops, *ordered):
        for span, depth in _descend(top, children, shown):
            orphan = depth == 0 and span.parent_span_id != ""
            found.append(Row(span, depth, orphan, span.span_id in critical))
    return found


def summary(spans: Iterable[Span]) -> Summary:
    """Summarise a trace of at least one span."""
    found = rows(spans)
    tops = [row.span for row in found if row.depth == 0]
    root = next((span for span in tops if not span.parent_span_id), tops[0])
    return Summary(
        trace_id=root.trace_id,
        root=root.name,
        services=tuple(dict.fromkeys(row.span.service for row in found)),
        start_unix_nano=min(row.span.start_unix_nano for row in found),
        end_unix_nano=max(row.span.end_unix_nano for row in found),
        spans=len(found),
        errors=sum(row.span.status == "error" for row in found),
    )


def _children(ordered: list[Span], known: set[str]) -> Mapping[str, list[Span]]:
    children: dict[str, list[Span]] = defaultdict(list)
    for span in ordered:
        if span.parent_span_id in known:
            children[span.parent_span_id].append(span)
    return children


def _descend(
    top: Span, children: Mapping[str, list[Span]], shown: set[str]
) -> Iterator[tuple[Span, int]]:
    """Yield `top` and what is below it, with depths, except what is in `shown`, which grows."""
    waiting = [(top, 0)]
    while waiting:
        span, depth = waiting.pop()
        if span.span_id in shown:
            continue
        shown.add(span.span_id)
        yield span, depth
        waiting.extend((child, depth + 1) for child in reversed(children.get(span.span_id, ())))


def _critical(top: Span, children: Mapping[str, list[Span]]) -> Iterator[str]:
    """Yield the ids on the path that decided how long `top` took.

    The walk goes backwards from its end: last it waited for the child that ended last, before that
    for the one that ended last before that child began, and so on within each of them.
    """
    waiting = [(top, top.end_unix_nano)]
    while waiting:
        span, until = waiting.pop()
        yield span.span_id
        # A child that outlives its parent counts until the parent's end.
        moment = end = min(until, span.end_unix_nano)
        for child in sorted(
            children.get(span.span_id, ()), key=lambda one: one.end_unix_nano, reverse=True
        ):
            if min(child.end_unix_nano, end) <= moment and child.start_unix_nano < moment:
                waiting.append((child, moment))
                moment = child.start_unix_nano
