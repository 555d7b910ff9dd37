"""`shoal status`: whether every part of a stack is ready, and what to do where one is not."""

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from shoal.cli import collector
from shoal.cli.addresses import Addresses, NotAnnounced
from shoal.cli.connections import find_addresses
from shoal.cli.failures import EXIT_NOT_READY, START, cause, complain
from shoal.cli.output import (
    Document,
    JsonFlag,
    console,
    counted,
    give,
    message_json,
    seconds,
    table,
)
from shoal.cli.references import short
from shoal.sizes import format_size

if TYPE_CHECKING:
    from rich.console import RenderableType

    from shoal.client import CallFailed, Client

# A server is drained because an operator wants that, so it is no trouble.
_FINE: Final = frozenset({"HEALTHY", "DRAINING"})

_POLL: Final = 0.25  # seconds
_ANSWER: Final = 2.0  # seconds for one answer

_PARTS: Final = ("part", "address", "state", "")
_SERVERS: Final = ("server", "address", "state", "models", "memory")


def status(
    context: typer.Context,
    wait: Annotated[
        float,
        typer.Option(metavar="SECONDS", min=0, help="Time to wait until every part is ready."),
    ] = 0.0,
    json: JsonFlag = False,
) -> None:
    """Show whether the Registry, Controller, Router, Triton servers and trace collector are ready.

    Exit status: 0 all are ready, 3 one is not. The collector may be absent, and servers may be
    drained while at least one is healthy.
    """
    with _waiting(wait):
        document = _awaited(context, time.monotonic() + wait)
    give(document, _rendered, json)
    if not document["ready"]:
        raise typer.Exit(EXIT_NOT_READY)


def _waiting(wait: float) -> contextlib.AbstractContextManager[object]:
    if wait and sys.stderr.isatty():
        return console(stderr=True).status("waiting until every part is ready")
    return contextlib.nullcontext()


def _awaited(context: typer.Context, deadline: float) -> Document:
    while True:
        late = time.monotonic() >= deadline
        try:
            document = read(find_addresses(context))
            if late or document["ready"]:
                return document
        except NotAnnounced as error:
            if late:
                complain(str(error))
                raise typer.Exit(EXIT_NOT_READY) from error
        time.sleep(_POLL)


def read(at: Addresses) -> Document:
    """Return `{"ready", "parts": […], "servers": […]}`.

    `servers` is null where the Controller is away.
    """
    from shoal.client import CallFailed, connect

    parts = [_service("registry", at.registry), _service("controller", at.controller)]
    with connect(controller=at.controller, router=at.router, timeout=_ANSWER) as shoal:
        parts.append(_router(shoal, at.router))
        servers: list[Document] | None = None
        with contextlib.suppress(CallFailed):
            servers = _servers(shoal)
    ready = all(part["ready"] for part in parts) and usable(servers or ())
    return {"ready": ready, "parts": [*parts, _collector(at)], "servers": servers}


def usable(servers: Iterable[Document]) -> bool:
    """Return whether at least one server takes models, and none is in trouble."""
    states = {server["state"] for server in servers}
    return "HEALTHY" in states and states <= _FINE


def _service(name: str, address: str) -> Document:
    """Return the state of a service by grpc.health.v1."""
    import grpc

    from shoal.client import CHANNEL_OPTIONS, CallFailed, health

    with grpc.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        check: Any = channel.unary_unary(health.CHECK)
        try:
            serving = check(b"", timeout=_ANSWER) == health.SERVING
        except grpc.RpcError as error:
            return _away(name, address, CallFailed.of(error, address))
    if serving:
        return _part(name, address, "ready")
    return _part(name, address, "not ready", "it is starting, or waiting for another part")


def _router(shoal: "Client", address: str) -> Document:
    """Return the state of the Router, which is ready only while it hears from the Controller."""
    from shoal.client import CallFailed
    from shoal.router.v1.router_service_pb2 import GetStatisticsRequest

    part = _service("router", address)
    if not part["ready"]:
        return part
    try:
        statistics = shoal.call(shoal.router.GetStatistics, GetStatisticsRequest())
    except CallFailed as error:
        return _away("router", address, error)
    if not statistics.controller_connected:
        return _part(
            *("router", address, "not ready"),
            "it does not hear from the Controller: resident models answer, others cannot be loaded",
        )
    requests = sum(model.requests for model in statistics.models)
    uptime = seconds(message_json(statistics)["uptime"])
    return _part("router", address, "ready", f"{counted(requests, 'request')} in {uptime}")


def _collector(at: Addresses) -> Document:
    if at.collector is None:
        return _part("collector", None, "absent", "no traces are made, or they are sent elsewhere")
    try:
        health = collector.get(at.collector, "/healthz", _ANSWER) or {}
    except collector.CollectorAway:
        return _part("collector", at.collector, "absent", "`shoal trace` has nothing to show")
    return _part("collector", at.collector, "ready", counted(health.get("traces", 0), "trace"))


def _away(name: str, address: str, error: "CallFailed") -> Document:
    if error.unreachable:
        return _part(name, address, "unreachable", cause(error))
    return _part(name, address, "not ready", error.message)


def _part(name: str, address: str | None, state: str, detail: str = "") -> Document:
    return {
        "name": name,
        "address": address,
        "ready": state == "ready",
        "state": state,
        "detail": detail,
    }


def _servers(shoal: "Client") -> list[Document]:
    from shoal.controller.v1.controller_service_pb2 import ListServersRequest

    pages = shoal.pages(shoal.controller.ListServers, ListServersRequest())
    return [message_json(server) for page in pages for server in page.servers]


# --- for people -----------------------------------------------------------------------------------


def _rendered(document: Document) -> "RenderableType":
    from rich.console import Group
    from rich.text import Text

    drawn: list[RenderableType] = [table(_PARTS, map(_part_row, document["parts"])), Text("")]
    if document["servers"]:
        drawn.append(table(_SERVERS, map(_server_row, document["servers"])))
    elif document["servers"] is not None:
        drawn.append(Text("The Controller has no Triton server: nothing can be loaded.", "red"))
    else:
        drawn.append(Text("The servers cannot be listed while the Controller is away.", "red"))
    if any(part["state"] == "unreachable" for part in document["parts"]):
        drawn.append(Text(START))
    return Group(*drawn)


def _part_row(part: Document) -> tuple[str, ...]:
    return part["name"], part["address"] or "", part["state"], part["detail"]


def _server_row(server: Document) -> tuple[str, ...]:
    most = server["max_models"]
    return (
        short(server["name"]),
        server["address"],
        server["state"],
        f"{server['models']} of {most}" if most else str(server["models"]),
        "\n".join(_about(server)),
    )


def _about(server: Document) -> Iterator[str]:
    """Yield what else there is to know about a server, one line each."""
    if server["state_reason"]:
        yield server["state_reason"]
    if server["restart_wanted"]:
        yield "no longer in use, waiting to be restarted"
    for resource, budget in server["memory_budget"].items():
        yield _memory(server, resource, budget)
    if server["labels"]:
        yield "labels " + ", ".join(f"{name}={value}" for name, value in server["labels"].items())


def _memory(server: Document, resource: str, budget: int) -> str:
    reserved = format_size(server["memory_reserved"].get(resource, 0))
    text = f"{resource} {reserved} of {format_size(budget)} reserved"
    if (soft := server["memory_soft_limit"].get(resource)) is not None:
        text += f" (soft limit {format_size(soft)})"
    if (measured := server["memory_measured"].get(resource)) is not None:
        text += f", {format_size(measured)} measured"
    if leaked := server["memory_leaked"].get(resource):
        text += f", {format_size(leaked)} leaked"
    return text
