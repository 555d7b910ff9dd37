"""What is sent: requests to two identity models, in several sizes and numbers, some in streams."""

import json
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from tritonclient.grpc import service_pb2

MODEL: Final = "bench_identity"
TOKENS: Final = "bench_tokens"  # decoupled: so many replies to each request
REPLIES: Final = 32

INFER: Final = "/inference.GRPCInferenceService/ModelInfer"
STREAM_INFER: Final = "/inference.GRPCInferenceService/ModelStreamInfer"

OVER_GRPC: Final = "gRPC"
AS_JSON: Final = "JSON"  # over HTTP/1.1, and so is the next one
AS_BINARY: Final = "binary"

_CONFIG: Final = """\
name: "bench_identity"
backend: "python"
max_batch_size: 64
input [ { name: "INPUT" data_type: TYPE_FP32 dims: [ -1 ] } ]
output [ { name: "OUTPUT" data_type: TYPE_FP32 dims: [ -1 ] } ]
dynamic_batching { }
instance_group [ { count: 1 kind: KIND_CPU } ]
"""

_PROGRAM: Final = """\
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [answer(request) for request in requests]


def answer(request):
    numbers = pb_utils.get_input_tensor_by_name(request, "INPUT").as_numpy()
    return pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", numbers)])
"""

_ENSEMBLE_CONFIG: Final = f"""\
name: "NAME"
platform: "ensemble"
max_batch_size: 64
input [ {{ name: "INPUT" data_type: TYPE_FP32 dims: [ -1 ] }} ]
output [ {{ name: "OUTPUT" data_type: TYPE_FP32 dims: [ -1 ] }} ]
ensemble_scheduling {{
  step [ {{
    model_name: "{MODEL}"
    model_version: -1
    input_map {{ key: "INPUT" value: "INPUT" }}
    output_map {{ key: "OUTPUT" value: "OUTPUT" }}
  }} ]
}}
"""

_TOKENS_CONFIG: Final = """\
name: "bench_tokens"
backend: "python"
input [ { name: "INPUT" data_type: TYPE_FP32 dims: [ 1, -1 ] } ]
output [ { name: "OUTPUT" data_type: TYPE_FP32 dims: [ 1, -1 ] } ]
model_transaction_policy { decoupled: true }
instance_group [ { count: 1 kind: KIND_CPU } ]
"""

_TOKENS_PROGRAM: Final = f"""\
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            numbers = pb_utils.get_input_tensor_by_name(request, "INPUT").as_numpy()
            sender = request.get_response_sender()
            for left in reversed(range({REPLIES})):
                flags = 0 if left else pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
                answer = pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", numbers)])
                sender.send(answer, flags=flags)
"""


class Workload(NamedTuple):
    """`floats`: length of the FP32 tensor. `in flight` is connections × streams. A call is a stream
    where it has several requests, or several `replies` to each: so many `turns`, each with so many
    requests at once. `form`: the protocol, and how it writes the tensor. `churn`: another model is
    loaded and evicted again and again meanwhile."""

    name: str
    title: str
    floats: int
    connections: int
    streams: int
    model: str = MODEL
    at_once: int = 1
    turns: int = 1
    replies: int = 1
    form: str = OVER_GRPC
    churn: bool = False

    @property
    def http(self) -> bool:
        """Whether it goes over HTTP/1.1, where a connection has one request at a time."""
        return self.form != OVER_GRPC

    @property
    def in_flight(self) -> int:
        """Calls."""
        return self.connections * self.streams

    @property
    def path(self) -> str:
        return INFER if self.answers == 1 else STREAM_INFER

    @property
    def requests(self) -> int:
        """In one call."""
        return self.at_once * self.turns

    @property
    def answers(self) -> int:
        """To one call."""
        return self.requests * self.replies

    def body(self, message: bytes) -> bytes:
        """What one call sends at a turn: `message`, a serialized ModelInferRequest, as gRPC frames
        it; several with an id each."""
        if self.at_once == 1:
            return framed(message)
        return b"".join(framed(message + b"\x1a\x04%04d" % n) for n in range(self.at_once))


WORKLOADS: Final = (
    Workload("alone", "64 B, 1 in flight", 16, 1, 1),
    Workload("many", "64 B, 64 in flight (8 × 8)", 16, 8, 8),
    Workload("large", "600 KB, 4 in flight (4 × 1)", 153_600, 4, 1),
    # By turns: release 24.10 crashes when plain streams have many requests under way (seen).
    Workload("stream", "64 B, 8 streams, in each one request at a time", 16, 8, 1, turns=100),
    Workload(
        "tokens",
        f"64 B, 8 streams of 10 requests each, {REPLIES} replies to each (decoupled)",
        *(16, 8, 1, TOKENS),
        at_once=10,
        replies=REPLIES,
    ),
    Workload(
        "many-churn",
        "64 B, 64 in flight (8 × 8), while another model is loaded and evicted",
        *(16, 8, 8),
        churn=True,
    ),
    Workload("http-alone", "64 B as JSON over HTTP, 1 in flight", 16, 1, 1, form=AS_JSON),
    Workload("http-json", "64 B as JSON over HTTP, 64 connections", 16, 64, 1, form=AS_JSON),
    Workload("http-binary", "64 B as binary over HTTP, 64 connections", 16, 64, 1, form=AS_BINARY),
    Workload(
        "http-large", "600 KB as binary over HTTP, 4 connections", 153_600, 4, 1, form=AS_BINARY
    ),
)


def write_repository(folder: Path, model: str = MODEL, others: int = 0) -> None:
    """A Triton model repository with one of the models alone, and so many `others` that are never
    asked."""
    config, program = (_CONFIG, _PROGRAM) if model == MODEL else (_TOKENS_CONFIG, _TOKENS_PROGRAM)
    for name in (model, *map(other, range(others))):
        version = folder / name / "1"
        version.mkdir(parents=True)
        (folder / name / "config.pbtxt").write_text(config.replace(model, name))
        (version / "model.py").write_text(program)


def write_ensembles(folder: Path, count: int) -> None:
    """Add so many ensembles that consist of MODEL: they are loaded, and take next to no memory."""
    for number in range(count):
        name = composed(number)
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "config.pbtxt").write_text(_ENSEMBLE_CONFIG.replace("NAME", name))


def composed(number: int) -> str:
    """The name of one of the ensembles."""
    return f"bench_composed_{number:05}"


def other(number: int) -> str:
    """The name of one of the models that are never asked but to have them loaded."""
    return f"bench_other_{number:05}"


def framed(message: bytes) -> bytes:
    """A gRPC message as it is sent, not compressed."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def request(floats: int, model: str = MODEL) -> bytes:
    """A serialized ModelInferRequest with a tensor FP32 [1, floats]."""
    message = service_pb2.ModelInferRequest(model_name=model)
    message.inputs.add(name="INPUT", datatype="FP32", shape=[1, floats])
    message.raw_input_contents.append(_numbers(floats))
    return bytes(message.SerializeToString())


def http_request(workload: Workload) -> tuple[bytes, tuple[str, ...]]:
    """The body of a request over HTTP with a tensor FP32 [1, floats], and its headers, each as
    `name: value`."""
    tensor = {"name": "INPUT", "datatype": "FP32", "shape": [1, workload.floats]}
    numbers = _numbers(workload.floats)
    if workload.form == AS_JSON:
        data = np.frombuffer(numbers, "<f4").tolist()
        body = json.dumps({"inputs": [{**tensor, "data": data}]}).encode()
        return body, ("content-type: application/json",)
    sized = {**tensor, "parameters": {"binary_data_size": len(numbers)}}
    head = {"inputs": [sized], "parameters": {"binary_data_output": True}}
    text = json.dumps(head).encode()
    size = f"inference-header-content-length: {len(text)}"
    return text + numbers, ("content-type: application/octet-stream", size)


def is_right_over_http(workload: Workload, answer: bytes) -> bool:
    """Whether the body of an answer over HTTP has the tensor that was sent."""
    numbers = _numbers(workload.floats)
    if workload.form == AS_BINARY:
        return answer.endswith(numbers)
    data = json.loads(answer)["outputs"][0]["data"]
    return np.array(data, "<f4").tobytes() == numbers


def is_right(floats: int, answer: bytes) -> bool:
    """Whether `answer`, a serialized ModelInferResponse, has the tensor that was sent."""
    return _has_numbers(floats, service_pb2.ModelInferResponse.FromString(answer))


def is_right_in_stream(floats: int, answer: bytes) -> bool:
    """As `is_right`, for a serialized ModelStreamInferResponse."""
    message = service_pb2.ModelStreamInferResponse.FromString(answer)
    return not message.error_message and _has_numbers(floats, message.infer_response)


def _has_numbers(floats: int, message: Any) -> bool:
    return list(message.outputs[0].shape) == [1, floats] and message.raw_output_contents[
        0
    ] == _numbers(floats)


def _numbers(floats: int) -> bytes:
    return np.arange(floats, dtype="<f4").tobytes()
