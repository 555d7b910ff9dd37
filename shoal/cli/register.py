"""`shoal register`: a new model, or a new version of one."""

from pathlib import Path
from typing import Annotated, Final

import typer

from shoal import names
from shoal.cli.calling import EXIT_REFUSED, calling, complain
from shoal.cli.output import Document, JsonFlag, message_json, print_json
from shoal.cli.settling import await_router
from shoal.cli.units import short
from shoal.sizes import format_size, parse_size

STAGING_TIMEOUT: Final = 300.0  # seconds: large files are copied


def parse_memory(text: str) -> tuple[str, int]:
    """`ram=512MiB` → resource and bytes. Raises typer.BadParameter."""
    resource, _, size = text.partition("=")
    try:
        if not resource:
            raise ValueError(f"{text!r} is not RESOURCE=SIZE, such as ram=512MiB or gpu:0=4GiB")
        return resource, parse_size(size)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def register(
    context: typer.Context,
    path: Annotated[
        Path,
        typer.Argument(
            help="On the Registry's host: a model's folder (config.pbtxt and numbered version "
            "folders), or the content of one version folder. Only read.",
        ),
    ],
    name: Annotated[str, typer.Option(help="The model's name; a new one makes a new model.")],
    version: Annotated[
        int,
        typer.Option(min=0, help="0: the number of the folder, else the next free one."),
    ] = 0,
    pending: Annotated[
        bool, typer.Option("--pending", help="Not to be the default until it is approved.")
    ] = False,
    memory: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RESOURCE=SIZE", help="What it takes, such as ram=512MiB. Learned otherwise."
        ),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Register a model version, so that it can be asked for."""
    from shoal.registry.v1.registry_service_pb2 import RegisterModelVersionRequest

    request = RegisterModelVersionRequest(
        parent=names.model_name(name),
        source=str(path.expanduser().absolute()),
        version=version,
        pending=pending,
        declared_memory=dict(map(parse_memory, memory or ())),
    )
    with calling(context) as shoal:
        reply = shoal.call(shoal.registry.RegisterModelVersion, request, timeout=STAGING_TIMEOUT)
        made = message_json(reply.version)
        usable = made["state"] != "INVALID"
        if usable:
            number = int(made["name"].rpartition("/")[2])
            await_router(context, shoal, name, str(number), number)
    _show(made, json)
    if not usable:
        raise typer.Exit(EXIT_REFUSED)


def _show(version: Document, as_json: bool) -> None:
    if as_json:
        print_json({"version": version})
        return
    size = format_size(version["artifact_bytes"])
    print(f"registered {short(version['name'])}: {version['state']}, {size} in files")
    if version["invalid_reason"]:
        complain(f"{short(version['name'])} cannot be served: {version['invalid_reason']}")
