"""What breaks inside a Triton that goes on answering: found, told, and made good."""

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator

import grpc
import numpy as np
import psutil
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from services.controller.measurement.footprints import stub_unit
from services.embedded.background import BackgroundStack
from shoal.controller.v1 import controller_service_pb2 as controller
from shoal.controller.v1 import types_pb2 as kinds
from tests.support.stack import ADMIN_HEADER, Fleet, admin_key, refusal, tensors
from tests.support.triton_models import write
from tests.support.waiting import wait_until

pytestmark = pytest.mark.triton

SERVER = "triton-0"
LOAD_TIMEOUT = 2.0
DEADLINE = 20.0


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    models = tmp_path_factory.mktemp("models")
    for name in ("steady", "dies", "dies-asked", "dies-stuck", "dies-unseen"):
        write(models, name)
    write(models, "hangs", initialize="time.sleep(6)")
    write(models, "unanswering", answer="x.no_such_thing")
    probe = {"inputs": [{"name": "INPUT", "shape": [1], "datatype": "FP32", "data": [1.0]}]}
    for name in ("steady", "unanswering"):
        (models / name / "shoal_probe.json").write_text(json.dumps(probe))
    with BackgroundStack(
        f"--repository={models}",
        "--trace-ratio=0",
        environment={"SHOAL_CONTROLLER_LOAD_TIMEOUT": str(LOAD_TIMEOUT)},
    ) as running:
        yield Fleet(running)


def ask(stack: Fleet, model: str, seconds: float = DEADLINE) -> list[float]:
    values = tensors({"INPUT": np.array([1.0, 2.0], np.float32)})
    answer = stack.client.infer(model, values, client_timeout=seconds)
    return list(answer.as_numpy("OUTPUT"))


def restarts_told(stack: Fleet) -> int:
    return stack.stack.output.read_text().count(f"Restarting {SERVER}: ")


def stub_pid(stack: Fleet, model: str) -> int:
    server = psutil.Process(stack.stack.announced().pid_of(SERVER))
    for child in server.children():
        with contextlib.suppress(psutil.ZombieProcess):
            unit = stub_unit(child.cmdline())
            if unit is not None and unit.model == model:
                return int(child.pid)
    raise AssertionError(f"{model} has no process")


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: psutil.Process(pid).status() == psutil.STATUS_ZOMBIE, 10, "its end")


def events(stack: Fleet, about: str) -> list[kinds.Event]:
    """The newest first."""
    request = controller.ListEventsRequest(about=about, page_size=1000)
    return list(stack.controller.ListEvents(request).events)


def told(stack: Fleet, about: str, kind: kinds.EventKind.ValueType) -> list[str]:
    return [event.reason for event in events(stack, about) if event.kind == kind]


def server(stack: Fleet) -> kinds.Server:
    (one,) = stack.controller.ListServers(controller.ListServersRequest()).servers
    return one


def test_a_dead_process_is_found_before_anybody_asks(stack: Fleet) -> None:
    assert ask(stack, "dies") == [1.0, 2.0]
    kill(stub_pid(stack, "dies"))
    wait_until(lambda: told(stack, "models/dies", kinds.EVENT_KIND_BROKEN), DEADLINE, "it is found")
    assert "process" in told(stack, "models/dies", kinds.EVENT_KIND_BROKEN)[0]
    assert ask(stack, "dies") == [1.0, 2.0]
    assert server(stack).state == kinds.SERVER_STATE_HEALTHY


def test_a_dead_process_that_is_asked_first_fails_no_request(stack: Fleet) -> None:
    assert ask(stack, "dies-asked") == [1.0, 2.0]
    kill(stub_pid(stack, "dies-asked"))
    assert ask(stack, "dies-asked") == [1.0, 2.0]
    assert ask(stack, "steady") == [1.0, 2.0]


def test_a_load_that_hangs_takes_no_other_down(stack: Fleet) -> None:
    assert ask(stack, "steady") == [1.0, 2.0]
    began = time.monotonic()
    code, info, text = refusal(lambda: ask(stack, "hangs", LOAD_TIMEOUT + 2))
    assert time.monotonic() - began < LOAD_TIMEOUT + 3
    assert code != "OK", text
    assert info is not None
    assert ask(stack, "steady") == [1.0, 2.0]
    failed = told(stack, "models/hangs", kinds.EVENT_KIND_LOAD_FAILED)
    assert f"still LOADING after {LOAD_TIMEOUT:g} s" in failed[0]
    assert server(stack).state == kinds.SERVER_STATE_HEALTHY


def test_what_does_not_answer_its_probe_is_not_served(stack: Fleet) -> None:
    _, info, text = refusal(lambda: ask(stack, "unanswering"))
    assert info is not None
    assert "the probe of unanswering:1 was answered INTERNAL" in text
    assert ask(stack, "steady") == [1.0, 2.0]


def test_a_controller_that_starts_takes_a_server_that_is_stuck(stack: Fleet) -> None:
    assert ask(stack, "dies-stuck") == [1.0, 2.0]
    assert ask(stack, "steady") == [1.0, 2.0]
    with another_controller(stack):
        stick(stack, "dies-stuck")
    assert ask(stack, "steady") == [1.0, 2.0]
    assert ask(stack, "dies-stuck") == [1.0, 2.0]


def test_a_controller_that_starts_finds_what_died_before(stack: Fleet) -> None:
    assert ask(stack, "dies-unseen") == [1.0, 2.0]
    with another_controller(stack):
        kill(stub_pid(stack, "dies-unseen"))
    wait_until(
        lambda: told(stack, "models/dies-unseen", kinds.EVENT_KIND_BROKEN), DEADLINE, "it is found"
    )
    assert ask(stack, "dies-unseen") == [1.0, 2.0]


@contextlib.contextmanager
def another_controller(stack: Fleet) -> Iterator[None]:
    """What happens within it, the Controller does not see; then another one is attached."""
    announced = stack.stack.announced()
    os.kill(announced.pid_of("controller"), signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(announced.pid_of("controller"), signal.SIGKILL)
    stack.stack.wait_for(
        lambda now: now.all_ready() and now.starts("controller") > announced.starts("controller"),
        60,
    )
    wait_until(
        lambda: server(stack).state == kinds.SERVER_STATE_HEALTHY, DEADLINE, "it is attached"
    )


def stick(stack: Fleet, model: str) -> None:
    """Have Triton unload, for ever, a model whose dead process was asked."""
    kill(stub_pid(stack, model))
    server = psutil.Process(stack.stack.announced().pid_of(SERVER))
    metadata = ((ADMIN_HEADER, admin_key(server)),)
    with grpc.insecure_channel(stack.stack.tritons[SERVER]) as channel:
        direct = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = service_pb2.ModelInferRequest(model_name=model)
        tensor = request.inputs.add(name="INPUT", datatype="FP32", shape=[1])
        tensor.contents.fp32_contents.append(1.0)
        with pytest.raises(grpc.RpcError, match="is not healthy"):
            direct.ModelInfer(request, timeout=10)
        unload = service_pb2.RepositoryModelUnloadRequest(model_name=model)
        direct.RepositoryModelUnload(unload, metadata=metadata, timeout=10)


def test_a_server_that_is_to_be_restarted_is_restarted_by_the_stack(stack: Fleet) -> None:
    assert ask(stack, "steady") == [1.0, 2.0]
    before, told = stack.stack.announced(), restarts_told(stack)
    request = controller.DrainServerRequest(name=f"servers/{SERVER}", restart=True)
    stack.controller.DrainServer(request)
    stack.stack.wait_for(
        lambda now: now.all_ready() and now.starts(SERVER) > before.starts(SERVER), 60
    )
    assert restarts_told(stack) == told + 1
    wait_until(lambda: server(stack).state == kinds.SERVER_STATE_HEALTHY, DEADLINE, "it is back")
    assert not server(stack).restart_wanted
    assert ask(stack, "steady") == [1.0, 2.0]
