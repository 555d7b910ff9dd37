"""Where the parts send their traces, and how many requests are traced."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from services.embedded.settings import StackSettings

# With one of these, users say themselves where traces go.
_USERS_OWN: Final = (
    "OTEL_SDK_DISABLED",
    "OTEL_TRACES_EXPORTER",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
)
_ENDPOINT: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
_HTTP: Final = "http/protobuf"
# Milliseconds. With the SDK's default of 5 s, a trace looks incomplete for as long.
_BATCH_DELAY: Final = "500"


@dataclass(frozen=True)
class Tracing:
    """The `variables` of every service, and the URL to which Triton posts its spans, if any."""

    variables: Mapping[str, str]
    triton_url: str | None


def wants_collector(settings: StackSettings, environment: Mapping[str, str]) -> bool:
    """Return whether the traces go to a collector that is part of the stack."""
    return not (settings.no_otlp or settings.otlp or _users_own(environment))


def plan(settings: StackSettings, environment: Mapping[str, str], collector: str | None) -> Tracing:
    """Plan where traces go. `collector` is the embedded one's OTLP/HTTP `host:port`, if any.

    A request with a sampled traceparent is always traced, and a share of `trace_ratio` of the rest.
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
    """Return, for people, what is missing from the traces."""
    if planned.triton_url or settings.no_otlp or not environment.get(_ENDPOINT):
        return []
    return [
        f"Triton's own spans are not sent: Triton speaks only OTLP over HTTP, and {_ENDPOINT} is "
        "used with another protocol. Set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf and the HTTP "
        "address, or give the address with --otlp."
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
    """Return Triton's URL from the user's variables. Triton speaks only OTLP over HTTP."""
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
