"""Decides which requests the proxy in front of the Router may send to a server by itself.

The *lane* answers requests whose path needs nothing that only the Router can do. The decision is
made for a model and a version as requests name them; the proxy checks what differs from request to
request, and sends to the Router whatever it does not know."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from services.common.errors import ShoalError
from services.router.core.admission.gate import EVERY_MODEL
from services.router.core.routing.routes import Route, Target, resolve
from services.router.core.routing.table import Table

#: Headers whose names begin like this leave a request to the Router: it alone knows what they mean.
HELD_PREFIX: Final = "x-shoal-"
#: So do these over HTTP: deadlines, compressed bodies, requests of web pages, and answers with the
#: server's own load.
HELD_HTTP_HEADERS: Final = (
    "x-request-timeout",
    "grpc-timeout",
    "x-envoy-expected-rq-timeout-ms",
    "content-encoding",
    "origin",
    "sec-fetch-site",
    "endpoint-load-metrics-format",
)


@dataclass(frozen=True, slots=True)
class LaneRules:
    """What the settings of a Router leave to the Router alone."""

    #: Why the lane has no request at all; "" if it has some.
    closed: str = ""
    #: Models with a limit on the requests in flight, which the Router counts; `*` is every model.
    limited: Collection[str] = field(default=())
    #: Whether servers of any release get requests over gRPC.
    any_release: bool = False


class Place(NamedTuple):
    """Where the lane sends a request."""

    target: Target
    servers: tuple[str, ...]


def place(table: Table, model: str, version: str, rules: LaneRules) -> Place | str:
    """Return where the lane sends a request for `model` and `version`, or why the Router answers
    it."""
    try:
        target = resolve(table.routes, model, version, 0.0)
    except ShoalError as error:
        return error.message
    route = table.routes[model]
    reason = rules.closed or _reason(route, model, version, target, rules)
    if reason:
        return reason
    servers = tuple(sorted(server for server in table.servers(target) if server in table.addresses))
    if not servers:
        return f"{target} is not resident"
    return Place(target, servers)


def held_over_grpc(found: Place, bearing: Collection[str], rules: LaneRules) -> str:
    """Return why the Router answers requests over gRPC for what the lane has; "" if it need not.
    `bearing` are the servers that survive any cancellation: the proxy passes every one on."""
    if rules.any_release:
        return ""
    frail = next((server for server in found.servers if server not in bearing), None)
    if frail is None:
        return ""
    return f"a client that goes away could end {frail}, as any Triton before release 25.06"


def held_by(headers: Mapping[str, str], sequence: str) -> str:
    """Return what about a gRPC request leaves it to the Router; "" if nothing does. `sequence` is
    the id of its sequence, or ""."""
    if sequence:
        return "it is part of a sequence"
    found = next((name for name in headers if name.startswith(HELD_PREFIX)), None)
    return f"it has the header {found}" if found else ""


def places(
    table: Table, models: Iterable[str], rules: LaneRules
) -> Iterator[tuple[str, str, Place]]:
    """Yield the model and the version, as a request names them, of everything in the lane."""
    if rules.closed:
        return
    for model in models:
        route = table.routes.get(model)
        if route is None or not any(one.servers for one in route.versions.values()):
            continue
        for version in ("", *route.aliases, *map(str, route.versions)):
            found = place(table, model, version, rules)
            if isinstance(found, Place):
                yield model, version, found


def _reason(route: Route, model: str, version: str, target: Target, rules: LaneRules) -> str:
    """Return why the Router answers a request itself; "" if it need not."""
    entry = route.versions.get(target.version)
    if route.arms and not version:
        return "a traffic policy draws the version of each request"
    if model in rules.limited or EVERY_MODEL in rules.limited:
        return "the Router limits its requests in flight"
    if not route.retry:
        return "its requests must never be repeated"
    if entry is None or entry.decoupled is not False:
        return "it may answer a request several times"
    return ""
