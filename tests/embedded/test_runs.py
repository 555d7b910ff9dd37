"""What a killed stack left is removed by the next one; what lives is not touched."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from services.embedded import leftovers, runs
from services.embedded.errors import DataInUse
from services.embedded.leftovers import is_abandoned, is_alive
from services.embedded.runs import Run

ROOT = Path(__file__).parents[2]

# A stack in short: a run, a marked process that survives it, a region, and a folder.
OWNER = """
import os, subprocess, sys
from pathlib import Path
from services.embedded import leftovers
from services.embedded.runs import Run
run = Run()
environment = {**os.environ, **leftovers.marks(run.name, "triton-0")}
pause = [sys.executable, "-c", "import signal; signal.pause()"]
child = subprocess.Popen(pause, env=environment, stdout=subprocess.DEVNULL)
Path("/dev/shm", f"{run.name}-triton-0-region").write_bytes(b"x")
(run.folder / "data").mkdir()
(run.folder / "data" / "file").write_text("x")
print(run.name, child.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


class Owner:
    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", OWNER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert self.process.stdout
        self.run, pid = self.process.stdout.readline().split()
        self.child = psutil.Process(int(pid))
        self.region = Path("/dev/shm", f"{self.run}-triton-0-region")

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def owner() -> Iterator[Owner]:
    made = Owner()
    yield made
    made.kill()
    runs.sweep()


def test_what_a_killed_run_left_is_removed(owner: Owner, temporary_folder: Path) -> None:
    owner.kill()
    assert is_alive(owner.child)
    assert owner.region.exists()
    (found,) = runs.sweep()
    assert (found.name, found.processes, found.regions) == (owner.run, 1, 1)
    assert not is_alive(owner.child)
    assert not owner.region.exists()
    assert not list(temporary_folder.iterdir())
    assert not runs.sweep()


def test_a_living_run_is_not_touched(owner: Owner, temporary_folder: Path) -> None:
    assert not runs.sweep()
    assert is_alive(owner.child)
    assert owner.region.exists()
    assert (temporary_folder / owner.run / "data" / "file").exists()


def test_folders_that_are_not_of_a_run_are_not_touched(temporary_folder: Path) -> None:
    (temporary_folder / "shoal-mine").mkdir()
    (temporary_folder / "shoal-mine" / "notes").write_text("x")
    assert not runs.sweep()
    assert (temporary_folder / "shoal-mine" / "notes").exists()


def test_a_run_leaves_no_folder(temporary_folder: Path) -> None:
    run = Run()
    (run.folder / "tmp" / "triton-0").mkdir(parents=True)
    run.close()
    assert not list(temporary_folder.iterdir())


def test_the_processes_of_one_part_are_told_from_those_of_another(owner: Owner) -> None:
    assert leftovers.processes(owner.run, "triton-0") == [owner.child]
    assert leftovers.processes(owner.run, "triton-1") == []
    assert leftovers.processes(f"{owner.run}x") == []


def test_two_stacks_cannot_share_a_data_folder(tmp_path: Path) -> None:
    lock = runs.lock_data(tmp_path / "data")
    with pytest.raises(DataInUse, match=rf"in use by another `shoal up` \(process {os.getpid()}\)"):
        runs.lock_data(tmp_path / "data")
    lock.close()
    runs.lock_data(tmp_path / "data").close()


@pytest.mark.parametrize(
    ("made", "tritons", "abandoned"),
    [
        (150.0, [], True),
        (150.0, [160.0], True),  # started later: it cannot have made it
        (150.0, [140.0, 160.0], False),
        (90.0, [], False),  # older than this run
    ],
)
def test_a_backend_folder_is_abandoned_when_nobody_alive_can_have_made_it(
    made: float, tritons: list[float], abandoned: bool
) -> None:
    assert is_abandoned(made, since=100.0, tritons=tritons) is abandoned
