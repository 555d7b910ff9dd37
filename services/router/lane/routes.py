"""The routes of what is in the lane, as Envoy's configuration."""

from collections.abc import Iterable
from typing import Any, Final
from urllib.parse import quote

from services.common.caller import PEER_HEADER
from services.router.core.routing.lane import Place
from services.router.lane import probe
from services.router.lane.edge import GRPC, HTTP, MARK
from services.router.lane.resources import ROUTER, ROUTES, cluster_name
from services.router.lane.xds import TYPE, message, parsed

_MOST_BUFFERED: Final = 1 << 20  # bytes of a request, to send it again while the Router is away

_ONCE: Final = {
    "num_retries": 1,
    "retry_back_off": {"base_interval": "0.001s", "max_interval": "0.001s"},
    "retry_priority": {
        "name": "envoy.retry_priorities.previous_priorities",
        "typed_config": {
            "@type": TYPE
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

    def update(self, model: str, places: Iterable[tuple[str, Place]]) -> None:
        """Replace the routes of a model."""
        for key in self._of_model.pop(model, ()):
            self._entries.pop(key, None)
        keys = []
        for version, found in places:
            key = self.key(model, version)
            keys.append(key)
            self._entries[key].CopyFrom(self._entry(key, found))
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

    def _entry(self, key: str, found: Place) -> Any:
        route = _ROUTE[self._kind]
        route.name = str(found.target)  # the script reads the version's number from it
        route.route.cluster = cluster_name(self._kind, found.servers)
        if self._kind == HTTP:
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
                        "@type": TYPE + "envoy.type.matcher.v3.HttpRequestHeaderMatchInput",
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
        "request_body_buffer_limit": _MOST_BUFFERED,
        "request_headers_to_add": [
            {
                "header": {"key": PEER_HEADER, "value": "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%"},
                "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
            }
        ],
    }


_IN_LANE: Final = {
    "match": {"prefix": "/"},
    "route": {"timeout": "0s", "max_stream_duration": {"grpc_timeout_header_max": "0s"}},
}


def _on_match(route: dict[str, Any]) -> dict[str, Any]:
    typed = {"@type": TYPE + "envoy.config.route.v3.Route", **route}
    return {"action": {"name": "route", "typed_config": typed}}


_ROUTE: Final = {kind: parsed("envoy.config.route.v3.Route", _IN_LANE) for kind in (GRPC, HTTP)}
