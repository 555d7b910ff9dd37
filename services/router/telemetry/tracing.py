"""The Router's spans: one for each request as it came in, with its outcome."""

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import trace

from services.common import telemetry
from services.common.errors import ShoalError
from services.common.status import grpc_code
from services.router.core.routing.metadata import Metadata
from services.router.core.routing.routes import Target

_tracer = trace.get_tracer("shoal.router")


@contextmanager
def server_span(name: str, metadata: Metadata) -> Iterator[None]:
    """Run inside a server's span within the caller's trace, if that trace is sampled."""
    if not telemetry.enabled():
        yield
        return
    parent = telemetry.parent_context(tuple(metadata))
    if not telemetry.sampled(parent):
        yield
        return
    with _tracer.start_as_current_span(
        name,
        context=parent,
        kind=trace.SpanKind.SERVER,
        record_exception=False,
        set_status_on_exception=False,
    ):
        yield


def describe(target: Target, request_id: str, *, cold: bool) -> None:
    """Add what was asked for to the current span."""
    span = trace.get_current_span()
    if span.is_recording():
        if request_id:
            span.set_attribute("shoal.request_id", request_id)
        span.set_attributes(
            {
                "shoal.model": target.model,
                "shoal.version": target.version,
                "shoal.cold": cold,
            }
        )


def mark_failed(text: str) -> None:
    """Mark the current span as failed."""
    span = trace.get_current_span()
    if span.is_recording():
        span.set_status(trace.StatusCode.ERROR, text)


def mark_refused(error: ShoalError) -> None:
    """Mark the current span as failed, with the error's reason."""
    span = trace.get_current_span()
    if span.is_recording():
        span.set_attribute("shoal.error.reason", error.reason)
        span.set_attribute("rpc.grpc.status_code", grpc_code(error).value[0])
    mark_failed(error.message)
