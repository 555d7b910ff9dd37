"""How a process of Shoal's starts another one of the same installation."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_ROOT: Final = Path(__file__).resolve().parents[2]  # where `services` and `shoal` are imported from


def module(name: str) -> tuple[str, ...]:
    """Return the command that runs a module, as `python -m` does."""
    # -P: a folder `services` in the working directory is not ours.
    return (sys.executable, "-P", "-m", name)


def code(text: str) -> tuple[str, ...]:
    """Return the command that runs a line of Python."""
    return (sys.executable, "-P", "-c", text)


def environment(base: Mapping[str, str]) -> dict[str, str]:
    """Return `base` with this installation first among the places to import from."""
    others = base.get("PYTHONPATH", "").split(os.pathsep)
    paths = [str(_ROOT), *(path for path in others if path not in ("", str(_ROOT)))]
    return {**base, "PYTHONPATH": os.pathsep.join(paths)}
