"""Envoy's configuration: listeners, clusters, and the routes of what is in the lane."""

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final
from urllib.parse import quote

from services.common.rpc import Limits
from services.router.core.routing.lane import HELD_HTTP_HEADERS, HELD_PREFIX, Place
from services.router.lane import probe
from services.router.lane.edge import (
    GRPC,
    HTTP,
    MARK,
    PEER,
    connection_filters,
    connection_settings,
)
from services.router.lane.xds import TYPE as _TYPE
from services.router.lane.xds import message, parsed

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

_ONCE: Final = {
    "num_retries": 1,
    "retry_back_off": {"base_interval": "0.001s", "max_interval": "0.001s"},
    "retry_priority": {
        "name": "envoy.retry_priorities.previous_priorities",
        "typed_config": {
            "@type": _TYPE
            + "envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig",
            "update_frequency": 1,
        },
    },
}
_BROKEN: Final = "connect-failure,refused-stream,reset,reset-before-request"
# A lane's request that its server no longer knows, or breaks off, goes to the Router.
_RETRY: Final = {
    GRPC: {
        "retry_on": f"{_BROKEN},unavailable,retriable-headers",
        "retriable_headers": [{"name": "grpc-status", "string_match": {"exact": "5"}}],
        **_ONCE,
    },
    HTTP: {
        "retry_on": f"{_BROKEN},retriable-status-codes",
        "retriable_status_codes": [404, 503],
        **_ONCE,
    },
}
# While the Router is away, which is nothing sent yet, requests wait for it: for half a minute.
_UNTIL_BACK: Final = {
    "retry_on": "connect-failure,refused-stream",
    "num_retries": 120,
    "retry_back_off": {"base_interval": "0.05s", "max_interval": "0.5s"},
}
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
        "@type": _TYPE + "envoy.extensions.filters.network.http_connection_manager.v3."
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
            "@type": _TYPE + "envoy.extensions.filters.http.lua.v3.Lua",
            "default_source_code": {"inline_string": script},
        },
    }


# Type, target, server, status, microseconds until the last byte of the answer.
_LINE: Final = (
    "%ACCESS_LOG_TYPE% %ROUTE_NAME% %UPSTREAM_HOST% %GRPC_STATUS_NUMBER% %RESPONSE_CODE% "
    "%COMMON_DURATION(DS_RX_BEG:US_RX_END:us)% %COMMON_DURATION(US_CX_BEG:US_TX_BEG:us)%\n"
)


def _router_filter(front: Front, public: bool) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "@type": _TYPE + "envoy.extensions.filters.http.router.v3.Router",
        "suppress_envoy_headers": True,
        "dynamic_stats": False,
    }
    if public:
        settings["upstream_log"] = [_log(front.journal, _LINE)]
        settings["upstream_log_options"] = {"flush_upstream_log_on_upstream_stream": True}
    return settings


def _log(path: str, line: str) -> dict[str, Any]:
    return {
        "name": "envoy.access_loggers.file",
        "typed_config": {
            "@type": _TYPE + "envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": path,
            "log_format": {"text_format_source": {"inline_string": line}},
        },
    }


def router_clusters(front: Front) -> dict[str, Any]:
    """Return the clusters of the Router's own ports, by name."""
    return {
        cluster_name(kind, ()): _cluster(cluster_name(kind, ()), kind, [[address]])
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


def _cluster(name: str, kind: str, priorities: Sequence[Sequence[str]]) -> Any:
    """Return a cluster. One with several priorities leaves servers to which no connection can be
    made."""
    numeric = all(_is_ip(address) for addresses in priorities for address in addresses)
    protocol: dict[str, Any] = {"http_protocol_options": {}}
    if kind == GRPC:
        protocol = {
            "http2_protocol_options": {
                "initial_stream_window_size": _WINDOW,
                "initial_connection_window_size": _WINDOW,
                "max_concurrent_streams": _MOST,
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
                    "@type": _TYPE + "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
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


class Routes:
    """The routes of one public port, changed model by model."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._config = parsed(ROUTES, {"name": kind, "virtual_hosts": [_virtual_host(kind)]})
        host = self._config.virtual_hosts[0]
        self._entries = host.matcher.matcher_tree.exact_match_map.map
        self._revision = self._config.virtual_hosts.add(name="revision", domains=[probe.HOST])
        answer = self._revision.routes.add()
        answer.match.prefix = "/"
        answer.direct_response.status = 200
        self._body = answer.direct_response.body
        #: The keys of each model.
        self._of_model: dict[str, list[str]] = {}

    def update(
        self, model: str, places: Iterable[tuple[str, Place]], untimed: frozenset[str]
    ) -> None:
        """Replace the routes of a model. `untimed` servers get no request with a deadline."""
        for key in self._of_model.pop(model, ()):
            self._entries.pop(key, None)
        keys = []
        for version, found in places:
            key = self.key(model, version)
            keys.append(key)
            self._entries[key].CopyFrom(self._entry(key, found, untimed))
        if keys:
            self._of_model[model] = keys

    def key(self, model: str, version: str) -> str:
        """Return what a request for `model` and `version` is recognised by: its mark or path."""
        if self._kind == GRPC:
            return f"{version}/{model}"
        middle = f"/versions/{quote(version, safe='')}" if version else ""
        return f"/v2/models/{quote(model, safe='')}{middle}/infer"

    def serialized(self, revision: str) -> bytes:
        """Return the routes as a RouteConfiguration, and have probes answer with `revision`."""
        self._body.inline_string = revision
        return bytes(self._config.SerializeToString())

    def __len__(self) -> int:
        return len(self._entries)

    def _entry(self, key: str, found: Place, untimed: frozenset[str]) -> Any:
        route = _ROUTE[self._kind]
        route.name = str(found.target)
        route.route.cluster = cluster_name(self._kind, found.servers)
        fields = route.metadata.filter_metadata["envoy.filters.http.lua"].fields
        fields.clear()
        if self._kind == GRPC:
            if not found.named:
                number = str(found.target.version)
                fields["suffix"].string_value = f"\x12{chr(len(number))}{number}"
            if not untimed.isdisjoint(found.servers):
                fields["untimed"].bool_value = True
        else:
            route.match.Clear()
            route.match.path = key  # a rewrite replaces what was matched
            model = quote(found.target.model, safe="")
            route.route.prefix_rewrite = f"/v2/models/{model}/versions/{found.target.version}/infer"
        entry = message("xds.type.matcher.v3.Matcher.OnMatch")
        entry.action.name = "route"
        entry.action.typed_config.Pack(route)
        return entry


def _virtual_host(kind: str) -> dict[str, Any]:
    return {
        "name": "all",
        "domains": ["*"],
        "retry_policy": _RETRY[kind],
        "request_headers_to_remove": [MARK, "x-forwarded-proto", "user-agent"],
        "matcher": {
            "matcher_tree": {
                "input": {
                    "name": "key",
                    "typed_config": {
                        "@type": _TYPE + "envoy.type.matcher.v3.HttpRequestHeaderMatchInput",
                        "header_name": MARK,
                    },
                },
                # Envoy takes no empty map. No request has this key.
                "exact_match_map": {"map": {"\x7f": _on_match(_to_router(kind))}},
            },
            "on_no_match": _on_match(_to_router(kind)),
        },
    }


def _to_router(kind: str) -> dict[str, Any]:
    return {
        "name": ROUTER,
        "match": {"prefix": "/"},
        "route": {
            "cluster": cluster_name(kind, ()),
            "timeout": "0s",
            "retry_policy": _UNTIL_BACK,
        },
        "per_request_buffer_limit_bytes": _MOST,
        "request_headers_to_add": [
            {
                "header": {"key": PEER, "value": "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%"},
                "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
            }
        ],
    }


_IN_LANE: Final = {
    "match": {"prefix": "/"},
    "route": {"timeout": "0s", "max_stream_duration": {"grpc_timeout_header_max": "0s"}},
}


def _on_match(route: dict[str, Any]) -> dict[str, Any]:
    typed = {"@type": _TYPE + "envoy.config.route.v3.Route", **route}
    return {"action": {"name": "route", "typed_config": typed}}


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


_ROUTE: Final = {kind: parsed("envoy.config.route.v3.Route", _IN_LANE) for kind in (GRPC, HTTP)}
