"""What this machine offers, and what is said where Triton cannot run."""

import platform
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from services.embedded import machine
from services.embedded.errors import TritonUnavailable


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()
    return tmp_path


def test_the_interpreter_of_triton_s_environment(venv: Path) -> None:
    assert machine.triton_python(venv) == venv / "bin" / "python"


def test_another_processor(venv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(TritonUnavailable, match="Linux on x86-64, and this is Linux on aarch64"):
        machine.triton_python(venv)


@pytest.mark.parametrize(
    ("library", "told"),
    [
        (("glibc", "2.31"), r"needs glibc 2\.35 or newer .* this machine has 2\.31"),
        (("", ""), "this machine has another C library"),
    ],
)
def test_an_older_c_library(
    venv: Path, monkeypatch: pytest.MonkeyPatch, library: tuple[str, str], told: str
) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: library)
    with pytest.raises(TritonUnavailable, match=told):
        machine.triton_python(venv)


@pytest.mark.parametrize(
    ("log", "told"),
    [
        (
            "  tritonserver: error while loading shared libraries: libz.so.1: cannot open shared "
            "object file: No such file or directory",
            "Triton needs the system library libz.so.1: install",
        ),
        (
            "/lib/libstdc++.so.6: version `GLIBCXX_3.4.30' not found (required by tritonserver)",
            "Triton needs GLIBCXX_3.4.30, which is newer than this system's",
        ),
        (
            "/bin/tritonserver: unrecognized option '--no-such=1'\nUsage: tritonserver [options]",
            "Triton has no option --no-such: look for it",
        ),
        ("E1120 something else", ""),
    ],
)
def test_advice(log: str, told: str) -> None:
    assert machine.advice(log).startswith(told)
    assert bool(machine.advice(log)) == bool(told)


def test_another_python_in_triton_s_environment_is_noted(venv: Path) -> None:
    (venv / "lib" / "python3.9").mkdir(parents=True)
    (note,) = machine.notes(venv / "bin" / "python")
    assert note.startswith("Triton's environment has Python 3.9 and this one 3.")
    (venv / "lib" / f"python3.{sys.version_info.minor}").mkdir()
    assert machine.notes(venv / "bin" / "python") == []


def test_memory_is_shared_out_evenly() -> None:
    available = machine.available_memory()
    assert available > 0
    assert machine.default_budget(4) == pytest.approx(available / 8, rel=0.2)


def test_odd_budgets_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=8 << 30))
    assert machine.budget_notes(4 << 30, 2) == []
    assert "10 KiB for models on each server is less than" in machine.budget_notes(10 << 10, 1)[0]
    assert "add up to 12 GiB, and this machine has 8 GiB" in machine.budget_notes(4 << 30, 3)[0]
