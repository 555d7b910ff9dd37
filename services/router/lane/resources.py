"""Envoy's configuration: listeners and clusters."""

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final

from services.common.rpc import Limits
from services.router.core.routing.lane import HELD_HTTP_HEADERS, HELD_PREFIX
from services.router.lane.edge import GRPC, HTTP, connection_filters, connection_settings
from services.router.lane.xds import TYPE, parsed

ROUTER: Final = "router"  # the cluster of the Router itself; `router:http` is its HTTP port

LISTENER: Final = "envoy.config.listener.v3.Listener"
CLUSTER: Final = "envoy.config.cluster.v3.Cluster"
ROUTES: Final = "envoy.config.route.v3.RouteConfiguration"

_SCRIPT: Final = files(__package__).joinpath("lane.lua").read_text()
_WINDOW: Final = 256 << 20  # bytes; a stream's largest flow-control window is 2 GiB
_PREFIX: Final = 5  # bytes in front of a message
_MOST_BODY: Final = 128 << 20  # bytes of a request in the lane, which is copied to add its version
_MOST_JSON: Final = 8 << 20  # bytes; the proxy does nothing else while it looks through them
_SEPARATOR: Final = ","  # between the servers in a cluster's name; no name has one

# Of one connection to a Router of several processes, among which the kernel divides connections.
_STREAMS_OF_SHARED: Final = 8
_MOST: Final = 1 << 20  # of connections and requests: limits are the Router's and Triton's
# Only connections count: a model's own errors say nothing about its server.
_LEAVE: Final = {
    "split_external_local_origin_errors": True,
    "consecutive_local_origin_failure": 2,
    "enforcing_consecutive_local_origin_failure": 100,
    "enforcing_local_origin_success_rate": 0,
    "enforcing_consecutive_5xx": 0,
    "enforcing_consecutive_gateway_failure": 0,
    "enforcing_success_rate": 0,
    "interval": "0.25s",
    "base_ejection_time": "1s",
    "max_ejection_time": "1s",
    "max_ejection_percent": 100,
}
# Shorter than the servers' own: nothing is sent on a connection that a server is about to close.
_CONNECTION: Final = {"idle_timeout": "10s"}
_RETRIES: Final = {"budget_percent": {"value": 20.0}, "min_retry_concurrency": 128}


@dataclass(frozen=True, slots=True)
class Front:
    """What the proxy listens on, and what is behind it. Addresses are `host:port`."""

    #: The public ports.
    grpc: str
    http: str
    #: Ports of the probes, by the name of the routes that they ask about.
    probes: Mapping[str, str]
    #: The Router's own ports.
    router: Mapping[str, str]
    #: The file in which each request to a server is noted twice.
    journal: str
    #: Share of the requests in the lane that are traced.
    trace_ratio: float
    #: Router processes that share its ports.
    router_workers: int
    #: Bytes of a request that the proxy takes in.
    max_message: int
    #: Bytes of a request, and of its JSON, from which on the Router refuses it.
    max_body: int
    max_json: int
    #: What clients may use.
    limits: Limits


def listeners(front: Front) -> dict[str, Any]:
    """Return the listeners by name: two public ones, and one for each probe."""
    found = {
        GRPC: _listener(GRPC, front.grpc, GRPC, front, public=True),
        **{
            f"probe-{name}": _listener(f"probe-{name}", address, name, front, public=False)
            for name, address in front.probes.items()
        },
    }
    if HTTP in front.router:
        found[HTTP] = _listener(HTTP, front.http, HTTP, front, public=True)
    return found


def _listener(name: str, address: str, routes: str, front: Front, *, public: bool) -> Any:
    http2 = public and routes == GRPC
    manager: dict[str, Any] = {
        "@type": TYPE + "envoy.extensions.filters.network.http_connection_manager.v3."
        "HttpConnectionManager",
        "stat_prefix": name,
        "codec_type": "HTTP2" if http2 else "HTTP1",
        "rds": {"route_config_name": routes, "config_source": {"ads": {}, **_V3}},
        "generate_request_id": False,
        "server_header_transformation": "PASS_THROUGH",
        "stream_idle_timeout": "0s",
        "use_remote_address": False,
        "skip_xff_append": True,
        "normalize_path": False,
        "http_filters": [
            *([_script(routes, front)] if public else []),
            {"name": "envoy.filters.http.router", "typed_config": _router_filter(front, public)},
        ],
    }
    if public:
        manager |= connection_settings(routes, front.limits, front.max_body)
    if http2:
        manager["http2_protocol_options"] |= {
            "initial_stream_window_size": max(65535, front.max_message),
            "initial_connection_window_size": max(65535, front.max_message),
        }
    if not public:
        manager["access_log"] = [_log(front.journal, "PROBE %REQ(:PATH)%\n")]
    return parsed(
        LISTENER,
        {
            "name": name,
            "address": _address(address),
            "per_connection_buffer_limit_bytes": front.max_message + _PREFIX,
            "filter_chains": [
                {
                    "filters": [
                        *(connection_filters(routes, front.limits) if public else []),
                        {
                            "name": "envoy.filters.network.http_connection_manager",
                            "typed_config": manager,
                        },
                    ]
                }
            ],
        },
    )


_V3: Final = {"resource_api_version": "V3"}


def _script(kind: str, front: Front) -> dict[str, Any]:
    """Return the filter that marks what may go into the lane."""
    script = f"{_SCRIPT}\nenvoy_on_request = {kind}\n"
    for place, value in (
        ("@RATIO@", str(front.trace_ratio)),
        ("@HELD_PREFIX@", HELD_PREFIX),
        ("@HELD_HTTP@", ", ".join(f'"{name}"' for name in HELD_HTTP_HEADERS)),
        ("@MOST_HEADERS@", str(front.limits.header_bytes)),
        ("@MOST_BODY@", str(min(front.max_body, _MOST_BODY))),
        ("@MOST_JSON@", str(min(front.max_json, _MOST_JSON))),
    ):
        script = script.replace(place, value)
    return {
        "name": "envoy.filters.http.lua",
        "typed_config": {
            "@type": TYPE + "envoy.extensions.filters.http.lua.v3.Lua",
            "default_source_code": {"inline_string": script},
        },
    }


# Type, target, server, status, microseconds until the last byte of the answer.
_LINE: Final = (
    "%ACCESS_LOG_TYPE% %ROUTE_NAME% %UPSTREAM_HOST% %GRPC_STATUS_NUMBER% %RESPONSE_CODE% "
    "%COMMON_DURATION(DS_RX_BEG:US_RX_END:us)% %COMMON_DURATION(US_CX_BEG:US_TX_BEG:us)%\n"
)
# Target, server, status, traceparent, seconds and microseconds when it came, and how long it took.
_TRACE_LINE: Final = (
    "TRACE %ROUTE_NAME% %UPSTREAM_HOST% %GRPC_STATUS_NUMBER% %RESPONSE_CODE% %REQ(TRACEPARENT)% "
    "%START_TIME(%s%6f)% %COMMON_DURATION(DS_RX_BEG:US_RX_END:us)%\n"
)
_TRACED: Final = {
    "and_filter": {
        "filters": [
            {"log_type_filter": {"types": ["UpstreamEnd"]}},
            {"header_filter": {"header": {"name": "traceparent", "present_match": True}}},
        ]
    }
}


def _router_filter(front: Front, public: bool) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "@type": TYPE + "envoy.extensions.filters.http.router.v3.Router",
        "suppress_envoy_headers": True,
        "dynamic_stats": False,
    }
    if public:
        settings["upstream_log"] = [_log(front.journal, _LINE)]
        if front.trace_ratio:
            settings["upstream_log"].append(_log(front.journal, _TRACE_LINE, _TRACED))
        settings["upstream_log_options"] = {"flush_upstream_log_on_upstream_stream": True}
    return settings


def _log(path: str, line: str, only: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "name": "envoy.access_loggers.file",
        **({"filter": only} if only is not None else {}),
        "typed_config": {
            "@type": TYPE + "envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": path,
            "log_format": {"text_format_source": {"inline_string": line}},
        },
    }


def router_clusters(front: Front) -> dict[str, Any]:
    """Return the clusters of the Router's own ports, by name."""
    return {
        cluster_name(kind, ()): _cluster(
            cluster_name(kind, ()),
            kind,
            [[address]],
            streams=_MOST if front.router_workers == 1 else _STREAMS_OF_SHARED,
        )
        for kind, address in front.router.items()
    }


def cluster_name(kind: str, servers: Sequence[str]) -> str:
    """Return the name of the cluster of `servers`; of none: the Router's."""
    return f"{kind}:{_SEPARATOR.join(servers) or ROUTER}"


def servers_cluster(
    kind: str, servers: Sequence[str], addresses: Sequence[str], front: Front
) -> Any:
    """Return the cluster of some servers, and of the Router in case of need."""
    return _cluster(cluster_name(kind, servers), kind, [addresses, [front.router[kind]]])


def _cluster(
    name: str, kind: str, priorities: Sequence[Sequence[str]], streams: int = _MOST
) -> Any:
    """Return a cluster. One with several priorities leaves servers to which no connection can be
    made."""
    numeric = all(_is_ip(address) for addresses in priorities for address in addresses)
    protocol: dict[str, Any] = {"http_protocol_options": {}}
    if kind == GRPC:
        protocol = {
            "http2_protocol_options": {
                "initial_stream_window_size": _WINDOW,
                "initial_connection_window_size": _WINDOW,
                "max_concurrent_streams": streams,
                # gRPC remembers a header with a wrong value, and refuses all that refer to it.
                **({} if len(priorities) > 1 else {"hpack_table_size": 0}),
            }
        }
    return parsed(
        CLUSTER,
        {
            "name": name,
            "type": "STATIC" if numeric else "STRICT_DNS",
            "connect_timeout": "1s",
            "lb_policy": "LEAST_REQUEST",
            "common_lb_config": {"healthy_panic_threshold": {"value": 0.0}},
            "circuit_breakers": {
                "thresholds": [
                    {
                        "max_connections": _MOST,
                        "max_pending_requests": _MOST,
                        "max_requests": _MOST,
                        "retry_budget": _RETRIES,
                    }
                ]
            },
            **({"outlier_detection": _LEAVE} if len(priorities) > 1 else {}),
            "typed_extension_protocol_options": {
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                    "@type": TYPE + "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                    "explicit_http_config": protocol,
                    "common_http_protocol_options": _CONNECTION,
                }
            },
            "load_assignment": {
                "cluster_name": name,
                "endpoints": [
                    {
                        "priority": priority,
                        "lb_endpoints": [
                            {"endpoint": {"address": _address(address)}} for address in addresses
                        ],
                    }
                    for priority, addresses in enumerate(priorities)
                ],
            },
        },
    )


def _address(address: str) -> dict[str, Any]:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    both = {"ipv4_compat": True} if host == "::" else {}
    return {"socket_address": {"address": host, "port_value": int(port), **both}}


def _is_ip(address: str) -> bool:
    try:
        ipaddress.ip_address(address.rpartition(":")[0].strip("[]"))
    except ValueError:
        return False
    return True
