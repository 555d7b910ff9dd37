"""How the proxy deals with clients: what it takes from them, and what it answers by itself."""

from typing import Any, Final

from services.common.caller import PEER_HEADER
from services.common.http1 import HttpLimits
from services.common.rpc import Limits
from services.router.lane.xds import TYPE

GRPC: Final = "grpc"
HTTP: Final = "http"
MARK: Final = "x-shoal-lane"

#: Headers that no caller may send: they tell the Router or the proxy itself what to do.
_OWN_HEADERS: Final = (MARK, PEER_HEADER)
_OWN_PREFIXES: Final = ("x-envoy-", "triton-grpc-protocol-")
# The Router refuses headers beyond its limit, in words of its own. The proxy's limit is higher.
_HEADERS_BEYOND: Final = 16
_ENTRY_BYTES: Final = 32  # overhead of a header, in RFC 9113, 6.5.2
_MOST_HEADERS_KB: Final = 8192
_MAX_HEADER_LIST_SIZE: Final = 6  # a setting of HTTP/2: what clients should keep to

_HTTP: Final = HttpLimits()
_DEADLINE_EXCEEDED: Final = "4"
_RESOURCE_EXHAUSTED: Final = "8"
_TOO_MANY_REQUESTS: Final = 429


def connection_filters(kind: str, limits: Limits) -> list[dict[str, Any]]:
    """Return the network filters that bound the number of connections to a public port."""
    if limits.connections is None:
        return []
    return [
        {
            "name": "envoy.filters.network.connection_limit",
            "typed_config": {
                "@type": f"{TYPE}envoy.extensions.filters.network.connection_limit.v3."
                "ConnectionLimit",
                "stat_prefix": kind,
                "max_connections": limits.connections,
            },
        }
    ]


def connection_settings(kind: str, limits: Limits, most_body: int) -> dict[str, Any]:
    """Return the part of a public port's HttpConnectionManager that is about clients. `most_body`
    is the largest request in bytes that the Router accepts."""
    settings: dict[str, Any] = {
        "max_request_headers_kb": min(
            _MOST_HEADERS_KB, -(-limits.header_bytes * _HEADERS_BEYOND // 1024)
        ),
        "request_headers_timeout": f"{_HTTP.head_seconds}s",
        "early_header_mutation_extensions": [_header_mutation()],
        "local_reply_config": _local_replies(kind, limits, most_body),
    }
    connection: dict[str, Any] = {
        "max_headers_count": limits.header_bytes * _HEADERS_BEYOND // _ENTRY_BYTES
    }
    if kind == GRPC:
        if limits.idle is not None:
            connection["idle_timeout"] = f"{limits.idle}s"
        if limits.age is not None:
            connection["max_connection_duration"] = f"{limits.age}s"
            if limits.grace is not None:
                settings["drain_timeout"] = f"{limits.grace}s"
        settings["http2_protocol_options"] = {
            # A wrong header ends its call, not all calls of the connection.
            "override_stream_error_on_invalid_http_message": True,
            "custom_settings_parameters": [
                {"identifier": _MAX_HEADER_LIST_SIZE, "value": limits.header_bytes}
            ],
            **({} if limits.streams is None else {"max_concurrent_streams": limits.streams}),
        }
    else:
        connection["idle_timeout"] = f"{_HTTP.idle_seconds}s"
        settings["http_protocol_options"] = {
            "accept_http_10": True,
            "default_host_for_http_10": "127.0.0.1",
            "ignore_http_11_upgrade": [{"safe_regex": {"regex": ".*"}}],
        }
    settings["common_http_protocol_options"] = connection
    return settings


def _header_mutation() -> dict[str, Any]:
    mutations: list[dict[str, Any]] = [{"remove": name} for name in _OWN_HEADERS]
    mutations += [
        {"remove_on_match": {"key_matcher": {"prefix": prefix}}} for prefix in _OWN_PREFIXES
    ]
    return {
        "name": "envoy.http.early_header_mutation.header_mutation",
        "typed_config": {
            "@type": f"{TYPE}envoy.extensions.http.early_header_mutation.header_mutation.v3."
            "HeaderMutation",
            "mutations": mutations,
        },
    }


def _local_replies(kind: str, limits: Limits, most_body: int) -> dict[str, Any]:
    """Return how the proxy's own refusals look: as the Router's do."""
    too_large = (
        f"the request has too many bytes, and this Router accepts at most {most_body}: send less "
        "at once, or raise SHOAL_ROUTER_MAX_MESSAGE_BYTES."
    )
    away = "no server can be reached: try again."
    full = (
        "the proxy in front of the Router has no memory left for requests: repeat it later, send "
        "less at once, or raise SHOAL_ROUTER_MAX_HELD_BYTES."
    )
    if kind == GRPC:
        return {
            "mappers": [
                _overloaded(full, _RESOURCE_EXHAUSTED),
                _reply(413, too_large, _RESOURCE_EXHAUSTED),
                _reply(503, away),
                _reply(408, "Deadline Exceeded", _DEADLINE_EXCEEDED),
                _reply(504, "Deadline Exceeded", _DEADLINE_EXCEEDED),
            ]
        }
    head = f"the request's head has more than {limits.header_bytes} bytes"
    slow = f"the request's head did not arrive within {_HTTP.head_seconds:g} s"
    return {
        "mappers": [
            _overloaded(full),
            _reply(400, "Invalid HTTP request received."),
            _reply(404, "Not Found"),
            _reply(408, slow),
            _reply(413, too_large),
            _reply(431, head),
            _reply(503, away),
        ],
        "body_format": {
            "json_format": {"error": "%LOCAL_REPLY_BODY%"},
            "content_type": "application/json",
        },
    }


def _reply(status: int, text: str, grpc_status: str = "") -> dict[str, Any]:
    value = {"default_value": status, "runtime_key": f"shoal.status_{status}"}
    only = {"status_code_filter": {"comparison": {"op": "EQ", "value": value}}}
    return _answer(only, text, grpc_status)


def _overloaded(text: str, grpc_status: str = "") -> dict[str, Any]:
    """Return the answer to a request that the proxy's overload manager refuses."""
    reply = _answer({"response_flag_filter": {"flags": ["OM"]}}, text, grpc_status)
    return reply if grpc_status else {**reply, "status_code": _TOO_MANY_REQUESTS}


def _answer(only: dict[str, Any], text: str, grpc_status: str) -> dict[str, Any]:
    reply: dict[str, Any] = {"filter": only, "body": {"inline_string": text}}
    if grpc_status:
        header = {"header": {"key": "grpc-status", "value": grpc_status}}
        reply["headers_to_add"] = [header]
    return reply
