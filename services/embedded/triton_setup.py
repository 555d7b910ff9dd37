"""Makes Triton's own environment, for those who have Shoal from a wheel."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from services.embedded import machine
from services.embedded.errors import TritonUnavailable

_PYTHONS: Final = ((3, 11), (3, 12))  # that Triton's environment can be built from


def run(folder: Path, *, with_torch: bool) -> int:
    """Make the environment in `folder`, or do nothing where it is complete already.

    Returns the exit status of setup.sh, which prints what it does. Raises TritonUnavailable.
    """
    machine.require_triton_runs()
    python = interpreter(os.environ)
    folder.parent.mkdir(parents=True, exist_ok=True)
    script = [str(machine.triton_files() / "setup.sh"), *(["--with-torch"] if with_torch else [])]
    variables = {**os.environ, "TRITON_VENV": str(folder), "PYTHON": python}
    return subprocess.run(["/bin/bash", *script], env=variables, check=False).returncode


def interpreter(environment: Mapping[str, str]) -> str:
    """Return the interpreter to build from: PYTHON, else this one, else one on PATH.

    This one comes first, because the bytecode that the Registry writes for Python models fits
    Triton only if both run the same Python. Raises TritonUnavailable.
    """
    if named := environment.get("PYTHON"):
        return named
    if sys.version_info[:2] in _PYTHONS:
        return sys.executable
    for major, minor in reversed(_PYTHONS):
        if found := shutil.which(f"python{major}.{minor}", path=environment.get("PATH")):
            return found
    raise TritonUnavailable(
        "Triton's environment needs CPython 3.11 or 3.12, and neither is on PATH: install one, or "
        "name it in the variable PYTHON."
    )
