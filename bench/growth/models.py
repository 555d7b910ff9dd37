"""What the load asks: models that are always in use, and more than fit that take turns."""

from pathlib import Path
from typing import Final

import numpy as np
from tritonclient.grpc import service_pb2

from bench.residency.models import Model, write_repository

ECHO: Final = Model("plain", 1)
COLD: Final = tuple(Model(f"cold_{number}", 10 + number) for number in range(6))
MANY, SUM, SLOW = "many", "sum", "slow"
PLACES: Final = 6  # those that are always in use, and two

_CONFIG: Final = """\
name: "{name}"
backend: "python"
input [ {{ name: "INPUT" data_type: TYPE_FP32 dims: [ -1 ] }} ]
output [ {{ name: "OUTPUT" data_type: TYPE_FP32 dims: [ -1 ] }} ]
instance_group [ {{ count: 1 kind: KIND_CPU }} ]
{more}
"""
_DECOUPLED: Final = "model_transaction_policy { decoupled: true }"

# Asked with n, it sends 0 to n - 1, a reply each.
_MANY: Final = """\
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            count = pb_utils.get_input_tensor_by_name(request, "INPUT").as_numpy()[0]
            sender = request.get_response_sender()
            for number in range(int(count)):
                tensor = pb_utils.Tensor("OUTPUT", np.array([number], np.float32))
                sender.send(pb_utils.InferenceResponse([tensor]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""

# Adds up what a sequence is given, and forgets it at its end.
_SUM: Final = """\
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.sums = {}

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        flags, id_ = request.flags(), request.correlation_id()
        numbers = pb_utils.get_input_tensor_by_name(request, "INPUT").as_numpy()
        if not flags & pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START:
            numbers = numbers + self.sums.pop(id_)
        if not flags & pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END:
            self.sums[id_] = numbers
        return pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", numbers)])
"""

# Takes as many seconds as it is told.
_SLOW: Final = """\
import time
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        numbers = pb_utils.get_input_tensor_by_name(request, "INPUT").as_numpy()
        time.sleep(float(numbers[0]))
        return pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", numbers)])
"""


def write(folder: Path) -> None:
    """A Triton model repository with all of them."""
    write_repository(folder, (ECHO, *COLD))
    for name, program, more in ((MANY, _MANY, _DECOUPLED), (SUM, _SUM, ""), (SLOW, _SLOW, "")):
        version = folder / name / "1"
        version.mkdir(parents=True)
        (folder / name / "config.pbtxt").write_text(_CONFIG.format(name=name, more=more))
        (version / "model.py").write_text(program)


def request(model: str, *numbers: float, **parameters: int | bool) -> bytes:
    """A serialized ModelInferRequest with a tensor FP32 [len(numbers)]."""
    return asked(model, np.array(numbers, "<f4"), **parameters)


def asked(model: str, tensor: np.ndarray, **parameters: int | bool) -> bytes:
    """The same with a tensor of any shape."""
    message = service_pb2.ModelInferRequest(model_name=model)
    message.inputs.add(name="INPUT", datatype="FP32", shape=tensor.shape)
    message.raw_input_contents.append(tensor.tobytes())
    for name, value in parameters.items():
        parameter = message.parameters[name]
        if isinstance(value, bool):
            parameter.bool_param = value
        else:
            parameter.int64_param = value
    return bytes(message.SerializeToString())


def answer(message: bytes) -> np.ndarray:
    """The tensor of a serialized ModelInferResponse, flat."""
    return numbers_of(service_pb2.ModelInferResponse.FromString(message))


def numbers_of(response: service_pb2.ModelInferResponse) -> np.ndarray:
    return np.frombuffer(response.raw_output_contents[0], "<f4")
