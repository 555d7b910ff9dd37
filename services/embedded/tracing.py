"""Where the parts send their traces, and how many requests are traced."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from services.embedded.settings import StackSettings

# With one of these the user has said where traces go.
_USERS_OWN: Final = (
    "OTEL_SDK_DISABLED",
    "OTEL_TRACES_EXPORTER",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
)
_ENDPOINT: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
_HTTP: Final = "http/protobuf"
# Milliseconds. The SDK's own 5 s make a trace look torn for as long.
_BATCH_DELAY: Final = "500"


@dataclass(frozen=True)
class Tracing:
    """`variables` for every service; `triton_url`: where Triton posts its spans, None: nowhere."""

    variables: Mapping[str, str]
    triton_url: str | None


def wants_collector(settings: StackSettings, environment: Mapping[str, str]) -> bool:
    """Whether the traces go to a collector that is part of the stack."""
    return not (settings.no_otlp or settings.otlp or _users_own(environment))


def plan(settings: StackSettings, environment: Mapping[str, str], collector: str | None) -> Tracing:
    """`collector`: `host:port` of the embedded one, if there is one (OTLP over HTTP).

    A request that comes with a sampled traceparent is always traced; of the others `trace_ratio`.
    """
    if settings.no_otlp:
        return Tracing({"OTEL_SDK_DISABLED": "true"}, None)
    if settings.otlp is None and collector is None:
        return Tracing({}, _traces_url(environment))
    url = f"http://{collector}" if settings.otlp is None else str(settings.otlp).rstrip("/")
    exporter = {
        "OTEL_SDK_DISABLED": "false",
        "OTEL_TRACES_EXPORTER": "otlp",
        "OTEL_EXPORTER_OTLP_ENDPOINT": url,
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{url}/v1/traces",
        "OTEL_EXPORTER_OTLP_PROTOCOL": _HTTP,
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": _HTTP,
    }
    return Tracing({**exporter, **_defaults(settings, environment)}, f"{url}/v1/traces")


def notes(settings: StackSettings, environment: Mapping[str, str], planned: Tracing) -> list[str]:
    """What is left out of the traces, for people."""
    if planned.triton_url or settings.no_otlp or not environment.get(_ENDPOINT):
        return []
    return [
        f"Triton's own spans are not sent: it speaks OTLP over HTTP only, and {_ENDPOINT} is used "
        "with another protocol. Set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf and the HTTP "
        "address, or name that with --otlp."
    ]


def _defaults(settings: StackSettings, environment: Mapping[str, str]) -> dict[str, str]:
    found = {}
    if not environment.get("OTEL_BSP_SCHEDULE_DELAY"):
        found["OTEL_BSP_SCHEDULE_DELAY"] = _BATCH_DELAY
    if not environment.get("OTEL_TRACES_SAMPLER"):
        found["OTEL_TRACES_SAMPLER"] = "parentbased_traceidratio"
        found["OTEL_TRACES_SAMPLER_ARG"] = str(settings.trace_ratio)
    return found


def _users_own(environment: Mapping[str, str]) -> bool:
    return any(environment.get(name) for name in _USERS_OWN)


def _traces_url(environment: Mapping[str, str]) -> str | None:
    """From the user's own variables. Triton speaks OTLP over HTTP only."""
    protocol = environment.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environment.get(
        "OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"
    )
    exporters = environment.get("OTEL_TRACES_EXPORTER", "otlp")
    disabled = environment.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if disabled or exporters != "otlp" or not protocol.startswith("http/"):
        return None
    if traces := environment.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        return traces
    base = environment.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    return f"{base.rstrip('/')}/v1/traces" if base else None
