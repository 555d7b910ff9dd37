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

_START: Final = (
    "`shoal up` starts a stack; --router, --controller, --registry or --announce say where one is."
)


def addresses(context: typer.Context) -> Addresses:
    """As the command line and the environment say. Ends the command where they say nothing."""
    try:
        return find(context.obj, os.environ)
    except BadAddress as error:
        raise typer.BadParameter(str(error)) from error
    except NotAnnounced as error:
        complain(str(error))
        raise typer.Exit(EXIT_NOT_READY) from error


@contextmanager
def calling(context: typer.Context) -> Iterator["Client"]:
    """A client of all three services; a call that fails ends the command with its exit status."""
    from shoal.client import CallFailed, connect

    at = addresses(context)
    with connect(registry=at.registry, controller=at.controller, router=at.router) as shoal:
        try:
            yield shoal
        except CallFailed as error:
            complain(told(error, at))
            raise typer.Exit(exit_status(error)) from error


def exit_status(error: "CallFailed") -> int:
    """EXIT_NOT_READY where repeating it later may help, EXIT_REFUSED where it was refused."""
    late = error.code.name == "DEADLINE_EXCEEDED"
    away = error.unreachable or error.reason in _AWAY
    return EXIT_NOT_READY if late or away else EXIT_REFUSED


def told(error: "CallFailed", at: Addresses) -> str:
    """The error in words, with its reason and with what to do."""
    part = name_of(error.address, at)
    if error.unreachable:
        return f"the {part} at {error.address} cannot be reached ({error.message}). {_START}"
    if error.code.name == "DEADLINE_EXCEEDED" and not error.reason:
        return f"the {part} at {error.address} did not answer in time: {error.message}"
    return f"{error.message} [{error.reason or error.code.name}]"


def name_of(address: str, at: Addresses) -> str:
    named = {at.registry: "Registry", at.controller: "Controller", at.router: "Router"}
    return named.get(address, "service")


def complain(text: str) -> None:
    """One message on the standard error."""
    from shoal.cli.output import printable

    print(f"shoal: {printable(text)}", file=sys.stderr)
