"""`shoal diagnostics`: the Controller's check of its own decisions, and what it did last."""

from typing import TYPE_CHECKING, Annotated, Final

import typer

from shoal.cli.connections import connected
from shoal.cli.output import Document, JsonFlag, clock, give, message_json, table

if TYPE_CHECKING:
    from rich.console import RenderableType

_HEADINGS: Final = ("time", "event and instructions")


def diagnostics(
    context: typer.Context,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=0, max=256, help="How many events, the newest.")
    ] = 20,
    json: JsonFlag = False,
) -> None:
    """Have the Controller check its own state, and show the last events that it handled.

    For a bug report: nothing here should ever be broken. The Controller does nothing else while it
    checks, a moment for a few servers and seconds for a very large fleet.
    """
    from shoal.controller.v1.controller_service_pb2 import GetDiagnosticsRequest

    with connected(context) as shoal:
        reply = shoal.call(shoal.controller.GetDiagnostics, GetDiagnosticsRequest())
    document = message_json(reply)
    document["events"] = document["events"][len(document["events"]) - limit :] if limit else []
    give(document, _rendered, json)


def _rendered(document: Document) -> "RenderableType":
    from rich.console import Group
    from rich.text import Text

    counts = ", ".join(f"{count} {name}" for name, count in document["counts"].items())
    found = [f"broken: {sentence}" for sentence in document["violations"]]
    parts: list[RenderableType] = [
        Text("\n".join(found or ["Every invariant holds."])),
        Text(counts.replace("_", " ")),
    ]
    if document["events"]:
        rows = [
            (clock(event["time"]), "\n  ".join((event["event"], *event["instructions"])))
            for event in document["events"]
        ]
        parts += [Text(""), table(_HEADINGS, rows)]
    return Group(*parts)
