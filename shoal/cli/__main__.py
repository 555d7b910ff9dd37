"""The `shoal` command. COMMANDS names the function of each subcommand.

Their modules import only typer at the top, so that `shoal --help` is fast and works whichever
extras are installed.
"""

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, Final

COMMANDS: Final = (
    "shoal.cli.up:up",
    "shoal.cli.up:setup_triton",
    "shoal.cli.status:status",
    "shoal.cli.models:models",
    "shoal.cli.replicas:replicas",
    "shoal.cli.infer:infer",
    "shoal.cli.register:register",
    "shoal.cli.repository:import_",
    "shoal.cli.imports:imports",
    "shoal.cli.disk:versions",
    "shoal.cli.disk:disk",
    "shoal.cli.disk:gc",
    "shoal.cli.delete:delete",
    "shoal.cli.catalogue:approve",
    "shoal.cli.catalogue:reject",
    "shoal.cli.catalogue:alias",
    "shoal.cli.catalogue:traffic",
    "shoal.cli.loads:load",
    "shoal.cli.loads:evict",
    "shoal.cli.loads:pin",
    "shoal.cli.loads:unpin",
    "shoal.cli.residency:residency",
    "shoal.cli.drain:drain",
    "shoal.cli.drain:undrain",
    "shoal.cli.explain:explain",
    "shoal.cli.events:events",
    "shoal.cli.simulate:simulate",
    "shoal.cli.trace:trace",
    "shoal.cli.diagnostics:diagnostics",
)

EXIT_MISSING_EXTRA: Final = 69  # EX_UNAVAILABLE

# The smallest extra that installs a module. Any other missing module is a bug.
_EXTRAS: Final = {
    "cli": ("ml_dtypes", "numpy", "psutil", "rich", "typer"),
    "embedded": (
        "grpc_health",
        "grpc_reflection",
        "opentelemetry",
        "pydantic",
        "services",
        "starlette",
        "structlog",
        "tritonclient",
        "uvicorn",
        "uvloop",
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status. `arguments` default to the process's own."""
    # gRPC's core writes to stderr when a process ends, which looks like a failure of the command;
    # real failures arrive as statuses. gRPC reads the variable when it is imported.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        return _run(arguments)
    except ModuleNotFoundError as error:
        extra = _extra(error.name or "")
        if extra is None:
            raise
        command = next(iter(sys.argv[1:] if arguments is None else arguments), "")
        if command in ("up", "setup-triton"):
            extra = "embedded"  # the missing module may be only the first of several
        print(
            f"shoal: this needs more than is installed here ({error.name} is missing): "
            f"pip install 'shoal[{extra}]'",
            file=sys.stderr,
        )
        return EXIT_MISSING_EXTRA


def _run(arguments: Sequence[str] | None) -> int:
    import typer

    app = typer.Typer(
        name="shoal",
        no_args_is_help=True,
        rich_markup_mode="markdown",
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_command("shoal.cli.root:root"))
    for path in COMMANDS:
        # A function cannot have the name of a keyword, a command can.
        app.command(_name(path))(_command(path))
    app(arguments, prog_name="shoal")
    raise AssertionError("typer returned")


def _name(path: str) -> str:
    return path.partition(":")[2].rstrip("_").replace("_", "-")


def _command(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def _extra(module: str) -> str | None:
    top = module.partition(".")[0]
    return next((extra for extra, modules in _EXTRAS.items() if top in modules), None)


if __name__ == "__main__":
    sys.exit(main())
