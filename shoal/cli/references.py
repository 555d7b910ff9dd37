"""`MODEL[:VERSION]` on the command line, and resource names in tables."""

from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from shoal import names

if TYPE_CHECKING:
    from shoal.client import Client


class Reference(NamedTuple):
    """A model, or one of its versions.

    `version` is a number or an alias as it was typed, or "" where none was.
    """

    model: str
    version: str

    def __str__(self) -> str:
        return f"{self.model}:{self.version}" if self.version else self.model


def parse_reference(text: str) -> Reference:
    """Parse `MODEL` or `MODEL:VERSION`. Raises typer.BadParameter.

    The names themselves are not checked, because the services do that.
    """
    model, colon, version = text.partition(":")
    if not model or (colon and not version):
        raise typer.BadParameter(f"{text!r} is not MODEL or MODEL:VERSION")
    return Reference(model, version)


def parse_versioned(text: str) -> Reference:
    """Parse `MODEL:VERSION`. Raises typer.BadParameter."""
    reference = parse_reference(text)
    if not reference.version:
        raise typer.BadParameter(f"{text!r} names no version: write MODEL:VERSION")
    return reference


_VERSION: str = "VERSION is a number or an alias."

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="Name of the model.")]
ReferenceArgument = Annotated[str, typer.Argument(metavar="MODEL[:VERSION]", help=_VERSION)]
OptionalReferenceArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL[:VERSION]",
        help=f"Show only this model or version. {_VERSION}",
        show_default=False,
    ),
]
VersionedArgument = Annotated[str, typer.Argument(metavar="MODEL:VERSION", help=_VERSION)]


def resource_name(shoal: "Client", text: str) -> str:
    """Return the resource name for MODEL[:VERSION], or "" for "". An alias is looked up.

    Raises CallFailed and typer.BadParameter.
    """
    from shoal.client import resolve

    if not text:
        return ""
    reference = parse_reference(text)
    return shoal.perform(resolve.resource_name(reference.model, reference.version))


def short(name: str) -> str:
    """Shorten a resource name for people.

    `models/m/versions/2` and `servers/s/replicas/m:2` become `m:2`, `servers/s` becomes `s`.
    """
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
    """Return the server in `servers/{server}/replicas/{model}:{version}`."""
    return replica.split("/")[1]


def version_of(name: str) -> int:
    """Return the number in `models/{model}/versions/{version}`. Raises ValueError."""
    found = names.parse_version_name(name)
    if found is None:
        raise ValueError(f"{name!r} is not models/MODEL/versions/VERSION")
    return found.version
