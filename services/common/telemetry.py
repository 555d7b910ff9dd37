"""Traces: who asked, where the request went, what it waited for.

Spans are made with the OpenTelemetry API itself (`opentelemetry.trace.get_tracer`). This module
sets up where they go, from the standard `OTEL_*` variables. It also says *before* a span is built
whether it would be kept, because a span costs more than forwarding a request:

    parent = telemetry.parent_context(metadata)
    if telemetry.sampled(parent):
        span = tracer.start_span("infer", context=parent)

Without an endpoint and without `OTEL_TRACES_EXPORTER` there is no tracing, and the SDK is not even
imported.
"""

import logging
import random
from collections.abc import Collection
from typing import TYPE_CHECKING, Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from services.common import variables
from services.common.sampling import REFUSED, RecordedSpan, drawn
from services.common.variables import OTLP_ENDPOINTS

if TYPE_CHECKING:
    from services.common.telemetry_sdk import Pipeline

# A client may send any traceparent: bad ones are not worth a warning each.
_QUIET: Final = ("opentelemetry.trace", "opentelemetry.exporter")
_LONGEST_HEADER: Final = 512  # characters, for traceparent and tracestate each

_w3c: Final = TraceContextTextMapPropagator()
_log = logging.getLogger(__name__)

_pipeline: "Pipeline | None" = None


def configure(service: str) -> None:
    """Start tracing as `shoal-<service>` if the OTEL_* variables ask for it.

    Only the first call in a process has an effect. Raises variables.BadVariable.
    """
    global _pipeline  # OpenTelemetry itself allows one tracer provider per process
    if not _wanted() or _pipeline is not None:
        return
    try:
        from services.common.telemetry_sdk import Pipeline
    except ValueError as error:  # the SDK reads OTEL_SPAN_* on import, and the text names it
        raise variables.BadVariable(str(error)) from error

    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
    _pipeline = Pipeline(service)


def shutdown() -> None:
    """Send the remaining spans, for a few seconds at most, and end tracing."""
    if _pipeline is not None and not _pipeline.close():
        _log.warning("the last spans were not sent: their receiver does not answer")


def enabled() -> bool:
    """Return whether this process traces at all."""
    return _pipeline is not None and not _pipeline.closed


def parent_context(metadata: Collection[tuple[str, str | bytes]]) -> Context | None:
    """Return the caller's span, from a valid `traceparent` (and `tracestate`), or None."""
    for key, value in metadata:
        if key == "traceparent":
            return _extract(value, metadata)
    return None


def sampled(parent: Context | None) -> bool:
    """Return whether the next span with this parent in this task will be recorded.

    None stands for the current span, as in `start_span`. After a refusal, root spans that the same
    task starts further down are dropped too.
    """
    if _pipeline is None or _pipeline.closed:
        return False
    caller = trace.get_current_span(parent).get_span_context()
    trace_id = caller.trace_id if caller.is_valid else random.getrandbits(128) or 1
    kept = _pipeline.keeps(parent, trace_id)
    drawn.set(REFUSED if not kept else None if caller.is_valid else trace_id)
    return kept


def root_ratio() -> float:
    """Return the share of requests without a caller's span that are traced."""
    return _pipeline.root_ratio if _pipeline is not None and not _pipeline.closed else 0.0


def record(span: RecordedSpan) -> None:
    """Send a span that another process has measured, whatever the sampler says."""
    if _pipeline is not None and not _pipeline.closed:
        _pipeline.record(span)


def propagation(span: Span) -> tuple[tuple[str, str], ...]:
    """Return the gRPC metadata that makes the next service's spans children of `span`.

    It is empty unless the span is recorded: Triton traces every request with a traceparent.
    """
    context = span.get_span_context()
    if not span.is_recording() or not context.trace_flags.sampled:
        return ()
    traceparent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    if context.trace_state:
        return ("traceparent", traceparent), ("tracestate", context.trace_state.to_header())
    return (("traceparent", traceparent),)


def trace_id(span: Span) -> str:
    """Return the trace's id as 32 hexadecimal digits, or "" for a span without a trace."""
    context = span.get_span_context()
    return f"{context.trace_id:032x}" if context.is_valid else ""


def _wanted() -> bool:
    if variables.flag("OTEL_SDK_DISABLED"):
        return False
    exporters = variables.text("OTEL_TRACES_EXPORTER")
    if exporters is not None:
        return exporters.lower() != "none"
    return any(variables.text(name) for name in OTLP_ENDPOINTS)


def _extract(
    traceparent: str | bytes, metadata: Collection[tuple[str, str | bytes]]
) -> Context | None:
    if not isinstance(traceparent, str) or len(traceparent) > _LONGEST_HEADER:
        return None
    carrier = {"traceparent": traceparent}
    states = [value for key, value in metadata if key == "tracestate" and isinstance(value, str)]
    if 0 < len(state := ",".join(states)) <= _LONGEST_HEADER:
        carrier["tracestate"] = state
    return _w3c.extract(carrier, Context()) or None
