"""`shoal events`: what happened to models and servers, and why."""

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

import typer

from shoal.cli.connections import connected
from shoal.cli.failures import EXIT_NOT_READY, cause, complain, exit_status
from shoal.cli.output import (
    Document,
    JsonFlag,
    clock,
    give,
    message_json,
    print_json,
    printable,
    table,
)
from shoal.cli.references import OptionalReferenceArgument, resource_name, short

if TYPE_CHECKING:
    from rich.console import RenderableType

    from shoal.client import CallFailed, Client

# Seconds between two attempts to reach a Controller: the first and the longest pause.
_RETRY: Final = (0.5, 5.0)

_HEADINGS: Final = ("time", "event", "model", "server", "reason")


def events(
    context: typer.Context,
    model: OptionalReferenceArgument = "",
    follow: Annotated[
        bool,
        typer.Option(
            "--follow",
            "-f",
            help="Keep printing new events until Ctrl-C; with --json one line for each.",
        ),
    ] = False,
    limit: Annotated[
        int,
        typer.Option("--limit", "-n", min=1, max=1000, help="The number of past events to show."),
    ] = 20,
    json: JsonFlag = False,
) -> None:
    """List the latest events: loads, evictions, failures, servers that come and go, with reasons.

    `--follow` survives a restart of the Controller, and another Controller taking over.
    """
    with connected(context) as shoal:
        about = resource_name(shoal, model)
        newest = _position(shoal) if follow else _NOWHERE
        found = read(shoal, about, limit)
        if not follow:
            give({"events": found}, event_table, json)
            return
        for event in reversed(found):
            _print(event, json)
        if found:
            newest = max(newest, _Position(found[0]["epoch"], found[0]["sequence"]))
        for event in _coming(shoal, newest):
            if _is_about(event.version, about):
                _print(message_json(event), json)


def read(shoal: "Client", about: str, limit: int) -> list[Document]:
    """Return the latest events about a resource name, or all for "", the newest first.

    Raises CallFailed.
    """
    from shoal.controller.v1.controller_service_pb2 import ListEventsRequest

    request = ListEventsRequest(about=about, page_size=limit)
    reply = shoal.call(shoal.controller.ListEvents, request)
    return [message_json(event) for event in reply.events]


class _Position(NamedTuple):
    """The position of the last event that was seen."""

    epoch: int
    sequence: int


_NOWHERE: Final = _Position(0, 0)


def _position(shoal: "Client") -> _Position:
    from shoal.controller.v1.controller_service_pb2 import ListEventsRequest

    reply = shoal.call(shoal.controller.ListEvents, ListEventsRequest(page_size=1))
    for event in reply.events:
        return _Position(event.epoch, event.sequence)
    return _NOWHERE


def _coming(shoal: "Client", position: _Position) -> Iterator[Any]:
    """Yield the events after `position`, without end. Raises CallFailed where that is refused."""
    from shoal.client import CallFailed

    wait, most = _RETRY
    away = False
    while True:
        try:
            for event in _until_it_breaks(shoal, position):
                position = _Position(event.epoch, event.sequence)
                if away:
                    complain(f"following events again, from Controller epoch {event.epoch}")
                wait, away = _RETRY[0], False
                yield event
        except CallFailed as error:
            if not _may_come_back(error):
                raise
            if not away:
                why = cause(error) if error.unreachable else error.message
                complain(f"no Controller sends events now ({why}); waiting until one does")
            away = True
        time.sleep(wait)
        wait = min(2 * wait, most)


def _until_it_breaks(shoal: "Client", after: _Position) -> Iterator[Any]:
    from shoal.controller.v1.controller_service_pb2 import WatchEventsRequest

    request = WatchEventsRequest(after_sequence=after.sequence, after_epoch=after.epoch)
    for response in shoal.stream(shoal.controller.WatchEvents, request):
        yield response.event


def _may_come_back(error: "CallFailed") -> bool:
    """Return whether the Controller is away or ended the stream, rather than refused it."""
    return exit_status(error) == EXIT_NOT_READY or error.code.name == "CANCELLED"


def _is_about(version: str, about: str) -> bool:
    return not about or version == about or version.startswith(f"{about}/versions/")


def event_table(document: Document) -> "RenderableType":
    """Return a table with the newest event last, where the eye falls."""
    return table(_HEADINGS, [_row(event) for event in reversed(document["events"])])


def _row(event: Document) -> tuple[str, ...]:
    reason = event["reason"]
    newcomer = short(event["for_version"])
    if newcomer not in reason:
        reason = f"{reason} (for {newcomer})"
    if event["trace_id"]:
        reason = f"{reason} (trace {event['trace_id']})"
    return (
        clock(event["time"]),
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
