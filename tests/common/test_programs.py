"""Processes of Shoal's own import Shoal's code, wherever they are started."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from services.common import programs

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with a `services` and a `shoal` of its own."""
    (tmp_path / "services").mkdir()
    for name in ("services/__init__.py", "shoal.py"):
        (tmp_path / name).write_text("raise SystemExit('this is the wrong one')")
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("trap")
@pytest.mark.parametrize(
    "command",
    [
        programs.module("services.common.programs"),
        programs.code("import services.common.programs, shoal.names"),
    ],
)
def test_the_working_directory_is_not_imported_from(command: tuple[str, ...]) -> None:
    environment = programs.environment(os.environ)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_installation_is_first_and_once() -> None:
    once = programs.environment({"PYTHONPATH": f"/elsewhere{os.pathsep}", "KEPT": "yes"})
    assert once == {"PYTHONPATH": f"{ROOT}{os.pathsep}/elsewhere", "KEPT": "yes"}
    assert programs.environment(once) == once
    assert programs.environment({}) == {"PYTHONPATH": str(ROOT)}


def test_no_service_starts_python_in_another_way() -> None:
    """-I: isolated, for a program that imports nothing of ours."""
    for path in sorted([*ROOT.glob("services/**/*.py"), *ROOT.glob("shoal/**/*.py")]):
        for flag in re.findall(r"sys\.executable, \"(-.+?)\"", path.read_text()):
            assert flag in ("-P", "-I"), f"{path} starts Python with {flag}"
