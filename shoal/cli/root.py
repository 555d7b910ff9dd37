"""`shoal` itself: the options that all commands share."""

from pathlib import Path
from typing import Annotated

import typer

from shoal.cli.addresses import Given


def root(
    context: typer.Context,
    router: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="SHOAL_ROUTER.  [127.0.0.1:8001]"),
    ] = None,
    controller: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="SHOAL_CONTROLLER.  [127.0.0.1:9102]"),
    ] = None,
    registry: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="SHOAL_REGISTRY.  [127.0.0.1:9101]"),
    ] = None,
    announce: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="SHOAL_ANNOUNCE.  Takes the addresses from what `shoal up --announce FILE` wrote.",
        ),
    ] = None,
) -> None:
    """Serve many models on few servers, in front of NVIDIA Triton.

    Exit status of all commands but `up`: 0 done, 1 refused, 2 wrong usage, 3 not ready or not
    reachable, 130 stopped by Ctrl-C. The ports of SHOAL_ROUTER_GRPC_PORT, SHOAL_CONTROLLER_PORT,
    SHOAL_REGISTRY_PORT and SHOAL_OTLP_HTTP_PORT, which `shoal up` takes, count here too.
    """
    context.obj = Given(router, controller, registry, announce)
