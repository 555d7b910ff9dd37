"""The `shoal` command. Each command is a function in a module of its own, named in COMMANDS.

Those modules import no more than typer at their top, so that `shoal --help` is quick and works
with whatever extras are installed.
"""

import importlib
import sys
from collections.abc import Sequence
from typing import Any, Final

COMMANDS: Final = ("shoal.cli.up:up",)

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
    try:
        return _run(arguments)
    except ModuleNotFoundError as error:
        extra = _extra(error.name or "")
        if extra is None:
            raise
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
        help="Serve many models on few servers, in front of NVIDIA Triton.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for path in COMMANDS:
        app.command()(_command(path))
    app(arguments, prog_name="shoal")
    raise AssertionError("typer returned")


def _root() -> None:
    """Serve many models on few servers, in front of NVIDIA Triton."""


def _command(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def _extra(module: str) -> str | None:
    top = module.partition(".")[0]
    return next((extra for extra, modules in _EXTRAS.items() if top in modules), None)


if __name__ == "__main__":
    sys.exit(main())
