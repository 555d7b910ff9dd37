"""`shoal versions`, `disk` and `gc`: where versions come from, and what they take on disk."""

from typing import TYPE_CHECKING, Annotated, Final

import typer

from shoal import names
from shoal.cli.connections import connected
from shoal.cli.imports import import_table, of_model, source_text
from shoal.cli.output import Document, JsonFlag, clock, counted, give, message_json, table
from shoal.cli.references import ModelArgument, short, version_of
from shoal.sizes import format_size

if TYPE_CHECKING:
    from rich.console import RenderableType

_VERSIONS: Final = ("version", "state", ">size", "registered", "by", "digest", "source", "about")
_HOLDINGS: Final = ("versions", ">size", ">own", "on disk", "stays because")
_DEPARTURES: Final = ("left", "versions", ">freed", "because")
_DIGITS: Final = 12  # of a digest, for people


def versions(context: typer.Context, model: ModelArgument, json: JsonFlag = False) -> None:
    """List the versions of a model, and where each comes from.

    A size is that of all files of the version. Imports that are under way come last.
    """
    from shoal.registry.v1 import registry_service_pb2 as registry

    with connected(context) as shoal:
        request = registry.ListModelVersionsRequest(parent=names.model_name(model))
        found = [
            message_json(one)
            for page in shoal.pages(shoal.registry.ListModelVersions, request)
            for one in page.versions
        ]
        under_way = [one for one in of_model(shoal, model) if one["end_time"] is None]
    give({"versions": found, "imports": under_way}, _version_table, json)


def _version_table(document: Document) -> "RenderableType":
    from rich.console import Group

    listed = table(_VERSIONS, map(_version_row, document["versions"]))
    return Group(listed, "", import_table(document)) if document["imports"] else listed


def _version_row(version: Document) -> tuple[str, ...]:
    origin = version["provenance"]
    about = ", ".join(f"{key} {value}" for key, value in origin["about"].items())
    source = source_text(origin) if origin["digest"] else f"{version['source']} (in place)"
    revision = origin["source"]["revision"]
    return (
        str(version_of(version["name"])),
        version["state"],
        format_size(version["artifact_bytes"]),
        clock(origin["register_time"]),
        origin["registered_by"],
        origin["digest"].removeprefix("sha256:")[:_DIGITS],
        f"{source} at {revision[:_DIGITS]}" if revision else source,
        about,
    )


def disk(context: typer.Context, json: JsonFlag = False) -> None:
    """Show what the files that the Registry has fetched or was sent take on its disk.

    "Own" is what nothing else shares. What may leave the disk does, the least recently used first,
    when there is no room for something else; it is fetched again when its version is loaded.
    """
    from shoal.registry.v1.registry_service_pb2 import GetDiskUsageRequest

    with connected(context) as shoal:
        reply = shoal.call(shoal.registry.GetDiskUsage, GetDiskUsageRequest())
    give(message_json(reply), _disk_table, json)


def _disk_table(document: Document) -> "RenderableType":
    from rich.console import Group

    budget = document["budget_bytes"]
    limit = f"of {format_size(budget)}" if budget else "without a limit"
    parts: list[RenderableType] = [
        f"{format_size(document['used_bytes'])} {limit}, "
        f"{format_size(document['free_bytes'])} free on the file system",
        "",
        table(_HOLDINGS, map(_holding_row, document["holdings"])),
    ]
    if document["departures"]:
        parts += ["", table(_DEPARTURES, map(_departure_row, document["departures"]))]
    return Group(*parts)


def _holding_row(one: Document) -> tuple[str, ...]:
    return (
        _versions(one) or "(an upload)",
        format_size(one["total_bytes"]),
        format_size(one["own_bytes"]),
        "yes" if one["present"] else "no",
        one["kept_because"],
    )


def _departure_row(one: Document) -> tuple[str, ...]:
    time = clock(one["time"]) if one["time"] else ""
    return (time, _versions(one), format_size(one["freed_bytes"]), one["reason"])


def _versions(one: Document) -> str:
    return ", ".join(map(short, one["versions"]))


def gc(
    context: typer.Context,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be removed.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Remove what nothing needs from the Registry's store, and what exceeds its budget."""
    from shoal.registry.v1.registry_service_pb2 import CollectGarbageRequest

    with connected(context) as shoal:
        reply = shoal.call(shoal.registry.CollectGarbage, CollectGarbageRequest(dry_run=dry_run))
    document = {**message_json(reply), "dry_run": dry_run}
    give(document, _garbage, json)


def _garbage(document: Document) -> "RenderableType":
    from rich.console import Group

    rows = [
        (_versions(one) or one["digest"][:_DIGITS], format_size(one["freed_bytes"]), one["reason"])
        for one in document["departures"]
    ]
    verb = "would free" if document["dry_run"] else "freed"
    total = f"{verb} {format_size(document['freed_bytes'])} of {counted(len(rows), 'item')}"
    return Group(table(("what", ">freed", "because"), rows), "", total) if rows else total
