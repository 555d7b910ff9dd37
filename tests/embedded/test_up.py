"""`shoal up` as a command: what it refuses, with which exit status, and what it says."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from services.embedded import logfiles, runs
from services.embedded.background import FREE_PORTS
from services.embedded.ports import LOOPBACK

ROOT = Path(__file__).parents[2]


def shoal(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "shoal.cli", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def triton_venv(tmp_path: Path) -> Path:
    """Looks like Triton's environment until something is started from it."""
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    return tmp_path / "venv"


def test_help_is_quick_because_it_imports_nothing_of_the_services() -> None:
    code = (
        "import sys; from shoal.cli.__main__ import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('grpc', 'numpy', 'pydantic', 'services') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.endswith("[]\n")
    assert "up" in done.stdout


def test_a_missing_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['structlog'] = sys.modules['psutil'] = None\n"
        "from shoal.cli.__main__ import main; sys.exit(main(['up']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 69
    assert done.stderr.startswith(
        "shoal: this needs more than is installed here (psutil is missing)"
    )
    assert "pip install 'shoal[" in done.stderr


def test_settings_that_cannot_be_used() -> None:
    done = shoal("up", "--memory-budget", "lots")
    assert done.returncode == 2
    assert "--memory-budget: 'lots' is not a size: write a number of bytes, or" in done.stderr
    assert shoal("up", "--no-such-flag").returncode == 2


def test_a_missing_triton_environment(tmp_path: Path) -> None:
    done = shoal("up", "--triton-venv", tmp_path / "absent", *FREE_PORTS)
    assert done.returncode == 69
    assert f"there is no {tmp_path / 'absent'}/bin/python" in done.stderr
    assert f"run `shoal setup-triton --triton-venv {tmp_path / 'absent'}`" in done.stderr


def test_a_taken_port(triton_venv: Path, tmp_path: Path) -> None:
    with socket.create_server((LOOPBACK, 0)) as other:
        port = str(other.getsockname()[1])
        done = shoal(
            *("up", "--triton-venv", str(triton_venv), *FREE_PORTS),
            *("--controller-port", port),
            TMPDIR=str(tmp_path),
        )
    assert done.returncode == 75
    assert f"{LOOPBACK}:{port} is taken by process {os.getpid()}" in done.stderr
    assert "--controller-port or SHOAL_CONTROLLER_PORT" in done.stderr
    assert not list(tmp_path.glob("shoal-*"))


def test_a_data_folder_in_use(triton_venv: Path, tmp_path: Path) -> None:
    lock = runs.lock_data(tmp_path / "data")
    done = shoal("up", "--triton-venv", triton_venv, "--data", tmp_path / "data", *FREE_PORTS)
    lock.close()
    assert done.returncode == 73
    assert f"process {os.getpid()}" in done.stderr


def test_a_data_folder_that_triton_cannot_use(triton_venv: Path, tmp_path: Path) -> None:
    data = tmp_path / "my models"
    done = shoal("up", "--triton-venv", triton_venv, "--data", data, *FREE_PORTS)
    assert done.returncode == 2
    assert f"{data}" in done.stderr
    assert "choose a --data folder whose whole path has only letters, digits" in done.stderr


def test_logs_are_bounded_and_one_earlier_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "part.log"
    with logfiles.open_log(path) as log:
        log.write(b"first\n" * 10)
        log.flush()
        logfiles.cut(path, limit=100)
        assert path.stat().st_size == 60
        logfiles.cut(path, limit=50)
        log.write(b"second\n")
    assert path.read_bytes() == b"second\n"
    assert (tmp_path / "part.log.1").read_bytes() == b"first\n" * 10
    logfiles.begin(path)
    assert not path.exists()
    assert (tmp_path / "part.log.1").read_bytes() == b"second\n"


def test_the_end_of_a_log(tmp_path: Path) -> None:
    path = tmp_path / "part.log"
    path.write_text("".join(f"line {number}\n" for number in range(2000)))
    assert logfiles.head(path) == "line 0\n"
    assert logfiles.head(tmp_path / "absent") == ""
    assert logfiles.tail(path, lines=2) == "  line 1998\n  line 1999"
    assert "cannot be read" in logfiles.tail(tmp_path / "absent")
