"""`shoal` itself: the options that all commands share."""

from pathlib import Path
from typing import Annotated

import typer

from shoal.cli.addresses import Given


def root(
    context: typer.Context,
    router: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Address of the Router. Default: SHOAL_ROUTER, else 127.0.0.1:8001.",
        ),
    ] = None,
    controller: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Address of the Controller; of several, separated by commas, the one that acts "
            "is called. Default: SHOAL_CONTROLLER, else 127.0.0.1:9102.",
        ),
    ] = None,
    registry: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Address of the Registry. Default: SHOAL_REGISTRY, else 127.0.0.1:9101.",
        ),
    ] = None,
    announce: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Take the addresses from the file that `shoal up --announce FILE` keeps. "
            "Default: SHOAL_ANNOUNCE.",
        ),
    ] = None,
) -> None:
    """Serve many models on few servers, in front of NVIDIA Triton.

    Start a stack with `shoal up`. The other commands talk to a stack that is running, by default on
    this machine. Where SHOAL_ROUTER_GRPC_PORT, SHOAL_CONTROLLER_PORT, SHOAL_REGISTRY_PORT or
    SHOAL_OTLP_HTTP_PORT is set, as for `shoal up`, it replaces the port in a default address.

    Exit status, except of `shoal up`: 0 success, 1 refused, 2 wrong usage, 3 not ready or not
    reachable, 130 stopped by Ctrl-C.
    """
    context.obj = Given(router, controller, registry, announce)
