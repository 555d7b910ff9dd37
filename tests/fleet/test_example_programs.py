"""The programs in examples/ print what they say at their top."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

import pytest

from services.embedded.background import BackgroundStack
from services.embedded.ports import LOOPBACK, pick
from tests.support.stack import EXAMPLES
from tests.support.waiting import wait_until

pytestmark = pytest.mark.triton

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ROOT / "examples"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def said(program: str, *arguments: str) -> list[str]:
    """What the program prints; warnings are errors in it, too."""
    run = subprocess.run(
        [sys.executable, "-W", "error", PROGRAMS / program, *arguments],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout.splitlines()


@contextmanager
def running(log: Path, program: str, *arguments: str) -> Iterator[None]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, PROGRAMS / program, *arguments], stdout=output, stderr=output
        )
    try:
        yield
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def viewer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The trace viewer's port, and what it prints."""
    [port] = pick(1)
    log = tmp_path_factory.mktemp("viewer") / "log"
    with running(log, "otlp_viewer.py", f"--port={port}"):
        wait_until(lambda: "waiting for spans" in log.read_text(), 20, "the viewer")
        yield str(port), log


@pytest.fixture(scope="module")
def stack(viewer: tuple[str, Path]) -> Iterator[BackgroundStack]:
    port, _ = viewer
    with BackgroundStack(
        f"--repository={EXAMPLES}",
        f"--otlp=http://{LOOPBACK}:{port}",
        environment={"OTEL_BSP_SCHEDULE_DELAY": "100"},
    ) as running:
        yield running


def test_the_page_lists_the_programs() -> None:
    page = (PROGRAMS / "README.md").read_text()
    assert all(f"[{path.name}]" in page for path in PROGRAMS.glob("*.py"))


def test_the_python_client(stack: BackgroundStack) -> None:
    takes, numbers, words, refused = said("python_client.py", f"--router={stack.router_grpc}")
    assert takes == "multiplier takes INPUT FP32 [-1, -1]"
    assert numbers == "[[10. 20. 30.]] by version 2"
    assert words == '2 words in "few shoals"'
    assert refused.startswith("MODEL_NOT_FOUND: Request for unknown model")


def test_generated_stubs(stack: BackgroundStack) -> None:
    addresses = f"--registry={stack.registry}", f"--router={stack.router_grpc}"
    *models, answer = said("generated_stubs.py", *addresses)
    assert "models/multiplier: default version 2" in models
    assert answer == "(2.0, 4.0, 6.0) by version 1"


def listens(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex((LOOPBACK, port)) == 0


def test_a_backend_service_and_its_trace(
    stack: BackgroundStack, viewer: tuple[str, Path], tmp_path: Path
) -> None:
    [port] = pick(1)
    log = tmp_path / "log"
    with running(log, "backend_service.py", f"--router={stack.router_grpc}", f"--port={port}"):
        wait_until(lambda: listens(port), 20, "the service")
        connection = HTTPConnection(LOOPBACK, port, timeout=30)
        traced = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
        connection.request("GET", "/words?text=few+shoals", headers=traced)
        answer = json.loads(connection.getresponse().read())
        connection.close()
    assert answer == {"words": 2, "longest": "shoals"}, log.read_text()

    _, shown = viewer
    wait_until(lambda: f"trace {TRACE}" in shown.read_text(), 20, "the trace")
    wait_until(lambda: "forward" in shown.read_text().partition(TRACE)[2], 5, "its spans")
    assert "Traceback" not in shown.read_text()


def test_ones_own_repository() -> None:
    assert said("own_repository.py") == ["slaohs wef"]
