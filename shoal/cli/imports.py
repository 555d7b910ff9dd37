"""`shoal imports`, and how other commands start imports and follow them."""

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from shoal import names
from shoal.cli.connections import connected
from shoal.cli.failures import EXIT_REFUSED, complain
from shoal.cli.output import Document, JsonFlag, clock, give, message_json, print_json, table
from shoal.cli.references import short
from shoal.sizes import format_size

if TYPE_CHECKING:
    from rich.console import RenderableType

    from shoal.client import Client

START_TIMEOUT: Final = 300.0  # seconds: a source is listed
_HEADINGS: Final = ("import", "model", "state", ">arrived", ">of", "started", "by", "source", "")
_WATCHES: Final = "sourceWatches/"
_ARCHIVE: Final = re.compile(r"\.(?:zip|tar|tgz|tar\.(?:gz|zst))$")


def imports(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Show only this model's.", show_default=False)
    ] = "",
    cancel: Annotated[
        str,
        typer.Option(metavar="IMPORT", help="End this import instead.", show_default=False),
    ] = "",
    unwatch: Annotated[
        str,
        typer.Option(
            metavar="WATCH", help="End this watch of a source instead.", show_default=False
        ),
    ] = "",
    json: JsonFlag = False,
) -> None:
    """List the imports that are under way or ended within a day, and what is watched."""
    from shoal.registry.v1 import registry_service_pb2 as registry

    with connected(context) as shoal:
        if cancel:
            request = registry.CancelImportRequest(name=f"imports/{cancel}")
            reply = shoal.call(shoal.registry.CancelImport, request)
            found = [message_json(getattr(reply, "import"))]
        else:
            if unwatch:
                ended = registry.DeleteSourceWatchRequest(name=f"{_WATCHES}{unwatch}")
                shoal.call(shoal.registry.DeleteSourceWatch, ended)
            found = of_model(shoal, model)
        watches = [one for one in _watches(shoal) if not model or short(one["model"]) == model]
    give({"imports": found, "source_watches": watches}, _shown, json)


def _watches(shoal: "Client") -> list[Document]:
    from shoal.registry.v1 import registry_service_pb2 as registry

    request = registry.ListSourceWatchesRequest()
    return [
        message_json(one)
        for page in shoal.pages(shoal.registry.ListSourceWatches, request)
        for one in page.source_watches
    ]


def _shown(document: Document) -> "RenderableType":
    from rich.console import Group

    shown = import_table(document)
    return Group(shown, _watch_table(document)) if document["source_watches"] else shown


def _watch_table(document: Document) -> "RenderableType":
    return table(
        ("watch", "model", "since", "by", "source", "at", ""),
        [
            (
                one["name"].removeprefix(_WATCHES),
                short(one["model"]),
                clock(one["start_time"]),
                one["started_by"],
                f"{one['source']['scheme']}://{one['source']['locator']}",
                one["source"]["revision"],
                one["problem"],
            )
            for one in document["source_watches"]
        ],
    )


def of_model(shoal: "Client", model: str) -> list[Document]:
    """Return the imports of one model, or of all with "". Raises CallFailed."""
    from shoal.registry.v1 import registry_service_pb2 as registry

    request = registry.ListImportsRequest(parent=names.model_name(model) if model else "")
    return [
        message_json(one)
        for page in shoal.pages(shoal.registry.ListImports, request)
        for one in page.imports
    ]


def import_table(document: Document) -> "RenderableType":
    return table(
        _HEADINGS,
        [
            (
                one["name"].removeprefix("imports/"),
                short(one["version"] or one["model"]),
                one["state"],
                format_size(one["bytes_done"]),
                "?" if one["bytes_total"] is None else format_size(one["bytes_total"]),
                clock(one["start_time"]),
                one["started_by"],
                source_text(one),
                one["reason"],
            )
            for one in document["imports"]
        ],
    )


def source_text(found: Document) -> str:
    """Return the source of an import or of a version's provenance, for people."""
    source = f"{found['source']['scheme']}://{found['source']['locator']}"
    return f"{source}, folder {found['folder']}" if found["folder"] else source


def model_in(source: str) -> str:
    """Return the model's name in a source, for a model that is given none: its last part.

    Raises typer.BadParameter.
    """
    scheme, fetched, locator = source.rpartition("://")
    last = locator.rstrip("/").rpartition("/")[2]
    if scheme == "mlflow":
        last = re.split("[@/]", locator)[0]
    elif fetched:
        last = _ARCHIVE.sub("", re.split("[@:]", last)[0])
    if not names.is_model_name(last):
        raise typer.BadParameter(f"{last!r} cannot be a model's name: give one with --name")
    return last


def start(
    shoal: "Client",
    parent: str,
    source: str,
    version: int = 0,
    pending: bool = False,
    memory: Mapping[str, int] | None = None,
    watch: bool = False,
) -> Document:
    """Start imports, and return what came of that. Raises CallFailed."""
    from shoal.registry.v1.registry_service_pb2 import StartImportsRequest

    request = StartImportsRequest(
        parent=parent,
        source=source,
        version=version,
        pending=pending,
        declared_memory=memory,
        watch=watch,
    )
    return message_json(shoal.call(shoal.registry.StartImports, request, timeout=START_TIMEOUT))


def say_started(started: Document, as_json: bool) -> None:
    if as_json:
        print_json(started)
        return
    for one in started["imports"]:
        print(f"{one['name']} is under way: see `shoal imports`")


def follow(shoal: "Client", one: Document) -> Document:
    """Follow an import to its end with a bar, and return it as it is then. Raises CallFailed."""
    from shoal.registry.v1.registry_service_pb2 import WatchImportRequest

    last = one
    with bar(f"fetching {short(one['model'])}") as told:
        request = WatchImportRequest(name=one["name"])
        for response in shoal.stream(shoal.registry.WatchImport, request):
            last = message_json(getattr(response, "import"))
            told(last["bytes_done"], last["bytes_total"])
    return last


def finished(shoal: "Client", one: Document) -> Document:
    """Follow an import to its end. The command ends here unless it has registered something."""
    last = follow(shoal, one)
    if last["state"] != "REGISTERED":
        complain(f"{source_text(last)} was not registered: {last['reason']}")
        raise typer.Exit(EXIT_REFUSED)
    return last


def fetched_version(shoal: "Client", name: str) -> Document:
    """Return a version. Raises CallFailed."""
    from shoal.registry.v1.registry_service_pb2 import GetModelVersionRequest

    request = GetModelVersionRequest(name=name)
    return message_json(shoal.call(shoal.registry.GetModelVersion, request).version)


@contextmanager
def bar(what: str) -> Iterator[Callable[[int, int | None], None]]:
    """Show a bar on standard error while the block runs, if that is a terminal.

    Yields the function that is called with the bytes that have arrived, and all of them.
    """
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    from shoal.cli.output import console

    columns: list[Any] = [TextColumn("{task.description}"), BarColumn(), DownloadColumn()]
    columns += [TransferSpeedColumn(), TimeRemainingColumn()]
    with Progress(*columns, console=console(stderr=True), transient=True) as shown:
        task = shown.add_task(what, total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)
