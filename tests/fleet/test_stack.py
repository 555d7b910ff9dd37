"""`shoal up` with everything in it: it comes up, heals, and leaves nothing behind."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.embedded import leftovers, runs
from services.embedded.background import BackgroundStack
from services.embedded.lane import binary
from services.embedded.leftovers import is_alive
from tests.support.waiting import wait_until

pytestmark = pytest.mark.triton

ROOT = Path(__file__).parents[2]
WITHIN_S = 60.0


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "model_repository" / "multiplier", folder / "multiplier", ignore=ignored)
    return folder


@pytest.fixture(scope="module")
def lasting(repository: Path) -> Iterator[BackgroundStack]:
    """For tests after which it is as before; the last one ends it."""
    with BackgroundStack("--repository", str(repository), "--servers", "2") as running:
        yield running
    assert_nothing_left(running)


def multiplied(stack: BackgroundStack, value: float = 3.0) -> float:
    """One inference; which factor it is, is the model's affair."""
    with contextlib.closing(triton.InferenceServerClient(stack.router_grpc)) as client:
        metadata = client.get_model_metadata("multiplier", client_timeout=WITHIN_S)
        (tensor,) = metadata.inputs
        shape = [max(int(size), 1) for size in tensor.shape]
        given = triton.InferInput(tensor.name, shape, tensor.datatype)
        given.set_data_from_numpy(np.full(shape, value, np.float32))
        answer = client.infer("multiplier", [given], client_timeout=WITHIN_S)
        return float(answer.as_numpy(metadata.outputs[0].name).flat[0])


def stubs(triton_pid: int | None) -> list[psutil.Process]:
    return psutil.Process(triton_pid).children(recursive=True)


def assert_nothing_left(stack: BackgroundStack) -> None:
    assert leftovers.processes(stack.last.run) == []
    assert not list(Path("/dev/shm").glob(f"{stack.last.run}*"))
    assert not stack.last.folder.exists()


def test_it_comes_up_and_says_how_to_call_it(lasting: BackgroundStack) -> None:
    announced = lasting.announced()
    services = {"router", "controller", "registry", "collector"}
    lane = {"lane"} if binary() else set()
    assert set(announced.parts) == {*services, *lane, "triton-0", "triton-1"}
    assert set(announced.tritons) == {"triton-0", "triton-1"}
    for address in (lasting.router_grpc, lasting.registry, lasting.controller):
        with grpc.insecure_channel(address) as channel:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=WITHIN_S
            )
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    said = lasting.output.read_text
    called = f"Router      gRPC {lasting.router_grpc}"
    wait_until(lambda: called in said() and "shoal models" in said(), 10, "the way to call it")


def test_the_admin_key_is_the_controller_s_alone(lasting: BackgroundStack) -> None:
    announced = lasting.announced()
    (argument,) = [
        word
        for word in psutil.Process(announced.pid_of("triton-0")).cmdline()
        if word.startswith("--grpc-restricted-protocol=")
    ]
    key = argument.rpartition("=")[2]
    assert len(key) >= 32
    multiplied(lasting)

    holders = {
        part
        for part in announced.parts
        if key in "".join(psutil.Process(announced.pid_of(part)).environ().values())
    }
    assert holders == {"controller"}
    written = [lasting.output, *(announced.data / "logs").iterdir()]
    assert len(written) == 1 + len(announced.parts)
    assert not [path for path in written if key in path.read_text()]


def test_a_killed_triton_comes_back_without_its_old_models_processes(
    lasting: BackgroundStack,
) -> None:
    expected = multiplied(lasting)
    announced = lasting.announced()
    server = next(one for one in announced.tritons if stubs(announced.pid_of(one)))
    old = stubs(announced.pid_of(server))
    regions = list(Path("/dev/shm").glob(f"{announced.run}-{server}-*"))
    assert regions
    # One of its models' processes hangs, and would not notice the server's end by itself.
    old[0].suspend()
    os.kill(announced.pid_of(server), signal.SIGKILL)
    healed = lasting.wait_for(lambda now: now.starts(server) == 2 and now.all_ready(), WITHIN_S)
    (death,) = [event for event in healed.events if event["state"] == "died"]
    assert death["text"] == "was ended by SIGKILL; starting it again in 0.25 s"
    assert not [process for process in old if is_alive(process)]
    assert not [region for region in regions if region.exists()]
    assert multiplied(lasting) == expected


@pytest.mark.parametrize("part", ["registry", "controller", "router"])
def test_a_killed_service_comes_back(lasting: BackgroundStack, part: str) -> None:
    expected = multiplied(lasting)
    os.kill(lasting.announced().pid_of(part), signal.SIGKILL)
    lasting.wait_for(lambda now: now.starts(part) == 2 and now.all_ready(), WITHIN_S)
    assert f"{part:<12}was ended by SIGKILL" in lasting.output.read_text()
    assert multiplied(lasting) == expected


def test_a_killed_supervisor_takes_its_parts_along(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In a place of its own: any other `shoal up` on the machine would sweep it away.
    place = {"TMPDIR": str(tmp_path)}
    with BackgroundStack("--repository", str(repository), environment=place) as stack:
        multiplied(stack)
        announced = stack.announced()
        parts = [psutil.Process(announced.pid_of(part)) for part in announced.parts]
        os.kill(announced.pid, signal.SIGKILL)
        wait_until(
            lambda: not any(is_alive(process) for process in parts),
            WITHIN_S,
            "the parts to follow",
        )
        stack.process.wait(WITHIN_S)  # the parts follow its main thread, locks go with the last
        # A model's process that waits for a lock of the dead Triton's does so until it is swept.
        assert announced.folder.exists()
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        assert [swept.name for swept in runs.sweep()] == [announced.run]
    assert_nothing_left(stack)


def test_a_stop_leaves_nothing_but_a_data_folder(repository: Path, tmp_path: Path) -> None:
    data = str(tmp_path / "data")
    with BackgroundStack("--repository", str(repository), "--data", data, "--no-otlp") as first:
        expected = multiplied(first)
        with pytest.raises(RuntimeError, match="ended with 73"), BackgroundStack("--data", data):
            pass
        announced = first.announced()
        assert "collector" not in announced.parts
        assert stubs(announced.pid_of("triton-0"))
        assert list(Path("/dev/shm").glob(f"{announced.run}-triton-0-*"))
        assert first.stop() == 0
    assert_nothing_left(first)

    empty = tmp_path / "empty"
    empty.mkdir()
    with BackgroundStack("--repository", str(empty), "--data", data, "--no-otlp") as second:
        assert multiplied(second) == expected
    assert_nothing_left(second)
    assert (tmp_path / "data" / "logs" / "registry.log.1").exists()


def test_a_second_signal_ends_a_stack_whose_parts_hang(lasting: BackgroundStack) -> None:
    multiplied(lasting)
    announced = lasting.announced()
    for part in announced.parts:
        os.kill(announced.pid_of(part), signal.SIGSTOP)
    os.kill(announced.pid, signal.SIGINT)
    lasting.wait_for(lambda now: now.state == "stopping", WITHIN_S)
    began = time.monotonic()
    while lasting.process.poll() is None and time.monotonic() < began + WITHIN_S:
        os.kill(announced.pid, signal.SIGINT)  # one that comes too soon counts as the first again
        with contextlib.suppress(subprocess.TimeoutExpired):
            lasting.process.wait(0.1)
    assert lasting.process.returncode == 130
    assert time.monotonic() - began < 8.0
