"""This machine: its memory, and whether Triton from the wheel can run on it."""

import os
import platform
import re
import shlex
import sys
from pathlib import Path
from typing import Final

import psutil

from services.embedded.errors import TritonUnavailable
from shoal.sizes import format_size

_HERE: Final = Path(__file__).resolve().parent
_CHECKOUT: Final = _HERE.parents[1]
_PACKED: Final = _HERE / "_triton"  # only in an installed wheel

GLIBC: Final = (2, 35)  # the wheel is manylinux_2_35
_SMALLEST_MODEL: Final = 32 << 20  # bytes; a Python model without packages but numpy
_NO_LIMIT: Final = 1 << 60  # bytes; cgroup v1 writes "no limit" as a number near 2**63


def triton_files() -> Path:
    """Return the folder with Triton's backends and set-up: the checkout's or the installed copy."""
    return _PACKED if _PACKED.is_dir() else _CHECKOUT / "deploy" / "triton"


def example_models() -> Path | None:
    """Return `model_repository/` if this is a checkout."""
    folder = _CHECKOUT / "model_repository"
    return folder if folder.is_dir() else None


def triton_python(venv: Path | None) -> Path:
    """Return the interpreter of Triton's environment. Raises TritonUnavailable."""
    require_triton_runs()
    folder = venv or default_venv()
    python = folder / "bin" / "python"
    if not python.exists():
        raise TritonUnavailable(
            f"Triton's environment is missing: there is no {python}. To make it (about 350 MB), "
            f"{how_to_set_up(folder)}."
        )
    return python


def require_triton_runs() -> None:
    """Raise TritonUnavailable where no Triton from the wheel can run."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise TritonUnavailable(
            "Triton's wheel is for Linux on x86-64, and this is "
            f"{platform.system()} on {platform.machine()}: run the stack on a Linux machine or in "
            "a container (the client and the other commands work here)."
        )
    if (found := _glibc()) < GLIBC:
        raise TritonUnavailable(
            f"Triton's wheel needs glibc {_dotted(GLIBC)} or newer (manylinux_2_35: Ubuntu 22.04, "
            f"Debian 12, RHEL 10), and this machine has {_dotted(found) or 'another C library'}: "
            "use a newer system or container image."
        )


def how_to_set_up(folder: Path) -> str:
    """Return what to run for Triton's environment to be in `folder`."""
    if folder == _CHECKOUT / ".venv-triton" and not _PACKED.is_dir():
        return "run `make setup`"
    if folder == default_venv():
        return "run `shoal setup-triton`"
    return f"run `shoal setup-triton --triton-venv {shlex.quote(str(folder))}`"


def default_venv() -> Path:
    """Return TRITON_VENV, as setup.sh does, or else a folder in the checkout or the user's data."""
    if named := os.environ.get("TRITON_VENV"):
        return Path(named).absolute()
    if not _PACKED.is_dir():
        return _CHECKOUT / ".venv-triton"
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data, "shoal", "venv-triton")


def notes(python: Path) -> list[str]:
    """Return what is not ideal about Triton's interpreter, but works."""
    found = [path.name.removeprefix("python") for path in _libraries(python)]
    mine = f"{sys.version_info.major}.{sys.version_info.minor}"
    if mine in found or not found:
        return []
    again = f"remove {python.parents[1]} and {how_to_set_up(python.parents[1])}"
    if not _PACKED.is_dir():
        again = f"make clean, make setup PYTHON=python{found[0]}"
    return [
        f"Triton's environment has Python {found[0]} and this one {mine}. So models' code is "
        "compiled at each load, and a version in memory is reloaded when another version of the "
        f"same model is loaded. Build both with the same Python: {again}."
    ]


def _libraries(python: Path) -> list[Path]:
    return sorted(python.parent.parent.glob("lib/python3.*"))


def advice(log: str) -> str:
    """Return what to do about a Triton by its log's first line and its end; "" if unknown."""
    if option := re.search(r"unrecognized option '(--[^'=]+)", log):
        return f"Triton has no option {option[1]}: look for it among those of --triton-option."
    if missing := re.search(r"error while loading shared libraries: ([^:\s]+)", log):
        return (
            f"Triton needs the system library {missing[1]}: install the package that holds it "
            "(Debian, Ubuntu: apt install libstdc++6 zlib1g; others: `apt-file search "
            f"{missing[1]}`)."
        )
    if old := re.search(r"version `((?:GLIBC|GLIBCXX|CXXABI)_[\d.]+)' not found", log):
        return f"Triton needs {old[1]}, which is newer than this system's: use a newer system."
    return ""


def budget_notes(budget: int, servers: int) -> list[str]:
    """Return what is odd about the bytes for models on each of `servers`, on this machine."""
    if budget < _SMALLEST_MODEL:
        return [
            f"{format_size(budget)} for models on each server is less than a small model takes, "
            f"about {format_size(_SMALLEST_MODEL)}: give more with --memory-budget."
        ]
    if budget * servers > (total := psutil.virtual_memory().total):
        return [
            f"The budgets add up to {format_size(budget * servers)}, and this machine has "
            f"{format_size(total)} of memory: it may run out before Shoal evicts a model."
        ]
    return []


def default_budget(servers: int) -> int:
    """Return the bytes for each of `servers`: an even share of half of what is available."""
    return max(available_memory() // 2 // servers, 1)


def available_memory() -> int:
    """Return the bytes that can be used without swapping, within the container's limit."""
    return min(psutil.virtual_memory().available, _left_in_cgroup())


def _left_in_cgroup() -> int:
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        values = [_number(Path("/sys/fs/cgroup", name)) for name in (limit, used)]
        if None not in values and values[0] < _NO_LIMIT:  # type: ignore[operator]
            return max(values[0] - values[1], 0)  # type: ignore[operator]
    return _NO_LIMIT


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _glibc() -> tuple[int, ...]:
    """Return glibc's version, or () if the C library is another one."""
    name, version = platform.libc_ver()
    return tuple(map(int, version.split("."))) if name == "glibc" else ()


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
