"""The wheel alone, in an environment of its own: what it brings, what it says, and that it serves.

`make wheel-test` runs this. SHOAL_WHEEL names a wheel to try instead of one that is built here.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import ZipFile

import pytest

from services.embedded import leftovers
from services.embedded.background import FREE_PORTS
from tests.support.triton_direct import triton_python

pytestmark = [pytest.mark.wheel, pytest.mark.triton, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "model_repository" / "multiplier"
READY_WITHIN = 90.0  # seconds

# So that what the checkout's own environment sets is not there: PYTHONPATH, SHOAL_…, TRITON_VENV.
KEPT = ("PATH", "LANG", "LD_LIBRARY_PATH", "SSL_CERT_FILE")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if named := os.environ.get("SHOAL_WHEEL"):
        return Path(named).absolute()
    folder = tmp_path_factory.mktemp("dist")
    pip("wheel", "--no-deps", "--wheel-dir", folder, ROOT)
    (built,) = folder.glob("shoal-*.whl")
    return built


@pytest.fixture(scope="session")
def client_alone(wheel: Path) -> Iterator[Path]:
    """An environment's programs, with the wheel and no extra."""
    with environment(str(wheel)) as programs:
        yield programs


@pytest.fixture(scope="session")
def installed(wheel: Path) -> Iterator[Path]:
    """An environment's programs, with all that `shoal up` needs but Triton."""
    with environment(f"{wheel}[embedded]") as programs:
        yield programs


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A working directory with a `services` and a `shoal` of its own."""
    folder = tmp_path / "elsewhere"
    (folder / "services").mkdir(parents=True)
    for name in ("services/__init__.py", "shoal.py"):
        (folder / name).write_text("raise SystemExit('this is the wrong one')")
    return folder


@pytest.fixture
def variables() -> Iterator[dict[str, str]]:
    """The environment of a user for whom nothing is set up."""
    kept = {name: value for name in KEPT if (value := os.environ.get(name))}
    with TemporaryDirectory() as folder:  # tmp_path is too long for the path of a Unix socket
        home, temporary = Path(folder, "home"), Path(folder, "tmp")
        home.mkdir()
        temporary.mkdir()
        yield {**kept, "HOME": str(home), "TMPDIR": str(temporary), "COLUMNS": "200"}


def pip(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@contextmanager
def environment(what: str) -> Iterator[Path]:
    """An environment that holds `what` and nothing else. Yields the folder of its programs."""
    with TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        programs = Path(folder, "bin")
        pip(
            *("--python", programs / "python"),
            *("install", "--constraint", ROOT / "constraints.txt", what),
        )
        yield programs


def shoal(
    programs: Path, *arguments: str | Path, folder: Path, variables: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [programs / "shoal", *arguments],
        cwd=folder,
        env=variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@contextmanager
def up(
    programs: Path, announce: Path, *arguments: str | Path, folder: Path, variables: dict[str, str]
) -> Iterator[dict[str, Any]]:
    """`shoal up` in the foreground of another process. Yields what it announces when all is ready,
    and checks that it ends as a stop should."""
    output = announce.with_suffix(".output")
    with output.open("w") as file:
        process = subprocess.Popen(
            [programs / "shoal", "up", f"--announce={announce}", *FREE_PORTS, *arguments],
            cwd=folder,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )
    try:
        yield ready(process, announce, output)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0, output.read_text()
    finally:
        process.kill()
        process.wait()


def ready(process: subprocess.Popen[bytes], announce: Path, output: Path) -> dict[str, Any]:
    deadline = time.monotonic() + READY_WITHIN
    while time.monotonic() < deadline and process.poll() is None:
        if announce.exists():
            content: dict[str, Any] = json.loads(announce.read_text())
            if content["state"] == "ready":
                return content
        time.sleep(0.05)
    raise AssertionError(f"shoal up was not ready:\n{output.read_text()}")


def test_it_holds_all_files_of_the_packages_and_of_triton(wheel: Path) -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "services", "shoal", "deploy/triton"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    expected = {name.replace("deploy/triton/", "services/embedded/_triton/") for name in tracked}
    found = {name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert found == expected


def test_with_the_client_alone_the_missing_extra_is_named(
    client_alone: Path, elsewhere: Path, variables: dict[str, str]
) -> None:
    for command, extra in (("models", "cli"), ("up", "embedded"), ("setup-triton", "embedded")):
        done = shoal(client_alone, command, folder=elsewhere, variables=variables)
        assert done.returncode == 69
        assert done.stderr.endswith(f"pip install 'shoal[{extra}]'\n")


def test_it_simulates_a_recorded_trace(
    installed: Path, elsewhere: Path, variables: dict[str, str]
) -> None:
    trace = elsewhere / "trace.csv"
    trace.write_text("".join(f"{second},m{second % 6}\n" for second in range(60)))
    done = shoal(installed, "simulate", trace.name, folder=elsewhere, variables=variables)
    assert (done.returncode, done.stderr) == (0, "")
    assert "gdsf" in done.stdout


def test_the_command_that_installs_triton_is_named(
    installed: Path, elsewhere: Path, variables: dict[str, str]
) -> None:
    done = shoal(installed, "up", folder=elsewhere, variables=variables)
    assert done.returncode == 69
    assert f"there is no {variables['HOME']}/.local/share/shoal/venv-triton/" in done.stderr
    assert done.stderr.endswith("run `shoal setup-triton`.\n")


def test_triton_that_is_installed_already_is_left_alone(
    installed: Path, elsewhere: Path, variables: dict[str, str]
) -> None:
    """The script and its pins come with the wheel, and it finds all as it should be."""
    venv = triton_python().parents[1]
    variables = {**variables, "TRITON_VENV": str(venv)}
    done = shoal(installed, "setup-triton", folder=elsewhere, variables=variables)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"Triton's environment is ready: {venv}\n"


def test_it_serves_a_user_s_repository(
    installed: Path, elsewhere: Path, variables: dict[str, str], tmp_path: Path
) -> None:
    repository = shutil.copytree(MODEL, tmp_path / "models" / MODEL.name).parent
    before = sorted(repository.rglob("*"))
    announce = tmp_path / "stack.json"
    variables = {**variables, "TRITON_VENV": str(triton_python().parents[1])}
    with up(
        installed,
        announce,
        *("--repository", repository, "--router-workers", "2"),
        folder=elsewhere,
        variables=variables,
    ) as announced:
        asking = {**variables, "SHOAL_ANNOUNCE": str(announce)}
        arguments = ("infer", "multiplier:1", "--input", "INPUT=1,2,3", "--json")
        done = shoal(installed, *arguments, folder=elsewhere, variables=asking)
        assert done.returncode == 0, done.stderr
        (output,) = json.loads(done.stdout)["outputs"]
        assert output["data"] == [2, 4, 6]
    assert leftovers.processes(announced["run"]) == []
    assert not list(Path("/dev/shm").glob(f"{announced['run']}*"))
    assert not list(Path(variables["TMPDIR"]).iterdir())
    assert not list(Path(variables["HOME"]).iterdir())
    assert sorted(repository.rglob("*")) == before
