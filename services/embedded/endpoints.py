"""The addresses of a stack's parts, on ports that are claimed before anything is started."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from services.embedded.ports import LOOPBACK, Claims
from services.embedded.settings import StackSettings

CONTROLLER: Final = "controller"


@dataclass(frozen=True)
class Endpoints:
    """The `host:port` of each part.

    `tritons` are by server id, and `controllers` by name of the part; `controller` is the first of
    them. The collector's are None if there is no embedded one. With a lane, `router_grpc` and
    `router_http` are the proxy's, and the Router's own are others.
    """

    router_grpc: str
    router_http: str
    router_own_grpc: str
    router_own_http: str
    registry: str
    registry_metrics: str
    controller: str
    controller_metrics: str
    controllers: Mapping[str, str]
    controllers_metrics: Mapping[str, str]
    collector_grpc: str | None
    collector_http: str | None
    tritons: Mapping[str, str]
    triton_metrics: Mapping[str, str]
    #: The rest is empty without a lane.
    triton_http: Mapping[str, str]
    lane_discovery: str = ""
    lane_grpc_probe: str = ""
    lane_http_probe: str = ""


def claimed(settings: StackSettings, claims: Claims, *, collector: bool, laned: bool) -> Endpoints:
    """Claim all ports. `laned` says that there is a lane. Raises PortTaken."""
    keys = [key for key in StackSettings.model_fields if key.endswith("_port")]
    if not collector:
        keys = [key for key in keys if not key.startswith("otlp")]
    # The fixed ports first: a picked one must not be one of them.
    keys.sort(key=lambda key: getattr(settings, key) == 0)
    at = {key: f"{LOOPBACK}:{claims.take(getattr(settings, key), key)}" for key in keys}
    servers = [f"triton-{number}" for number in range(settings.servers)]
    first, *others = _controller_names(settings.controllers)
    behind: dict[str, Any] = {
        "router_own_grpc": at["router_grpc_port"],
        "router_own_http": at["router_http_port"],
        "triton_http": {},
    }
    if laned:
        names = [*behind, "lane_discovery", "lane_grpc_probe", "lane_http_probe"]
        behind = {name: f"{LOOPBACK}:{claims.take(0)}" for name in names}
        behind["triton_http"] = {server: f"{LOOPBACK}:{claims.take(0)}" for server in servers}
    return Endpoints(
        **behind,
        router_grpc=at["router_grpc_port"],
        router_http=at["router_http_port"],
        registry=at["registry_port"],
        registry_metrics=at["registry_metrics_port"],
        controller=at["controller_port"],
        controller_metrics=at["controller_metrics_port"],
        controllers={
            first: at["controller_port"],
            **{name: f"{LOOPBACK}:{claims.take(0)}" for name in others},
        },
        controllers_metrics={
            first: at["controller_metrics_port"],
            **{name: f"{LOOPBACK}:{claims.take(0)}" for name in others},
        },
        collector_grpc=at.get("otlp_grpc_port"),
        collector_http=at.get("otlp_http_port"),
        tritons={server: f"{LOOPBACK}:{claims.take(0)}" for server in servers},
        triton_metrics={server: f"{LOOPBACK}:{claims.take(0)}" for server in servers},
    )


def _controller_names(count: int) -> list[str]:
    return [CONTROLLER] if count == 1 else [f"{CONTROLLER}-{number}" for number in range(count)]
