"""Finding the services and connecting to them, the same for every command."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from shoal.cli.addresses import Addresses, BadAddress, NotAnnounced, find
from shoal.cli.failures import EXIT_NOT_READY, complain, reported

if TYPE_CHECKING:
    from shoal.client import Client


def find_addresses(context: typer.Context) -> Addresses:
    """Return the addresses that the command line and the environment give.

    Raises NotAnnounced and typer.BadParameter.
    """
    try:
        return find(context.obj, os.environ)
    except BadAddress as error:
        raise typer.BadParameter(str(error)) from error


def addresses(context: typer.Context) -> Addresses:
    """Do the same as `find_addresses`, but end the command where no stack is announced."""
    try:
        return find_addresses(context)
    except NotAnnounced as error:
        complain(str(error))
        raise typer.Exit(EXIT_NOT_READY) from error


@contextmanager
def connected(context: typer.Context) -> Iterator["Client"]:
    """Yield a client of all three services that repeats no call.

    A call that fails inside the block ends the command with its exit status.
    """
    from shoal.client import connect

    at = addresses(context)
    with (
        reported(at),
        connect(
            registry=at.registry, controller=at.controller, router=at.router, retries=0
        ) as shoal,
    ):
        yield shoal
