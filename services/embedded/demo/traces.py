"""Where the demo's traces went, and which of them arrived."""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from services.embedded.settings import load
from shoal.cli import collector

Span = Mapping[str, Any]

_ASK_WITHIN: Final = 5.0  # seconds
_POLL: Final = 0.1  # seconds
_TRITONS_WITHIN: Final = 2.0  # seconds
_LISTED: Final = 1000  # the most that the collector lists
_OTLP_DEFAULT: Final = "http://localhost:4317"

# The last words of the names of the spans that every cold request has, all the way to Triton.
# Triton's own are not among them: it misses about one traceparent in ten (docs/decisions/0009).
COLD: Final = frozenset(
    {"ModelInfer", "make_resident", "MakeResident", "queue", "reserve", "load", "forward"}
)


TRITONS: Final = frozenset({"InferRequest", "compute"})


def elsewhere(environment: Mapping[str, str]) -> str | None:
    """Return where a stack without its own collector sends its traces, or None for nowhere."""
    settings = load({}, environment, None)
    disabled = environment.get("OTEL_SDK_DISABLED", "").lower() == "true"
    unsent = environment.get("OTEL_TRACES_EXPORTER") == "none"
    if settings.no_otlp or (settings.otlp is None and (disabled or unsent)):
        return None
    named = (
        str(settings.otlp or ""),
        environment.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"),
        environment.get("OTEL_EXPORTER_OTLP_ENDPOINT"),
    )
    return next(filter(None, named), _OTLP_DEFAULT)


def whole(address: str, trace_id: str, wanted: Iterable[str], within: float) -> Sequence[Span]:
    """Return a trace's spans once all of `wanted` are among them, or after `within` seconds.

    `wanted` are the last words of span names. Raises shoal.cli.collector.CollectorAway.
    """
    deadline = time.monotonic() + within
    while True:
        found = collector.get(address, f"/api/traces/{trace_id}", _ASK_WITHIN)
        spans: list[Span] = found["spans"] if found else []
        if not missing(spans, wanted) or time.monotonic() > deadline:
            return spans
        time.sleep(_POLL)


def has_tritons(address: str, trace_id: str) -> bool:
    """Return whether Triton's own spans of the request have arrived.

    Raises shoal.cli.collector.CollectorAway.
    """
    return not missing(whole(address, trace_id, TRITONS, _TRITONS_WITHIN), TRITONS)


def missing(spans: Iterable[Span], wanted: Iterable[str]) -> set[str]:
    """Return those of `wanted` that name no span."""
    return set(wanted) - {span["name"].rpartition("/")[2] for span in spans}


def received(address: str, trace_ids: Sequence[str], within: float) -> dict[str, int]:
    """Return the number of spans by trace, once every trace has some, or after `within` seconds.

    Raises shoal.cli.collector.CollectorAway.
    """
    deadline = time.monotonic() + within
    while True:
        listed = collector.get(address, f"/api/traces?limit={_LISTED}", _ASK_WITHIN) or {}
        counts = {one["trace_id"]: int(one["spans"]) for one in listed.get("traces", ())}
        found = {trace_id: counts[trace_id] for trace_id in trace_ids if trace_id in counts}
        if len(found) == len(trace_ids) or time.monotonic() > deadline:
            return found
        time.sleep(_POLL)
