"""What is sent: an identity model, and requests to it in several sizes and numbers."""

from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from tritonclient.grpc import service_pb2

MODEL: Final = "bench_identity"

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


class Workload(NamedTuple):
    """`floats`: length of the FP32 tensor. `in flight` is connections × streams."""

    name: str
    title: str
    floats: int
    connections: int
    streams: int

    @property
    def in_flight(self) -> int:
        return self.connections * self.streams


WORKLOADS: Final = (
    Workload("alone", "64 B, 1 in flight", 16, 1, 1),
    Workload("many", "64 B, 64 in flight (8 × 8)", 16, 8, 8),
    Workload("large", "600 KB, 4 in flight (4 × 1)", 153_600, 4, 1),
)


def write_repository(folder: Path) -> None:
    """A Triton model repository with the identity model alone."""
    version = folder / MODEL / "1"
    version.mkdir(parents=True)
    (folder / MODEL / "config.pbtxt").write_text(_CONFIG)
    (version / "model.py").write_text(_PROGRAM)


def request(floats: int) -> bytes:
    """A serialized ModelInferRequest with a tensor FP32 [1, floats]."""
    message = service_pb2.ModelInferRequest(model_name=MODEL)
    message.inputs.add(name="INPUT", datatype="FP32", shape=[1, floats])
    message.raw_input_contents.append(_numbers(floats))
    return bytes(message.SerializeToString())


def is_right(floats: int, answer: bytes) -> bool:
    """Whether `answer`, a serialized ModelInferResponse, has the tensor that was sent."""
    message = service_pb2.ModelInferResponse.FromString(answer)
    return list(message.outputs[0].shape) == [1, floats] and message.raw_output_contents[
        0
    ] == _numbers(floats)


def _numbers(floats: int) -> bytes:
    return np.arange(floats, dtype="<f4").tobytes()
