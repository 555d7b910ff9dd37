"""`make demo`: what it shows, and that it leaves nothing behind."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from model_repository.examples import EXAMPLES
from services.embedded import leftovers
from services.embedded.leftovers import RUN
from tests.fleet.test_traces import COLD
from tests.support.waiting import wait_until

pytestmark = pytest.mark.triton

ROOT = Path(__file__).parents[2]
WITHIN_S = 90.0


@contextlib.contextmanager
def demo(place: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """In a place of its own for temporary files; killed if it still runs."""
    with subprocess.Popen(
        [sys.executable, "-m", "services.embedded.demo", *arguments],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(place), "COLUMNS": "160"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def runs_of(pid: int) -> set[str]:
    """The runs that its descendants are marked with."""
    found = set()
    for child in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            found.add(child.environ().get(RUN, ""))
    return found - {""}


def assert_nothing_left(run: str, place: Path) -> None:
    assert leftovers.processes(run) == []
    assert not list(Path("/dev/shm").glob(f"{run}*"))
    assert not list(place.glob("shoal-*"))


def test_it_shows_every_model_and_a_cold_request(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    with demo(tmp_path, "--json", str(report)) as process:
        output = process.communicate(timeout=WITHIN_S)[0]
    assert process.returncode == 0, output
    found = json.loads(report.read_text())
    assert_nothing_left(found["run"], tmp_path)

    rows = [line for line in output.splitlines() if "✓" in line]
    assert len(rows) == len(found["requests"])
    assert {row.split()[0].partition(":")[0] for row in rows} == {model for model, _ in EXAMPLES}
    assert {"multiplier", "multiplier:1", "multiplier:2"} <= {row.split()[0] for row in rows}
    assert "✗" not in output
    assert "every answer right" in output

    for request, row in zip(found["requests"], rows, strict=True):
        assert ("cold" if request["cold"] else "warm") in row
        assert request["answered"] in row
        assert all(unit in output for unit in request["evicted"])
        assert request["trace_id"] in output
    assert sum(len(request["evicted"]) for request in found["requests"]) >= 10
    assert set(found["traces"]["spans"]) == {one["trace_id"] for one in found["requests"]}

    shown = found["traces"]["waterfall"]["trace_id"]
    (request,) = [one for one in found["requests"] if one["trace_id"] == shown]
    waterfall = output[output.index(f"trace {shown}") :]
    for name in COLD - {"zfnet512_onnx"} | {request["model"]}:
        assert f" {name}" in waterfall, name


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    with demo(tmp_path) as process:
        assert process.stdout is not None
        while "✓" not in process.stdout.readline():
            assert process.poll() is None
        (run,) = runs_of(process.pid)
        assert len(leftovers.processes(run)) >= 5
        process.send_signal(signal.SIGINT)
        output = process.communicate(timeout=WITHIN_S)[0]
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert_nothing_left(run, tmp_path)


def test_an_interrupt_of_the_start_leaves_nothing(tmp_path: Path) -> None:
    with demo(tmp_path) as process:
        wait_until(lambda: runs_of(process.pid), WITHIN_S, "parts to start")
        (run,) = runs_of(process.pid)
        process.send_signal(signal.SIGTERM)
        output = process.communicate(timeout=WITHIN_S)[0]
    assert process.returncode == 143, output
    assert "Traceback" not in output
    assert_nothing_left(run, tmp_path)
