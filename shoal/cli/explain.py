"""`shoal explain`: where a request would go now, and why its model is loaded or is not."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from shoal import names
from shoal.cli import events, replicas
from shoal.cli.connections import addresses, connected
from shoal.cli.failures import complain, described
from shoal.cli.output import Document, JsonFlag, give, message_json, printable, seconds, table
from shoal.cli.references import (
    Reference,
    ReferenceArgument,
    parse_reference,
    resource_name,
    server_of,
    short,
)
from shoal.sizes import format_size

if TYPE_CHECKING:
    from rich.console import RenderableType

    from shoal.client import Client

_EVENTS: Final = 20
_EVICTIONS: Final = 5

# The headings of the four tables.
_SERVERS: Final = ("server", "now", ">score", "would evict", "reason")
_STAYS: Final = (
    *("server", "eviction turn", ">idle", ">uses", ">size"),
    *(">load time", ">in flight", "reason"),
)
_EVICTED: Final = ("evicted at", "server", "to make room for", "reason")
_WEIGHED: Final = ("candidate then", "evicted", ">idle", ">uses", ">size", ">load time", "")


def explain(
    context: typer.Context,
    model: ReferenceArgument,
    limit: Annotated[
        int,
        typer.Option("--limit", "-n", min=1, max=1000, help="The number of past events to show."),
    ] = _EVENTS,
    header: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="A header of the request, such as x-shoal-priority=high. Can be repeated.",
        ),
    ] = None,
    sequence: Annotated[
        str, typer.Option(metavar="ID", help="The ID of the sequence that the request belongs to.")
    ] = "",
    json: JsonFlag = False,
) -> None:
    """Explain where a request would go now, and why its model is loaded or is not.

    Shows the Router's decision; for each version that could answer, what each server could do for
    it and what would be evicted; and its replicas, its past evictions and its latest events.
    """
    from shoal.client import CallFailed

    reference = parse_reference(model)
    headers = dict(map(_header, header or ()))
    with connected(context) as shoal:
        try:
            route, away = _route(shoal, reference, headers, sequence), None
        except CallFailed as error:
            if not error.unreachable:
                raise
            route, away = {**_requested(reference), "arms": None, "steps": None}, error
        known: Document = {"replicas": None, "why": None, "events": None}
        try:
            known = _residency(shoal, route, limit)
        except CallFailed as error:
            if away is not None:
                raise (away if error.unreachable else error) from None
            why = described(error, addresses(context))
            complain(f"cannot list replicas and events: {why}")
        if away is not None:
            why = described(away, addresses(context))
            complain(f"cannot tell where a request would go: {why}")
        give({**route, **known}, _rendered, json)


def _requested(model: Reference) -> Document:
    return {"model": model.model, "version": model.version}


def _header(text: str) -> tuple[str, str]:
    key, given, value = text.partition("=")
    if not given or not key:
        raise typer.BadParameter(f"{text!r} is not KEY=VALUE", param_hint="--header")
    return key, value


def _route(
    shoal: "Client", model: Reference, headers: Mapping[str, str], sequence: str
) -> Document:
    from shoal.router.v1.router_service_pb2 import ExplainRouteRequest

    request = ExplainRouteRequest(
        model=model.model, version=model.version, headers=headers, sequence_id=sequence
    )
    return {**_requested(model), **message_json(shoal.call(shoal.router.ExplainRoute, request))}


def _residency(shoal: "Client", route: Document, limit: int) -> Document:
    """Return what the Controller knows of every version that the request could go to.

    Replicas and events are those of the whole model where the request names no version. Where the
    Router is away (`arms` is null), the Controller chooses the version.
    """
    requested = Reference(route["model"], route["version"])
    if route["arms"] is None:
        versions = targets = [resource_name(shoal, str(requested))]
    else:
        arms = [(arm["model"], arm["version"]) for arm in route["arms"]]
        versions = list(dict.fromkeys(names.version_name(*arm) for arm in arms))
        models = list(dict.fromkeys(names.model_name(model) for model, _ in arms))
        targets = versions if requested.version else models
    found: list[Any] = [one for name in targets for one in replicas.read(shoal, name)["replicas"]]
    happened = [one for name in targets for one in events.read(shoal, name, limit)]
    happened.sort(key=lambda event: (event["epoch"], event["sequence"]), reverse=True)
    why = [_why(shoal, name) for name in versions]
    return {"replicas": found, "why": why, "events": happened[:limit]}


def _why(shoal: "Client", name: str) -> Document:
    """Return `{"name", "resident": […], "not_loaded": {…}, "evicted": […]}`. Raises CallFailed."""
    from shoal.controller.v1 import controller_service_pb2 as controller

    stub = shoal.controller
    resident = shoal.call(stub.WhyResident, controller.WhyResidentRequest(name=name))
    absent = shoal.call(stub.WhyNotLoaded, controller.WhyNotLoadedRequest(name=name))
    request = controller.WhyEvictedRequest(name=name, page_size=_EVICTIONS)
    evicted = shoal.call(stub.WhyEvicted, request)
    return {
        "name": name,
        "resident": message_json(resident)["replicas"],
        "not_loaded": message_json(absent),
        "evicted": message_json(evicted)["evictions"],
    }


# --- for people -----------------------------------------------------------------------------------


def _rendered(document: Document) -> "RenderableType":
    from rich.console import Group
    from rich.text import Text

    steps = [f"{number}. {step}" for number, step in enumerate(document["steps"] or (), 1)]
    parts: list[RenderableType] = [Text("\n".join(map(printable, steps)))] if steps else []
    for why in document["why"] or ():
        parts += _explained(why)
    for heading, render in (("replicas", replicas.replica_table), ("events", events.event_table)):
        if document[heading]:
            parts.append(render(document))
        elif document[heading] is not None:
            parts.append(Text(f"no {heading}", "dim"))
    apart = [line for part in parts for line in (Text(""), part)]
    return Group(*apart[1:])


def _explained(why: Document) -> Iterator["RenderableType"]:
    """Yield what there is to say about one version: a reason, then tables."""
    from rich.console import Group
    from rich.text import Text

    absent = why["not_loaded"]
    reason = Text(printable(absent["reason"]))
    drawn = [reason, table(_SERVERS, map(_server_row, absent["servers"]))]
    yield Group(*(drawn if absent["servers"] else drawn[:1]))
    if why["resident"]:
        yield table(_STAYS, map(_stay_row, why["resident"]))
    if why["evicted"]:
        yield table(_EVICTED, map(_evicted_row, why["evicted"]))
        weighed = why["evicted"][0]["candidates"]
        if weighed:
            yield table(_WEIGHED, map(_weighed_row, weighed))


def _server_row(verdict: Document) -> tuple[str, ...]:
    can = "could hold it" if verdict["possible"] else "cannot hold it"
    return (
        short(verdict["server"]),
        "holds it" if verdict["holds"] else can,
        f"{verdict['score']:.2f}" if verdict["possible"] else "",
        _names(verdict["victims"]),
        verdict["reason"],
    )


def _stay_row(stay: Document) -> tuple[str, ...]:
    turn, kept, numbers = stay["eviction_turn"], "; ".join(stay["kept_by"]), stay["weighed"]
    position = f"{turn} of {stay['candidates']}" if turn else "not now"
    reasons = [stay["placed"], f"kept: {kept}" if kept else ""]
    if (ttl := numbers.get("idle_ttl_seconds")) is not None:
        reasons.append(f"evicted after {seconds(ttl)} without use")
    return (
        server_of(stay["replica"]["name"]),
        position,
        *_numbers(numbers),
        f"{numbers.get('in_flight', 0):.0f}",
        "\n".join(filter(None, reasons)),
    )


def _evicted_row(eviction: Document) -> tuple[str, ...]:
    event = eviction["event"]
    moment = datetime.fromisoformat(event["time"]).astimezone()
    return (
        f"{moment:%Y-%m-%d %H:%M:%S}",
        short(event["server"]),
        short(event["for_version"]),
        event["reason"],
    )


def _weighed_row(candidate: Document) -> tuple[str, ...]:
    chosen = "yes" if candidate["evicted"] else "no"
    return (short(candidate["version"]), chosen, *_numbers(candidate["weighed"]), "")


def _numbers(weighed: Document) -> tuple[str, ...]:
    """Return idle time, uses, size and load time."""
    size = weighed.get("bytes")
    return (
        seconds(weighed.get("idle_seconds")),
        f"{weighed.get('uses', 0):.1f}",
        format_size(int(size)) if size is not None else "",
        seconds(weighed.get("reload_seconds")),
    )


def _names(versions: Iterable[str]) -> str:
    return ", ".join(map(short, versions))
