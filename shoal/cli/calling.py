"""How every command calls the services, and how it ends when one of them does not answer."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import typer

from shoal.cli.addresses import Addresses, BadAddress, NotAnnounced, find

if TYPE_CHECKING:
    from shoal.client import CallFailed, Client

EXIT_REFUSED: Final = 1
EXIT_NOT_READY: Final = 3

# Reasons that say that something is away, not that the request was wrong.
_AWAY: Final = ("NOT_READY", "CONTROLLER_UNAVAILABLE", "REGISTRY_UNAVAILABLE")

START: Final = (
    "`shoal up` starts a stack; --router, --controller, --registry or --announce say where one is."
)


def where(context: typer.Context) -> Addresses:
    """As the command line and the environment say. Raises NotAnnounced, typer.BadParameter."""
    try:
        return find(context.obj, os.environ)
    except BadAddress as error:
        raise typer.BadParameter(str(error)) from error


def addresses(context: typer.Context) -> Addresses:
    """As `where`, but ends the command with EXIT_NOT_READY where nothing is announced."""
    try:
        return where(context)
    except NotAnnounced as error:
        complain(str(error))
        raise typer.Exit(EXIT_NOT_READY) from error


@contextmanager
def calling(context: typer.Context) -> Iterator["Client"]:
    """A client of all three services; a call that fails ends the command with its exit status."""
    from shoal.client import connect

    at = addresses(context)
    with (
        reported(at),
        connect(registry=at.registry, controller=at.controller, router=at.router) as shoal,
    ):
        yield shoal


@contextmanager
def reported(at: Addresses) -> Iterator[None]:
    """A CallFailed inside is told on the standard error, and ends the command."""
    from shoal.client import CallFailed

    try:
        yield
    except CallFailed as error:
        complain(told(error, at))
        raise typer.Exit(exit_status(error)) from error


def exit_status(error: "CallFailed") -> int:
    """EXIT_NOT_READY where repeating it later may help, EXIT_REFUSED where it was refused."""
    late = error.code.name == "DEADLINE_EXCEEDED" or error.reason == "DEADLINE_TOO_SHORT"
    away = error.unreachable or error.reason in _AWAY
    return EXIT_NOT_READY if late or away else EXIT_REFUSED


def told(error: "CallFailed", at: Addresses) -> str:
    """The error in words, with its reason and with what to do."""
    part = name_of(error.address, at)
    if error.unreachable:
        return f"the {part} at {error.address} cannot be reached ({cause(error)}). {START}"
    if error.code.name == "DEADLINE_EXCEEDED" and not error.reason:
        return f"the {part} at {error.address} did not answer in time: {error.message}"
    return f"{error.message} [{error.reason or error.code.name}]"


def cause(error: "CallFailed") -> str:
    """The end of gRPC's long text about an address: what the system said."""
    return error.message.rpartition(": ")[2]


def name_of(address: str, at: Addresses) -> str:
    named = {at.registry: "Registry", at.controller: "Controller", at.router: "Router"}
    return named.get(address, "service")


def complain(text: str) -> None:
    """One message on the standard error."""
    from shoal.cli.output import printable

    print(f"shoal: {printable(text)}", file=sys.stderr)
