"""`shoal events`: what happened to models and servers, and why."""

from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Final

import typer

from shoal.cli.calling import calling
from shoal.cli.output import Document, JsonFlag, give, message_json, print_json, printable, table
from shoal.cli.units import MaybeUnitArgument, resource, short

if TYPE_CHECKING:
    from rich.console import RenderableType

    from shoal.client import Client

_HEADINGS: Final = ("time", "event", "model", "server", "why")


def events(
    context: typer.Context,
    model: MaybeUnitArgument = "",
    follow: Annotated[
        bool,
        typer.Option("--follow", "-f", help="Go on with new ones. With --json: a line an event."),
    ] = False,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, max=1000, help="The newest that many.")
    ] = 20,
    json: JsonFlag = False,
) -> None:
    """List the newest events: loads, evictions and why, failures, servers that come and go."""
    with calling(context) as shoal:
        about = resource(shoal, model)
        found = read(shoal, about, limit)
        if not follow:
            give({"events": found}, event_table, json)
            return
        for event in reversed(found):
            _print(event, json)
        for event in _coming(shoal, about, found):
            _print(event, json)


def read(shoal: "Client", about: str, limit: int) -> list[Document]:
    """The newest events about a resource name, all for "", newest first. Raises CallFailed."""
    from shoal.controller.v1.controller_service_pb2 import ListEventsRequest

    request = ListEventsRequest(about=about, page_size=limit)
    reply = shoal.call(shoal.controller.ListEvents, request)
    return [message_json(event) for event in reply.events]


def _coming(shoal: "Client", about: str, seen: list[Document]) -> Iterable[Document]:
    from shoal.controller.v1.controller_service_pb2 import WatchEventsRequest

    request = WatchEventsRequest(after_sequence=seen[0]["sequence"] if seen else 0)
    for response in shoal.stream(shoal.controller.WatchEvents, request):
        if _is_about(response.event.version, about):
            yield message_json(response.event)


def _is_about(version: str, about: str) -> bool:
    return not about or version == about or version.startswith(f"{about}/versions/")


def event_table(document: Document) -> "RenderableType":
    """Oldest first: the newest is what the eye falls on."""
    return table(_HEADINGS, [_row(event) for event in reversed(document["events"])])


def _row(event: Document) -> tuple[str, ...]:
    reason = event["reason"]
    newcomer = short(event["for_version"])
    if newcomer not in reason:
        reason = f"{reason} (for {newcomer})"
    if event["trace_id"]:
        reason = f"{reason} (trace {event['trace_id']})"
    moment = datetime.fromisoformat(event["time"]).astimezone()
    return (
        f"{moment:%H:%M:%S}.{moment.microsecond // 1000:03}",
        event["kind"],
        short(event["version"]),
        short(event["server"]),
        reason,
    )


def _print(event: Document, as_json: bool) -> None:
    if as_json:
        print_json(event, indent=None)
        return
    time, kind, model, server, why = map(printable, _row(event))
    print(f"{time}  {kind:<16}  {model:<24}  {server:<12}  {why}", flush=True)
