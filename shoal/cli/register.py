"""`shoal register`: register files as a version of a model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from shoal import names
from shoal.cli.connections import connected
from shoal.cli.failures import EXIT_REFUSED, complain
from shoal.cli.imports import bar, fetched_version, finished, model_in, say_started, start
from shoal.cli.output import Document, JsonFlag, message_json, print_json
from shoal.cli.propagation import await_router
from shoal.cli.references import short, version_of
from shoal.sizes import format_size, parse_size

if TYPE_CHECKING:
    from shoal.client import Client

STAGING_TIMEOUT: Final = 300.0  # seconds: large files are copied


def parse_memory(text: str) -> tuple[str, int]:
    """Parse `RESOURCE=SIZE` into resource and bytes. Raises typer.BadParameter."""
    resource, _, size = text.partition("=")
    try:
        if not resource:
            raise ValueError(f"{text!r} is not RESOURCE=SIZE, such as ram=512MiB or gpu:0=4GiB")
        return resource, parse_size(size)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def register(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A folder on the Registry's host, which is served in place: a model's folder "
            "(config.pbtxt and numbered version folders), or the content of one version folder. Or "
            "a source that is fetched, such as s3://bucket/model or file:///folder.",
        ),
    ],
    name: Annotated[
        str,
        typer.Option(
            help="Name of the model; it is created if it is new. By default the last part of "
            "SOURCE.",
            show_default=False,
        ),
    ] = "",
    version: Annotated[
        int,
        typer.Option(
            min=0,
            help="Number of the version. 0: the number of the version folder, if SOURCE has one, "
            "else the next free number.",
        ),
    ] = 0,
    pending: Annotated[
        bool,
        typer.Option("--pending", help="Do not make it the default until it is approved."),
    ] = False,
    memory: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RESOURCE=SIZE",
            help="Memory that the version takes, such as ram=512MiB or gpu:0=4GiB. Can be "
            "repeated. Learned while it runs if not given.",
        ),
    ] = None,
    upload: Annotated[
        bool,
        typer.Option("--upload", help="SOURCE is a folder or a file on this machine: send it."),
    ] = False,
    wait: Annotated[
        bool,
        typer.Option(
            "--wait/--no-wait",
            help="Wait until what is fetched is registered, or return once that is under way.",
        ),
    ] = True,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            help="Look at SOURCE again and again, and import the next version whenever it means "
            "something else, such as an MLflow alias that has moved. `shoal imports` lists it.",
        ),
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Register files as a version of a model, so that it can answer requests.

    Exit status 1 where the version is registered, but cannot be served, or an import has failed.
    """
    declared = dict(map(parse_memory, memory or ()))
    if watch and (upload or "://" not in source):
        raise typer.BadParameter("only a source that is fetched can be watched")
    model = name or model_in(source)
    with connected(context) as shoal:
        if upload:
            with bar(f"uploading {model}") as told:
                path = Path(source).expanduser()
                try:
                    sent = shoal.upload(
                        model,
                        path,
                        version=version,
                        pending=pending,
                        declared_memory=declared,
                        progress=told,
                    )
                except (OSError, ValueError) as error:
                    raise typer.BadParameter(str(error)) from error
            made = fetched_version(shoal, names.version_name(sent.model, sent.version))
        elif "://" in source:
            started = start(
                shoal, names.model_name(model), source, version, pending, declared, watch
            )
            if not wait:
                say_started(started, json)
                return
            made = fetched_version(shoal, finished(shoal, started["imports"][0])["version"])
        else:
            made = _in_place(shoal, model, source, version, pending, declared)
        usable = made["state"] != "INVALID"
        if usable:
            number = version_of(made["name"])
            await_router(context, shoal, model, str(number), number)
    _show(made, json)
    if not usable:
        raise typer.Exit(EXIT_REFUSED)


def _in_place(
    shoal: "Client",
    model: str,
    path: str,
    version: int,
    pending: bool,
    memory: dict[str, int],
) -> Document:
    """Register a folder on the Registry's host. Raises CallFailed."""
    from shoal.registry.v1.registry_service_pb2 import RegisterModelVersionRequest

    request = RegisterModelVersionRequest(
        parent=names.model_name(model),
        source=str(Path(path).expanduser().absolute()),
        version=version,
        pending=pending,
        declared_memory=memory,
    )
    reply = shoal.call(shoal.registry.RegisterModelVersion, request, timeout=STAGING_TIMEOUT)
    return message_json(reply.version)


def _show(version: Document, as_json: bool) -> None:
    if as_json:
        print_json({"version": version})
        return
    size = format_size(version["artifact_bytes"])
    print(f"registered {short(version['name'])}: {version['state']}, {size} of files")
    if version["waiting_reason"]:
        print(f"a Triton is asked to complete its config: {version['waiting_reason']}")
    if version["invalid_reason"]:
        complain(f"{short(version['name'])} cannot be served: {version['invalid_reason']}")
