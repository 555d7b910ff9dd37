"""`shoal up`: the whole suite on this machine, in the foreground; and what it needs of Triton."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

_PORT = "0 picks a free one and says which."
_Port = Annotated[int | None, typer.Option(min=0, max=65535, show_default=False, help=_PORT)]


def up(
    repository: Annotated[
        list[Path] | None,
        typer.Option(
            help="A Triton model repository to serve; only read. Can be repeated. "
            "In a checkout the default is its model_repository.",
        ),
    ] = None,
    servers: Annotated[int | None, typer.Option(help="Triton servers to start (1).")] = None,
    controllers: Annotated[
        int | None, typer.Option(help="Controllers to start (1); one acts, the others stand by.")
    ] = None,
    router_workers: Annotated[
        int | None, typer.Option(help="Router processes that share its ports (1).")
    ] = None,
    memory_budget: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Memory for models on each server, such as 2GiB. The default shares out half of "
            "what the machine has free.",
        ),
    ] = None,
    max_models: Annotated[
        int | None,
        typer.Option(help="Model versions in memory at a time on each server; 0: no such limit."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Keeps what is registered, and logs. The default is deleted at the end.",
        ),
    ] = None,
    otlp: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Send traces to this OTLP/HTTP collector (http://HOST:4318) instead of the "
            "embedded one.",
        ),
    ] = None,
    no_otlp: Annotated[bool | None, typer.Option("--no-otlp", help="No traces at all.")] = None,
    trace_ratio: Annotated[
        float | None,
        typer.Option(
            help="Share of requests to trace (0.01). One that brings a sampled traceparent is "
            "always traced.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="TOML with the same keys as these flags. Flags come before environment variables "
            "(SHOAL_MEMORY_BUDGET for --memory-budget), those before the file.",
        ),
    ] = None,
    router_grpc_port: _Port = None,
    router_http_port: _Port = None,
    registry_port: _Port = None,
    registry_metrics_port: _Port = None,
    controller_port: _Port = None,
    controller_metrics_port: _Port = None,
    otlp_grpc_port: _Port = None,
    otlp_http_port: _Port = None,
    triton_venv: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Triton's environment, made by `shoal setup-triton`."),
    ] = None,
    announce: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Keep a JSON file with state, addresses and process numbers."
        ),
    ] = None,
) -> None:
    """Start Triton servers, Registry, Controller and Router, and keep them running.

    Exit status: 0 after a stop, 2 settings that cannot be used, 69 Triton cannot run here, 70 a
    part failed at the start, 73 the data folder is in use, 75 a port is taken, 130 killed by a
    second Ctrl-C.
    """
    flags = {key: value for key, value in locals().items() if value is not None and key != "config"}
    raise typer.Exit(_serve(flags, config))


def setup_triton(
    triton_venv: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            envvar="SHOAL_TRITON_VENV",
            help="Where to put it. The default is where `shoal up` looks for it.",
        ),
    ] = None,
    with_torch: Annotated[
        bool, typer.Option("--with-torch", help="With PyTorch, for TorchScript models.")
    ] = False,
) -> None:
    """Install the Triton that `shoal up` starts, in an environment of its own.

    Takes about 350 MB and a minute, the first time; where nothing is to be done, it does nothing.
    Set PYTHON to build it from another interpreter (CPython 3.11 or 3.12).

    Exit status: 0 done, 69 Triton cannot run here, others: what failed says why.
    """
    from services.embedded import machine, triton_setup
    from services.embedded.errors import CannotStart

    folder = triton_venv.expanduser().absolute() if triton_venv else machine.default_venv()
    try:
        status = triton_setup.run(folder, with_torch=with_torch)
    except CannotStart as error:
        print(f"shoal setup-triton: {error}", file=sys.stderr)
        raise typer.Exit(error.exit_status) from error
    if status == 0:
        print(f"Triton's environment is ready: {folder}")
    raise typer.Exit(status)


def _serve(flags: dict[str, Any], config: Path | None) -> int:
    from services.embedded import stack
    from services.embedded.errors import BadSettings
    from services.embedded.machine import example_models
    from services.embedded.settings import load

    try:
        settings = load(flags, os.environ, config)
    except BadSettings as error:
        print(f"shoal up: {error}", file=sys.stderr)
        return error.exit_status
    if not settings.repository and (examples := example_models()):
        settings = settings.model_copy(update={"repository": (examples,)})
    return stack.run(settings)
