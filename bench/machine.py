"""On what it was measured, without saying whose machine it is."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Final

_ROOT: Final = Path(__file__).resolve().parents[1]
_PACKAGES: Final = ("grpcio", "uvloop")


def describe() -> str:
    """Such as `2 cores, shared by load generator, proxy and Triton; AMD EPYC; Linux 6.1`."""
    kernel = ".".join(platform.release().split(".")[:2])
    cores = len(os.sched_getaffinity(0))
    shared = "shared by load generator, proxy and Triton"
    return f"{cores} cores, {shared}; {_processor()}; {platform.system()} {kernel}"


def versions(triton: str) -> str:
    packages = [f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES]
    python = f"Python {platform.python_version()}"
    return ", ".join([f"shoal {_commit()}", python, *packages, f"Triton {triton}"])


def load_average() -> float:
    """Of the last minute; each process that ran all the time counts 1."""
    return os.getloadavg()[0]


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def _commit() -> str:
    """The version, and the commit where there is one."""
    version = importlib.metadata.version("shoal")
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=_ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return version
    return f"{version} ({found.stdout.strip()})"
