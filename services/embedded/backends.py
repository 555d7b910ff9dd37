"""The backend directory for a Triton from the wheel.

The wheel keeps `libtriton_python.so` and its stubs, one for each version of Python, in different
folders. The server looks for the stub beside the library, and for Shoal's Python-based backends
beside the `python` folder.
"""

import os
import re
import shutil
from pathlib import Path

STUB = "triton_python_backend_stub"
_WHEEL = Path("pytriton", "tritonserver")


def assemble(site_packages: Path, source: Path, target: Path) -> Path:
    """Fill `target` with what `--backend-directory` needs, and return it.

    `site_packages` is that of Triton's environment (`…/lib/python3.11/site-packages`). `source` has
    a folder with a `model.py` for each Python-based backend, and beside those the modules that they
    share. Files that are already right are not touched, and every file appears whole, so several
    processes may assemble one folder.
    """
    wheel = site_packages / _WHEEL
    stub = wheel / "python_backend_stubs" / _python_version(site_packages) / STUB
    if not stub.is_file():
        raise FileNotFoundError(f"the Triton wheel has no stub for this Python: {stub}")
    python = target / "python"
    _copy(wheel / "backends" / "python" / "libtriton_python.so", python)
    _copy(wheel / "backends" / "python" / "triton_python_backend_utils.py", python)
    _copy(stub, python)
    for model in sorted(source.glob("*/model.py")):
        for module in (model, *sorted(source.glob("*.py"))):
            _copy(module, target / model.parent.name)
    return target


def _python_version(site_packages: Path) -> str:
    match = re.fullmatch(r"python(3\.\d+)", site_packages.parent.name)
    if match is None:
        raise ValueError(f"not a virtual environment's site-packages: {site_packages}")
    return match[1]


def _copy(source: Path, folder: Path) -> None:
    """Copy a file with its mode and time, unless a copy of the same time and size is there.

    Links would not do: Triton changes the stub's mode if it can't run it, and Python writes its
    cache beside a `model.py`.
    """
    target = folder / source.name
    wanted = source.stat()
    if target.is_file():
        found = target.stat()
        if (found.st_size, found.st_mtime_ns) == (wanted.st_size, wanted.st_mtime_ns):
            return
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{source.name}.{os.getpid()}"
    shutil.copy2(source, part)
    part.replace(target)
