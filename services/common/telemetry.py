"""Traces: who asked, where it went, what it waited for.

Spans are made with the OpenTelemetry API itself (`opentelemetry.trace.get_tracer`); this module
sets up what becomes of them, from the standard `OTEL_*` variables, and says *before* a span is
built whether it would be kept, since a span costs more than forwarding a request does:

    parent = telemetry.parent_context(metadata)
    if telemetry.sampled(parent):
        span = tracer.start_span("infer", context=parent)

Without an endpoint and without `OTEL_TRACES_EXPORTER` there is no tracing: the SDK isn't even
imported.
"""

import logging
import random
from collections.abc import Collection
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from services.common import variables

if TYPE_CHECKING:
    try:
        from services.common.telemetry_sdk import Pipeline
    except ValueError as error:  # the SDK reads OTEL_SPAN_* when imported; the text names it
        raise variables.BadVariable(str(error)) from error

# What a client sends as traceparent is its own affair: no warning for each bad one.
_QUIET: Final = ("opentelemetry.trace", "opentelemetry.exporter")
_LONGEST_HEADER: Final = 512  # characters, for traceparent and tracestate each
ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")

_w3c: Final = TraceContextTextMapPropagator()
_log = logging.getLogger(__name__)

# The answer that `sampled` gave in this context, for the root span that follows it: the trace id
# it drew, or REFUSED. The root takes the id over, so that the sampler, asked again inside the SDK,
# sees the same id and says the same.
REFUSED: Final = 0
drawn: Final[ContextVar[int | None]] = ContextVar("drawn", default=None)

_pipeline: "Pipeline | None" = None


def configure(service: str) -> None:
    """Start tracing as `shoal-<service>`, if the OTEL_* variables ask for it.

    Once for a process: a later call changes nothing. Raises variables.BadVariable.
    """
    global _pipeline  # one tracer provider for a process is OpenTelemetry's own rule
    if not _wanted() or _pipeline is not None:
        return
    try:
        from services.common.telemetry_sdk import Pipeline
    except ValueError as error:  # the SDK reads OTEL_SPAN_* when imported; the text names it
        raise variables.BadVariable(str(error)) from error

    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
    _pipeline = Pipeline(service)


def shutdown() -> None:
    """Send the spans that are left, for at most a few seconds; tracing is over then."""
    if _pipeline is not None and not _pipeline.close():
        _log.warning("the last spans were not sent: their receiver does not answer")


def enabled() -> bool:
    return _pipeline is not None and not _pipeline.closed


def parent_context(metadata: Collection[tuple[str, str | bytes]]) -> Context | None:
    """The caller's span, from a valid `traceparent` (and `tracestate`); None without one."""
    for key, value in metadata:
        if key == "traceparent":
            return _extract(value, metadata)
    return None


def sampled(parent: Context | None) -> bool:
    """Whether a span started next, with the same parent and in the same task, is recorded.

    `parent` None stands for the current span, as it does in `start_span`. After a refusal, root
    spans that code further down starts in this task are dropped too.
    """
    if _pipeline is None or _pipeline.closed:
        return False
    caller = trace.get_current_span(parent).get_span_context()
    trace_id = caller.trace_id if caller.is_valid else random.getrandbits(128) or 1
    kept = _pipeline.keeps(parent, trace_id)
    drawn.set(REFUSED if not kept else None if caller.is_valid else trace_id)
    return kept


def propagation(span: Span) -> tuple[tuple[str, str], ...]:
    """The gRPC metadata that makes the next service's spans children of `span`.

    Empty unless the span is recorded: Triton traces whatever comes with a traceparent.
    """
    context = span.get_span_context()
    if not span.is_recording() or not context.trace_flags.sampled:
        return ()
    traceparent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    if context.trace_state:
        return ("traceparent", traceparent), ("tracestate", context.trace_state.to_header())
    return (("traceparent", traceparent),)


def trace_id(span: Span) -> str:
    """32 hexadecimal digits, or "" for a span that belongs to no trace."""
    context = span.get_span_context()
    return f"{context.trace_id:032x}" if context.is_valid else ""


def _wanted() -> bool:
    if variables.flag("OTEL_SDK_DISABLED"):
        return False
    exporters = variables.text("OTEL_TRACES_EXPORTER")
    if exporters is not None:
        return exporters.lower() != "none"
    return any(variables.text(name) for name in ENDPOINTS)


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
