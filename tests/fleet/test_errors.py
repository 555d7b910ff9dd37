"""Everything that can be refused: the code, the reason, and a sentence that says what to do."""

import json
import os
import shutil
import signal
import textwrap
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from tritonclient.grpc import service_pb2

from services.controller.measurement.footprints import stub_unit
from services.embedded.background import BackgroundStack
from shoal.controller.v1 import controller_service_pb2 as controller
from shoal.controller.v1 import types_pb2 as states
from shoal.registry.v1 import registry_service_pb2 as registry
from shoal.registry.v1 import types_pb2
from tests.support.raw_http2 import INFER, STREAM, connected, framed
from tests.support.stack import EXAMPLES, Fleet, example, infer, refusal, tensors
from tests.support.waiting import wait_until

pytestmark = pytest.mark.triton

MIB = 1 << 20

CONFIG = """
name: "{name}"
backend: "{backend}"
max_batch_size: 0
input [{{ name: "INPUT" data_type: TYPE_FP32 dims: [-1] }}]
output [{{ name: "OUTPUT" data_type: TYPE_FP32 dims: [-1] }}]
instance_group [{{ count: 1 kind: KIND_CPU }}]
"""

IDENTITY = """
import triton_python_backend_utils as pb_utils
{more}
class TritonPythonModel:
    def initialize(self, args):
        {initialize}
    def execute(self, requests):
        {execute}
        return [
            pb_utils.InferenceResponse([
                pb_utils.Tensor("OUTPUT", pb_utils.get_input_tensor_by_name(r, "INPUT").as_numpy())
            ])
            for r in requests
        ]
"""


def python_model(
    folder: Path, name: str, initialize: str = "pass", execute: str = "pass", more: str = ""
) -> None:
    version = folder / name / "1"
    version.mkdir(parents=True)
    (folder / name / "config.pbtxt").write_text(CONFIG.format(name=name, backend="python"))
    code = textwrap.dedent(IDENTITY).format(initialize=initialize, execute=execute, more=more)
    (version / "model.py").write_text(code)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("broken")
    for name in ("multiplier", "text_stats"):
        shutil.copytree(
            EXAMPLES / name, folder / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    broken = folder / "broken_onnx" / "1"
    broken.mkdir(parents=True)
    (broken / "model.onnx").write_bytes(b"this is no model")
    (folder / "broken_onnx" / "config.pbtxt").write_text(
        CONFIG.format(name="broken_onnx", backend="onnxruntime")
    )
    (folder / "bad_config" / "1").mkdir(parents=True)
    (folder / "bad_config" / "1" / "model.py").write_text("")
    (folder / "bad_config" / "config.pbtxt").write_text('name: "bad_config"\nbackend: [')
    python_model(folder, "raises", "raise ValueError('weights are missing')")
    python_model(folder, "slow", "time.sleep(4)", more="import time")
    python_model(folder, "huge")
    python_model(folder, "plain")
    python_model(folder, "busy", execute="time.sleep(30)", more="import time")
    return folder


@pytest.fixture(scope="module")
def stack(repository: Path) -> Iterator[Fleet]:
    with BackgroundStack(
        f"--repository={repository}",
        "--memory-budget=1GiB",
        environment={
            "SHOAL_ROUTER_MAX_MESSAGE_BYTES": str(MIB),
            "SHOAL_ROUTER_CONTROLLER_PATIENCE": "0.5",
            "SHOAL_CONTROLLER_SERVER_PATIENCE": "1",
            "SHOAL_CONTROLLER_LOAD_BACKOFF": "2",
        },
    ) as running:
        yield Fleet(running)


def ask(stack: Fleet, model: str, version: str = "", size: int = 1, timeout: float = 20) -> object:
    request = service_pb2.ModelInferRequest(model_name=model, model_version=version)
    request.inputs.add(name="INPUT", datatype="FP32", shape=[size])
    request.raw_input_contents.append(bytes(4 * size))
    return stack.inference.ModelInfer(request, timeout=timeout)


def refused(stack: Fleet, model: str, version: str = "", **more: Any) -> tuple[str, str, str]:
    code, info, text = refusal(lambda: ask(stack, model, version, **more))
    assert info is not None, text
    assert info.domain == "shoal"
    for value in info.metadata.values():
        assert value in text, "what the message says stands in the metadata too"
    return code, info.reason, text


def test_unknown_model(stack: Fleet) -> None:
    code, reason, text = refused(stack, "nope")
    assert (code, reason) == ("NOT_FOUND", "MODEL_NOT_FOUND")
    assert text.startswith("Request for unknown model: 'nope' is not found"), "as Triton says it"
    assert "shoal register" in text


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "x" * 300, "a b"])
def test_bad_name(stack: Fleet, name: str) -> None:
    code, reason, text = refused(stack, name)
    assert (code, reason) == ("INVALID_ARGUMENT", "INVALID_NAME")
    assert "names start with a letter or digit" in text


@pytest.mark.parametrize("version", ["-1", "0", "01", "1.5"])
def test_bad_version(stack: Fleet, version: str) -> None:
    code, reason, text = refused(stack, "multiplier", version)
    assert (code, reason) == ("INVALID_ARGUMENT", "INVALID_VERSION")
    assert "whole number from 1 up" in text


@pytest.mark.parametrize("version", ["canary", "../2"])
def test_a_version_that_is_no_number(stack: Fleet, version: str) -> None:
    code, reason, text = refused(stack, "multiplier", version)
    assert (code, reason) == ("INVALID_ARGUMENT", "VERSION_NOT_A_NUMBER")
    assert f"failed to get model version from specified version string '{version}'" in text
    assert "whole number from 1 up" in text


def test_unknown_version(stack: Fleet) -> None:
    code, reason, text = refused(stack, "multiplier", "9")
    assert (code, reason) == ("NOT_FOUND", "VERSION_NOT_FOUND")
    assert "Registered versions: 1, 2" in text


def test_files_that_triton_cannot_load(stack: Fleet) -> None:
    code, reason, text = refused(stack, "broken_onnx")
    assert (code, reason) == ("FAILED_PRECONDITION", "LOAD_FAILED")
    assert "INVALID_PROTOBUF" in text, "Triton's own reason"
    assert "register a new version" in text


def test_a_failed_load_backs_off_and_shows_in_the_index(stack: Fleet) -> None:
    refused(stack, "raises")
    _, reason, text = refused(stack, "raises")
    assert reason == "LOAD_FAILED"
    assert "weights are missing" in text
    rows = {row.name: row for row in stack.client.get_model_repository_index().models}
    assert rows["raises"].state == "UNAVAILABLE"
    assert "weights are missing" in rows["raises"].reason
    assert not stack.client.is_model_ready("raises")
    assert rows["multiplier"].state == "READY"


def test_a_config_that_cannot_be_read(stack: Fleet) -> None:
    code, reason, text = refused(stack, "bad_config", "1")
    assert (code, reason) == ("NOT_FOUND", "NOT_SERVABLE")
    assert "config.pbtxt" in text
    assert refused(stack, "bad_config") == (code, reason, text)


def test_what_can_never_fit(stack: Fleet) -> None:
    version = types_pb2.ModelVersion(
        name="models/huge/versions/1", declared_memory={"ram": 5 << 30}
    )
    request = registry.UpdateModelVersionRequest(version=version)
    request.update_mask.paths.append("declared_memory")
    stack.registry.UpdateModelVersion(request, timeout=10)
    wait_until(lambda: _reason(stack, "huge") == "NEVER_FITS", 5, "the Controller knows the size")
    code, _, text = refused(stack, "huge")
    assert code == "RESOURCE_EXHAUSTED"
    assert "5.00 GiB" in text
    assert "1.00 GiB" in text
    assert "--memory-budget" in text


def _reason(stack: Fleet, model: str) -> str:
    try:
        ask(stack, model)
    except grpc.RpcError:
        _, info, _ = refusal(lambda: ask(stack, model))
        return info.reason if info is not None else ""
    return ""


def test_a_deadline_shorter_than_the_load(stack: Fleet) -> None:
    code, reason, text = refused(stack, "slow", timeout=1.0)
    assert (code, reason) == ("DEADLINE_EXCEEDED", "DEADLINE_BEFORE_RESIDENT")
    assert "shoal load slow:1" in text
    assert ask(stack, "slow"), "with a longer one it answers"


def test_a_message_larger_than_allowed(stack: Fleet) -> None:
    assert ask(stack, "slow", size=MIB // 5)
    code, reason, text = refused(stack, "slow", size=MIB // 3)
    assert (code, reason) == ("RESOURCE_EXHAUSTED", "MESSAGE_TOO_LARGE")
    assert "SHOAL_ROUTER_MAX_MESSAGE_BYTES" in text


@pytest.mark.parametrize("path", [INFER, STREAM])
def test_metadata_of_a_client_that_does_not_know_the_limit_yet(stack: Fleet, path: str) -> None:
    own = stack.stack.announced().endpoints["router_own_grpc"]  # the lane's proxy knows it
    with connected(own) as (connection,):
        stream = connection.call([(f"x-{number}", "y") for number in range(300)], path=path)
        connection.data(stream, framed(b""))
        ended = connection.ended(stream)
    assert ended.grpc_status == "8"
    assert "metadata has" in ended.trailers["grpc-message"]


def test_http_headers_that_are_more_as_metadata(stack: Fleet) -> None:
    url = f"http://{stack.router_http}/v2/models/slow/infer"
    headers = {f"x-{number}": "y" for number in range(300)}
    tensor = {"name": "INPUT", "datatype": "FP32", "shape": [1], "data": [1]}
    body = json.dumps({"inputs": [tensor]}).encode()
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=5)
    with refusal.value as answer:
        assert answer.code == 431
        assert json.load(answer)["reason"] == "METADATA_TOO_LARGE"


def processes(stack: Fleet, model: str) -> set[int]:
    server = psutil.Process(stack.stack.announced().pid_of("triton-0"))
    units = ((child.pid, stub_unit(child.cmdline())) for child in server.children())
    return {pid for pid, unit in units if unit is not None and unit.model == model}


@pytest.mark.parametrize("shape", [[2**62], [2**63 - 1, 0], [-2, -4]], ids=str)
def test_a_shape_of_which_a_models_process_would_die(stack: Fleet, shape: list[int]) -> None:
    """Bytes of the size that an overflowing product of it gives."""
    assert ask(stack, "plain")
    before = processes(stack, "plain")
    size = 32 if shape == [-2, -4] else 0
    request = service_pb2.ModelInferRequest(model_name="plain")
    request.inputs.add(name="INPUT", datatype="FP32", shape=shape)
    request.raw_input_contents.append(bytes(size))
    code, info, text = refusal(lambda: stack.inference.ModelInfer(request, timeout=5))
    assert (code, info.reason) == ("INVALID_ARGUMENT", "MALFORMED_MESSAGE")
    assert str(shape) in text
    (reply,) = stack.inference.ModelStreamInfer(iter([request]), timeout=5)
    assert str(shape) in reply.error_message

    as_json = [size % 2**64 for size in shape]  # where Triton takes no negative numbers
    tensor = {"name": "INPUT", "datatype": "FP32", "shape": as_json}
    head = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": size}}]}).encode()
    over_http = urllib.request.Request(
        f"http://{stack.router_http}/v2/models/plain/infer",
        head + bytes(size),
        {"Inference-Header-Content-Length": str(len(head))},
    )
    with pytest.raises(urllib.error.HTTPError) as answer, urllib.request.urlopen(over_http):
        pass
    assert answer.value.code == 400
    answer.value.close()
    assert ask(stack, "plain")
    assert processes(stack, "plain") == before != set()


def test_bytes_that_are_no_message(stack: Fleet) -> None:
    with grpc.insecure_channel(stack.router_grpc) as channel:
        call: Any = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        code, info, text = refusal(lambda: call(b"\x0a\xff\xff", timeout=5))
    assert (code, info.reason) == ("INVALID_ARGUMENT", "MALFORMED_MESSAGE")
    assert "inference.ModelInferRequest" in text


def test_a_caller_that_leaves_is_gone_at_once_and_the_server_goes_on(stack: Fleet) -> None:
    shown = example("multiplier", 1)
    infer(stack.client, shown)
    request = service_pb2.ModelInferRequest(model_name="busy")
    request.inputs.add(name="INPUT", datatype="FP32", shape=[1])
    request.raw_input_contents.append(bytes(4))
    code, _, _ = refusal(lambda: stack.inference.ModelInfer(request, timeout=3))
    assert code == "DEADLINE_EXCEEDED"
    assert infer(stack.client, shown) == []


# --- when a part is gone --------------------------------------------------------------------------


@contextmanager
def unsupervised(stack: Fleet, part: str) -> Iterator[None]:
    """Inside, `part` is killed and nobody restarts it; afterwards it comes back."""
    before = stack.stack.announced()
    os.kill(before.pid, signal.SIGSTOP)
    try:
        os.kill(before.pid_of(part), signal.SIGKILL)
        yield
    finally:
        os.kill(before.pid, signal.SIGCONT)
    stack.stack.wait_for(lambda now: now.all_ready() and now.starts(part) > before.starts(part), 60)
    wait_until(lambda: _healthy(stack), 20, "the Controller has taken the server in")


def _healthy(stack: Fleet) -> bool:
    try:
        servers = stack.controller.ListServers(controller.ListServersRequest(), timeout=1).servers
    except grpc.RpcError:
        return False
    return all(server.state == states.SERVER_STATE_HEALTHY for server in servers)


def test_the_controller_is_gone(stack: Fleet) -> None:
    shown = example("multiplier", 1)
    infer(stack.client, shown)
    stack.controller.EvictModel(controller.EvictModelRequest(name="models/text_stats"), timeout=30)
    with unsupervised(stack, "controller"):
        assert infer(stack.client, shown) == [], "resident models go on"
        code, info, text = refusal(
            lambda: stack.client.infer("text_stats", tensors(dict(example("text_stats").inputs)))
        )
        assert (code, info.reason) == ("UNAVAILABLE", "CONTROLLER_UNAVAILABLE")
        assert "Start the Controller" in text
        assert stack.client.is_model_ready("text_stats")
    wait_until(lambda: not _fails(stack, "text_stats"), 20, "it answers again")
    assert infer(stack.client, shown) == []


def _fails(stack: Fleet, model: str) -> bool:
    try:
        return bool(infer(stack.client, example(model)))
    except Exception as error:
        return bool(str(error))


def test_the_registry_is_gone(stack: Fleet) -> None:
    stack.controller.EvictModel(controller.EvictModelRequest(name="models/multiplier"), timeout=30)
    with unsupervised(stack, "registry"):
        assert infer(stack.client, example("multiplier", 1)) == [], "cold ones too"
        code, info, text = refusal(
            lambda: stack.controller.PinModel(
                controller.PinModelRequest(name="models/multiplier"), timeout=10
            )
        )
        assert (code, info.reason) == ("UNAVAILABLE", "REGISTRY_UNAVAILABLE")
        assert "Start the Registry" in text


def test_triton_is_gone(stack: Fleet) -> None:
    infer(stack.client, example("multiplier", 1))
    with unsupervised(stack, "triton-0"):
        code, reason, text = refused(stack, "multiplier", "1")
        assert (code, reason) == ("UNAVAILABLE", "NO_SERVER")
        assert "shoal status" in text
    assert infer(stack.client, example("multiplier", 1)) == []


def test_a_server_that_breaks_off_with_the_request(stack: Fleet) -> None:
    infer(stack.client, example("multiplier", 1))
    request = service_pb2.ModelInferRequest(model_name="busy")
    request.inputs.add(name="INPUT", datatype="FP32", shape=[1])
    request.raw_input_contents.append(bytes(4))
    with grpc.insecure_channel(stack.router_grpc) as channel:
        call: Any = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            service_pb2.ModelInferRequest.SerializeToString,
        ).future(request, timeout=40)
        wait_until(lambda: _in_flight(stack, "busy"), 15, "it is being worked on")
        with unsupervised(stack, "triton-0"):
            code, info, text = refusal(call.result)
    assert (code, info.reason) == ("UNAVAILABLE", "NO_SERVER")
    assert "triton-0" in text


def _in_flight(stack: Fleet, model: str) -> int:
    replicas = stack.controller.ListReplicas(
        controller.ListReplicasRequest(model=f"models/{model}")
    ).replicas
    return sum(replica.in_flight for replica in replicas)
