"""gRPC metadata of a call: the caller's headers and the current trace context."""

import sys
from collections.abc import Mapping

Headers = Mapping[str, str | bytes]
Metadata = tuple[tuple[str, str | bytes], ...]


def metadata_of(headers: Headers | None) -> Metadata:
    """Return the caller's headers, and the trace context of the current span where there is one."""
    given = {name.lower(): value for name, value in (headers or {}).items()}
    return tuple({**_trace_context(), **given}.items())


def _trace_context() -> dict[str, str]:
    """Return W3C traceparent and tracestate where the program uses OpenTelemetry's API."""
    if "opentelemetry.trace" not in sys.modules:
        return {}
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier
