"""`shoal replicas`: which versions are on which server, and in which state."""

import time
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from shoal.cli.connections import addresses, connected
from shoal.cli.failures import described
from shoal.cli.output import (
    Document,
    JsonFlag,
    console,
    give,
    memory,
    message_json,
    print_json,
    seconds,
    table,
)
from shoal.cli.references import OptionalReferenceArgument, resource_name, server_of, short

if TYPE_CHECKING:
    from rich.console import RenderableType

    from shoal.client import Client

REFRESH_SECONDS: Final = 1.0

_HEADINGS: Final = (
    *("model", "server", "state", "reserved", "measured"),
    *(">idle", ">in flight", "notes"),
)


def replicas(
    context: typer.Context,
    model: OptionalReferenceArgument = "",
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            help="Keep the table up to date until Ctrl-C; with --json print one line a second.",
        ),
    ] = False,
    json: JsonFlag = False,
) -> None:
    """List replicas: the model versions that are on servers, with state and memory.

    States are QUEUED, LOADING, READY, DRAINING and UNLOADING. Reserved is the memory set aside for
    a replica; measured is what it took at the last measurement.
    """
    with connected(context) as shoal:
        name = resource_name(shoal, model)
        document = read(shoal, name)
        if not watch:
            give(document, replica_table, json)
            return
        if json:
            _print_forever(shoal, name, document)
        else:
            _draw_forever(context, shoal, name, document)


def read(shoal: "Client", model: str) -> Document:
    """Return `{"replicas": […]}` of a resource name, or of all for "". Raises CallFailed."""
    from shoal.controller.v1.controller_service_pb2 import ListReplicasRequest

    pages = shoal.pages(shoal.controller.ListReplicas, ListReplicasRequest(model=model))
    return {"replicas": [message_json(one) for page in pages for one in page.replicas]}


def replica_table(document: Document) -> "RenderableType":
    return table(_HEADINGS, [_row(replica) for replica in document["replicas"]])


def _row(replica: Document) -> tuple[str, ...]:
    return (
        short(replica["name"]),
        server_of(replica["name"]),
        replica["state"],
        memory(replica["memory_reserved"]),
        memory(replica["memory_measured"]),
        seconds(replica["idle"]),
        str(replica["in_flight"]),
        "; ".join(notes(replica)),
    )


def notes(replica: Document) -> list[str]:
    """Return what else a person may want to know about a replica."""
    found = []
    if replica["pinned"]:
        found.append("pinned")
    if replica["held_by"]:
        found.append(f"held by {', '.join(map(short, replica['held_by']))}")
    if replica["state"] != "READY" and replica["state_reason"]:
        found.append(replica["state_reason"])
    return found


def _print_forever(shoal: "Client", model: str, document: Document) -> None:
    while True:
        print_json(document, indent=None)
        time.sleep(REFRESH_SECONDS)
        document = read(shoal, model)


def _draw_forever(context: typer.Context, shoal: "Client", model: str, document: Document) -> None:
    """Redraw the table every second.

    While the Controller is away, the last table stays, with the reason below it.
    """
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    from shoal.client import CallFailed

    trouble: Any = None
    at = addresses(context)
    with Live(console=console(), auto_refresh=False) as live:
        while True:
            drawn = replica_table(document)
            live.update(Group(drawn, trouble) if trouble else drawn, refresh=True)
            time.sleep(REFRESH_SECONDS)
            trouble = None
            try:
                document = read(shoal, model)
            except CallFailed as error:
                if not error.unreachable:
                    raise
                trouble = Text(described(error, at), "red")
