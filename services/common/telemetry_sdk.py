"""The OpenTelemetry SDK, set up from the OTEL_* variables; imported only when tracing is on."""

import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    Decision,
    ParentBased,
    Sampler,
    SamplingResult,
    TraceIdRatioBased,
)
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    Link,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
)
from opentelemetry.util.types import Attributes

from services.common import variables
from services.common.sampling import REFUSED, RecordedSpan, drawn
from services.common.variables import OTLP_ENDPOINTS, BadVariable

_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)
FLUSH_S: Final = 3.0  # how long a stopping service waits for a receiver that doesn't answer

_SAMPLERS: Final[dict[str, Callable[[float], Sampler]]] = {
    "always_on": lambda _: ALWAYS_ON,
    "always_off": lambda _: ALWAYS_OFF,
    "traceidratio": TraceIdRatioBased,
    "parentbased_always_on": lambda _: ParentBased(ALWAYS_ON),
    "parentbased_always_off": lambda _: ParentBased(ALWAYS_OFF),
    "parentbased_traceidratio": lambda ratio: ParentBased(TraceIdRatioBased(ratio)),
}


class Pipeline:
    """The sampler, the batches and the exporters of a process, in effect once it is made.

    Raises BadVariable.
    """

    def __init__(self, service: str) -> None:
        self._sampler = _sampler()
        self._exporters = _exporters()
        self._provider = TracerProvider(
            sampler=_ConsistentSampler(self._sampler),
            resource=_resource(service),
            id_generator=_DrawnIds(),
            shutdown_on_exit=False,
        )
        self._batches = [_batches(exporter) for exporter in self._exporters]
        for batches in self._batches:
            self._provider.add_span_processor(batches)
        trace.set_tracer_provider(self._provider)
        self.closed = False

    def keeps(self, parent: Context | None, trace_id: int) -> bool:
        """Return whether the sampler keeps a span of this trace, below `parent` if there is one."""
        decision = self._sampler.should_sample(parent, trace_id, "").decision
        return decision is Decision.RECORD_AND_SAMPLE

    @property
    def root_ratio(self) -> float:
        """The share of root spans that the sampler keeps."""
        return _root_ratio()

    def record(self, span: RecordedSpan) -> None:
        """Send a span that another process has measured."""
        made = ReadableSpan(
            span.name,
            SpanContext(span.trace_id, span.span_id, is_remote=False, trace_flags=_SAMPLED),
            resource=self._provider.resource,
            attributes=span.attributes,
            kind=SpanKind.SERVER,
            instrumentation_scope=InstrumentationScope("shoal.lane"),
            status=Status(StatusCode.ERROR if span.failed else StatusCode.UNSET),
            start_time=span.start_ns,
            end_time=span.end_ns,
        )
        for batches in self._batches:
            batches.on_end(made)

    def close(self) -> bool:
        """Flush for at most FLUSH_S seconds. Return False if spans may be left."""
        if self.closed:
            return True
        self.closed = True
        # The SDK would log every retry; the caller says it once.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)
        # The SDK itself would wait half a minute.
        flush = threading.Thread(target=self._provider.shutdown, daemon=True)
        flush.start()
        flush.join(FLUSH_S)
        if not flush.is_alive():
            return True
        for exporter in self._exporters:
            with contextlib.suppress(Exception):
                exporter.shutdown()
        return False


class _ConsistentSampler(Sampler):
    """The configured sampler, which drops root spans of requests that `sampled` refused."""

    def __init__(self, configured: Sampler) -> None:
        self._configured = configured

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        if drawn.get() == REFUSED:
            parent = trace.get_current_span(parent_context).get_span_context()
            if not parent.is_valid:
                return SamplingResult(Decision.DROP)
        return self._configured.should_sample(
            parent_context, trace_id, name, kind, attributes, links, trace_state
        )

    def get_description(self) -> str:
        return self._configured.get_description()


class _DrawnIds(RandomIdGenerator):
    """Gives a root span, once, the trace id that `sampled` drew for it."""

    def generate_trace_id(self) -> int:
        trace_id = drawn.get()
        if not trace_id:
            return super().generate_trace_id()
        drawn.set(None)
        return trace_id


def _sampler() -> Sampler:
    return _SAMPLERS[_sampler_name()](_root_ratio())


def _sampler_name() -> str:
    return variables.choice("OTEL_TRACES_SAMPLER", tuple(_SAMPLERS), "parentbased_always_on")


def _root_ratio() -> float:
    name = _sampler_name()
    if name.endswith("ratio"):
        return variables.ratio("OTEL_TRACES_SAMPLER_ARG", 1.0)
    return float(name.endswith("always_on"))


def _exporters() -> list[SpanExporter]:
    names = (variables.text("OTEL_TRACES_EXPORTER") or "otlp").lower().split(",")
    try:
        return [_exporter(name.strip()) for name in names]
    except BadVariable:
        raise
    except Exception as error:  # a bad timeout, an unknown compression, a missing file …
        raise BadVariable(f"one of OTEL_EXPORTER_OTLP_* cannot be used: {error}") from error


def _exporter(name: str) -> SpanExporter:
    if name == "console":
        return ConsoleSpanExporter()
    if name != "otlp":
        raise BadVariable(
            f"OTEL_TRACES_EXPORTER={name!r} is unknown: use otlp, console, or none by itself"
        )
    _check_endpoints()
    protocols = ("grpc", "http/protobuf")
    common = variables.choice("OTEL_EXPORTER_OTLP_PROTOCOL", protocols, "grpc")
    protocol = variables.choice("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", protocols, common)
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (
            OTLPSpanExporter as GrpcExporter,
        )

        return GrpcExporter()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import (
        OTLPSpanExporter as HttpExporter,
    )

    return HttpExporter()


def _check_endpoints() -> None:
    for name in OTLP_ENDPOINTS:
        url = variables.text(name)
        # Without a scheme the SDK assumes TLS, and only reports that nothing arrives.
        if url is not None and not url.startswith(("http://", "https://")):
            raise BadVariable(f"{name}={url!r} is not a URL: start it with http:// or https://")


def _resource(service: str) -> Resource:
    named = SERVICE_NAME in OTELResourceDetector().detect().attributes
    return Resource.create({} if named else {SERVICE_NAME: f"shoal-{service}"})


def _batches(exporter: SpanExporter) -> BatchSpanProcessor:
    # Read here, because the SDK falls back to its default for a number that it cannot read.
    queue = variables.count("OTEL_BSP_MAX_QUEUE_SIZE", 2048)
    batch = variables.count("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", min(512, queue))
    if batch > queue:
        raise BadVariable(
            f"OTEL_BSP_MAX_EXPORT_BATCH_SIZE={batch} is more than "
            f"OTEL_BSP_MAX_QUEUE_SIZE={queue}, and a batch is taken from the queue"
        )
    return BatchSpanProcessor(
        exporter,
        max_queue_size=queue,
        max_export_batch_size=batch,
        schedule_delay_millis=variables.count("OTEL_BSP_SCHEDULE_DELAY", 5000),
        export_timeout_millis=variables.count("OTEL_BSP_EXPORT_TIMEOUT", 30000),
    )
