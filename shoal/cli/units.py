"""`MODEL[:VERSION]` on the command line, and resource names in tables."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from shoal import names

if TYPE_CHECKING:
    from shoal.client import CallFailed, Client


class Unit(NamedTuple):
    """`version`: a number or an alias, as it was written; "" where none was."""

    model: str
    version: str

    def __str__(self) -> str:
        return f"{self.model}:{self.version}" if self.version else self.model


def parse_unit(text: str) -> Unit:
    """`MODEL` or `MODEL:VERSION`. Whether such names are allowed is the services' to say.

    Raises typer.BadParameter.
    """
    model, colon, version = text.partition(":")
    if not model or (colon and not version):
        raise typer.BadParameter(f"{text!r} is not MODEL or MODEL:VERSION")
    return Unit(model, version)


def parse_versioned(text: str) -> Unit:
    """As parse_unit, where the version must be there."""
    unit = parse_unit(text)
    if not unit.version:
        raise typer.BadParameter(f"{text!r} names no version: write MODEL:VERSION")
    return unit


UnitArgument = Annotated[
    str,
    typer.Argument(metavar="MODEL[:VERSION]", help="VERSION is a number or an alias."),
]
MaybeUnitArgument = Annotated[
    str,
    typer.Argument(metavar="[MODEL[:VERSION]]", help="All without one.", show_default=False),
]
VersionedArgument = Annotated[str, typer.Argument(metavar="MODEL:VERSION")]


def resource(shoal: "Client", text: str) -> str:
    """The resource name that MODEL[:VERSION] means, "" for ""; an alias is looked up.

    Raises CallFailed, typer.BadParameter.
    """
    if not text:
        return ""
    unit = parse_unit(text)
    if not unit.version:
        return names.model_name(unit.model)
    if not names.is_alias(unit.version):
        return f"models/{unit.model}/versions/{unit.version}"
    aliases = aliases_of(shoal, unit.model)
    if unit.version not in aliases:
        raise _no_such_alias(unit, aliases)
    return names.version_name(unit.model, aliases[unit.version])


def _no_such_alias(unit: Unit, aliases: Iterable[str]) -> "CallFailed":
    """As a service would say it: those that take a version know no aliases."""
    import grpc

    from shoal.client import CallFailed

    known = ", ".join(sorted(aliases)) or "none"
    text = f"model {unit.model!r} has no alias {unit.version!r}; it has: {known}"
    return CallFailed(grpc.StatusCode.NOT_FOUND, text, reason="VERSION_NOT_FOUND")


def aliases_of(shoal: "Client", model: str) -> dict[str, int]:
    """Alias to version. Raises CallFailed."""
    from shoal.registry.v1.registry_service_pb2 import GetModelRequest

    request = GetModelRequest(name=names.model_name(model))
    return dict(shoal.call(shoal.registry.GetModel, request).model.aliases)


def short(name: str) -> str:
    """`models/m/versions/2` → `m:2`, `servers/s/replicas/m:2` → `m:2`, `servers/s` → `s`."""
    match name.split("/"):
        case ["models", model, "versions", version]:
            return f"{model}:{version}"
        case ["models", model, "aliases", alias]:
            return f"{model}:{alias}"
        case [_, _, "replicas", replica]:
            return replica
        case [_, last]:
            return last
    return name


def server_of(replica: str) -> str:
    """The server in `servers/{server}/replicas/{model}:{version}`."""
    return replica.split("/")[1]
