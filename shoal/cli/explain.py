"""`shoal explain`: what would happen to a request now, and what happened before."""

from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from shoal import names
from shoal.cli import events, replicas
from shoal.cli.calling import addresses, calling, complain, told
from shoal.cli.output import Document, JsonFlag, give, message_json, printable
from shoal.cli.units import Unit, UnitArgument, parse_unit

if TYPE_CHECKING:
    from rich.console import RenderableType

    from shoal.client import Client

_EVENTS: Final = 20


def explain(
    context: typer.Context,
    model: UnitArgument,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, max=1000, help="The newest that many events.")
    ] = _EVENTS,
    json: JsonFlag = False,
) -> None:
    """Say where a request for a model would go now, and what happened to it lately."""
    from shoal.client import CallFailed

    with calling(context) as shoal:
        document = _route(shoal, parse_unit(model))
        known: Document = {"replicas": None, "events": None}
        try:
            known = _residency(shoal, document, limit)
        except CallFailed as error:
            complain(f"replicas and events are not known: {told(error, addresses(context))}")
        give({**document, **known}, _rendered, json)


def _route(shoal: "Client", model: Unit) -> Document:
    from shoal.router.v1.router_service_pb2 import ExplainRouteRequest

    request = ExplainRouteRequest(model=model.model, version=model.version)
    reply = message_json(shoal.call(shoal.router.ExplainRoute, request))
    return {"model": model.model, "version": model.version, **reply}


def _residency(shoal: "Client", route: Document, limit: int) -> Document:
    """Of every version that the request could go to; of the whole model where none was named."""
    targets = dict.fromkeys(_about(arm, route) for arm in route["arms"])
    found: list[Any] = [one for name in targets for one in replicas.read(shoal, name)["replicas"]]
    happened = [one for name in targets for one in events.read(shoal, name, limit)]
    happened.sort(key=lambda event: event["sequence"], reverse=True)
    return {"replicas": found, "events": happened[:limit]}


def _about(arm: Document, route: Document) -> str:
    if route["version"]:
        return names.version_name(arm["model"], arm["version"])
    return names.model_name(arm["model"])


def _rendered(document: Document) -> "RenderableType":
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [
        Text(f"{number}. {printable(step)}") for number, step in enumerate(document["steps"], 1)
    ]
    for heading, render in (("replicas", replicas.replica_table), ("events", events.event_table)):
        if document[heading]:
            parts += [Text(""), render(document)]
        elif document[heading] is not None:
            parts += [Text(""), Text(f"no {heading}", "dim")]
    return Group(*parts)
