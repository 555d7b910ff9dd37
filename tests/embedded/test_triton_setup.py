"""How Triton's environment is made, and what is said where it is missing."""

import platform
import sys
from pathlib import Path

import pytest

from services.embedded import machine, triton_setup
from services.embedded.errors import TritonUnavailable
from tests.support.cli import shoal


@pytest.fixture
def packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for a user's data, where Shoal was installed from a wheel."""
    monkeypatch.delenv("TRITON_VENV", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr(machine, "_PACKED", tmp_path)
    return tmp_path / "data"


def test_from_a_wheel_it_is_made_by_a_command(packed: Path) -> None:
    assert machine.default_venv() == packed / "shoal" / "venv-triton"
    assert machine.how_to_set_up(machine.default_venv()) == "run `shoal setup-triton`"


def test_in_a_checkout_it_is_made_by_make(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_VENV", raising=False)
    assert machine.how_to_set_up(machine.default_venv()) == "run `make setup`"


def test_another_folder_is_named_as_a_shell_reads_it() -> None:
    told = machine.how_to_set_up(Path("/tmp/my venv"))
    assert told == "run `shoal setup-triton --triton-venv '/tmp/my venv'`"


def test_the_services_own_python_comes_before_those_on_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("python3.11", "python3.12"):
        (tmp_path / name).touch(mode=0o755)
    path = {"PATH": str(tmp_path)}
    monkeypatch.setattr(sys, "version_info", (3, 12, 1))
    assert triton_setup.interpreter(path) == sys.executable
    monkeypatch.setattr(sys, "version_info", (3, 13, 0))
    assert triton_setup.interpreter(path) == str(tmp_path / "python3.12")
    assert triton_setup.interpreter({**path, "PYTHON": "pypy"}) == "pypy"
    with pytest.raises(TritonUnavailable, match=r"needs CPython 3\.11 or 3\.12, and neither"):
        triton_setup.interpreter({"PATH": ""})


def test_where_triton_cannot_run_nothing_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    done = shoal("setup-triton", "--triton-venv", str(tmp_path / "venv"))
    assert done.status == 69
    assert done.err.startswith("shoal setup-triton: Triton's wheel is for Linux on x86-64")
    assert not (tmp_path / "venv").exists()


def test_a_python_that_will_not_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHON", "/bin/false")
    done = shoal("setup-triton", "--triton-venv", str(tmp_path / "venv"))
    assert done.status == 1
    assert not (tmp_path / "venv").exists()
