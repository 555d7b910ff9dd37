"""`shoal up`: a whole stack on this machine, in the foreground; `shoal setup-triton`."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer


def _port(what: str, default: int) -> Any:
    text = f"Port of {what} ({default}). 0 picks a free one."
    return typer.Option(metavar="PORT", min=0, max=65535, show_default=False, help=text)


def up(
    repository: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR",
            help="Triton model repository to serve. It is only read. Can be repeated. The default "
            "in a checkout is its model_repository, unless --data is given.",
        ),
    ] = None,
    poll: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="Look for changes in the repositories this often, as Triton's poll mode does. By "
            "default, `shoal import` and load calls do.",
        ),
    ] = None,
    servers: Annotated[
        int | None, typer.Option(metavar="N", help="Triton servers to start (1).")
    ] = None,
    controllers: Annotated[
        int | None,
        typer.Option(metavar="N", help="Controllers to start (1). One acts, the others stand by."),
    ] = None,
    router_workers: Annotated[
        int | None,
        typer.Option(metavar="N", help="Router processes, which share its ports (1)."),
    ] = None,
    lane: Annotated[
        str | None,
        typer.Option(
            metavar="auto|on|off",
            help="Have Envoy send what it can straight to the servers: if its wheel is installed "
            "and the servers bear it (auto), or in any case (on).",
        ),
    ] = None,
    memory_budget: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Memory for models on each server, such as 2GiB. By default, the servers share "
            "half of the free memory of this machine.",
        ),
    ] = None,
    max_models: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Model versions on each server at a time. 0 means no such limit."
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder for the Registry's data and for logs. By default, it is temporary and "
            "deleted at the end.",
        ),
    ] = None,
    otlp: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Send traces to this OTLP/HTTP collector, such as http://HOST:4318, instead of "
            "starting one.",
        ),
    ] = None,
    no_otlp: Annotated[bool | None, typer.Option("--no-otlp", help="Make no traces.")] = None,
    trace_ratio: Annotated[
        float | None,
        typer.Option(
            metavar="RATIO",
            help="Share of requests to trace, from 0 to 1 (0.01). A request with a sampled "
            "traceparent is always traced.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="TOML file with these options as keys. An option on the command line overrides "
            "its environment variable, such as SHOAL_MEMORY_BUDGET for --memory-budget, and that "
            "overrides the file.",
        ),
    ] = None,
    router_grpc_port: Annotated[int | None, _port("the Router, for gRPC", 8001)] = None,
    router_http_port: Annotated[int | None, _port("the Router, for HTTP", 8000)] = None,
    registry_port: Annotated[int | None, _port("the Registry", 9101)] = None,
    registry_metrics_port: Annotated[int | None, _port("the Registry's metrics", 9111)] = None,
    controller_port: Annotated[int | None, _port("the Controller", 9102)] = None,
    controller_metrics_port: Annotated[int | None, _port("the Controller's metrics", 9112)] = None,
    otlp_grpc_port: Annotated[int | None, _port("the trace collector, for gRPC", 4317)] = None,
    otlp_http_port: Annotated[int | None, _port("the trace collector, for HTTP", 4318)] = None,
    triton_venv: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Environment with Triton, made by `shoal setup-triton`."),
    ] = None,
    triton_option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OPTION",
            help="Option of Triton's own for every server, in one word, such as "
            "'--grpc-header-forward-pattern=x-.*'. Can be repeated.",
        ),
    ] = None,
    announce: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Keep a JSON file with the state, addresses and process IDs of the stack.",
        ),
    ] = None,
) -> None:
    """Start a stack on this machine: Triton servers, Registry, Controller and Router.

    It runs in the foreground until Ctrl-C.

    Exit status: 0 stopped, 2 invalid settings, 69 Triton cannot run here, 70 a part failed to
    start, 73 the data folder is in use, 75 a port is in use, 130 killed by a second Ctrl-C.
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
    if not (settings.repository or settings.data) and (examples := example_models()):
        settings = settings.model_copy(update={"repository": (examples,)})
    return stack.run(settings)
