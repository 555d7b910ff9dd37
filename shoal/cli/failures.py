"""The words that commands use when a call fails, and the exit statuses that they end with."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import typer

from shoal.cli.addresses import Addresses

if TYPE_CHECKING:
    from shoal.client import CallFailed

EXIT_REFUSED: Final = 1
EXIT_NOT_READY: Final = 3

START: Final = (
    "Start a stack with `shoal up`, or say where one runs with --router, --controller, --registry "
    "or --announce."
)

# Reasons that mean that a service is not available, rather than that the request was wrong.
_AWAY: Final = ("NOT_READY", "CONTROLLER_UNAVAILABLE", "REGISTRY_UNAVAILABLE")


@contextmanager
def reported(at: Addresses) -> Iterator[None]:
    """Report a CallFailed inside the block on standard error, and end the command."""
    from shoal.client import CallFailed

    try:
        yield
    except CallFailed as error:
        complain(described(error, at))
        raise typer.Exit(exit_status(error)) from error


def exit_status(error: "CallFailed") -> int:
    """Return EXIT_NOT_READY where the same call may succeed later, else EXIT_REFUSED."""
    late = error.code.name == "DEADLINE_EXCEEDED" or error.reason == "DEADLINE_TOO_SHORT"
    away = error.unreachable or error.reason in _AWAY
    return EXIT_NOT_READY if late or away else EXIT_REFUSED


def described(error: "CallFailed", at: Addresses) -> str:
    """Describe an error for people: what happened, why, and what to do."""
    service = service_at(error.address, at)
    if error.unreachable:
        return f"the {service} at {error.address} cannot be reached ({cause(error)}). {START}"
    if error.code.name == "DEADLINE_EXCEEDED" and not error.reason:
        return f"the {service} at {error.address} did not answer in time: {error.message}"
    return f"{error.message} [{error.reason or error.code.name}]"


def cause(error: "CallFailed") -> str:
    """Return the operating system's words, which end gRPC's long text about an address."""
    return error.message.rpartition(": ")[2]


def service_at(address: str, at: Addresses) -> str:
    """Return the name of the service at an address."""
    named = {at.registry: "Registry", at.controller: "Controller", at.router: "Router"}
    return named.get(address, "service")


def complain(text: str) -> None:
    """Print one message on standard error."""
    from shoal.cli.output import printable

    print(f"shoal: {printable(text)}", file=sys.stderr)
