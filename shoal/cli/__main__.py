"""The `shoal` command. Each subcommand is a function that COMMANDS names.

Those modules import no more than typer at their top, so that `shoal --help` is quick and works
with whatever extras are installed.
"""

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, Final

COMMANDS: Final = (
    "shoal.cli.up:up",
    "shoal.cli.status:status",
    "shoal.cli.models:models",
    "shoal.cli.replicas:replicas",
    "shoal.cli.infer:infer",
    "shoal.cli.register:register",
    "shoal.cli.delete:delete",
    "shoal.cli.catalogue:approve",
    "shoal.cli.catalogue:reject",
    "shoal.cli.catalogue:alias",
    "shoal.cli.catalogue:traffic",
    "shoal.cli.residency:load",
    "shoal.cli.residency:evict",
    "shoal.cli.residency:pin",
    "shoal.cli.residency:unpin",
    "shoal.cli.residency:residency",
    "shoal.cli.drain:drain",
    "shoal.cli.drain:undrain",
    "shoal.cli.explain:explain",
    "shoal.cli.events:events",
    "shoal.cli.trace:trace",
    "shoal.cli.diagnostics:diagnostics",
)

EXIT_MISSING_EXTRA: Final = 69  # EX_UNAVAILABLE

# The first extra that brings a module; what is in none of them is a mistake of ours.
_EXTRAS: Final = {
    "cli": ("numpy", "psutil", "rich", "tritonclient", "typer"),
    "embedded": (
        "grpc_health",
        "grpc_reflection",
        "opentelemetry",
        "pydantic",
        "services",
        "starlette",
        "structlog",
        "uvicorn",
        "uvloop",
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status. `arguments` default to the process's own."""
    # What fails comes as a status too, and what gRPC's core writes to stderr when a process ends is
    # no failure of the command. It reads this when it is imported.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        return _run(arguments)
    except ModuleNotFoundError as error:
        extra = _extra(error.name or "")
        if extra is None:
            raise
        if "up" in (sys.argv[1:] if arguments is None else arguments)[:1]:
            extra = "embedded"  # also where it is only the first of its modules that is missing
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
        app.command()(_command(path))
    app(arguments, prog_name="shoal")
    raise AssertionError("typer returned")


def _command(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def _extra(module: str) -> str | None:
    top = module.partition(".")[0]
    return next((extra for extra, modules in _EXTRAS.items() if top in modules), None)


if __name__ == "__main__":
    sys.exit(main())
