"""Small models that differ in what they add, so that no answer can be another one's."""

from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from tritonclient.grpc import service_pb2

FLOATS: Final = 16  # of a request's tensor

_CONFIG: Final = """\
name: "{name}"
backend: "python"
max_batch_size: 64
input [ {{ name: "INPUT" data_type: TYPE_FP32 dims: [ -1 ] }} ]
output [ {{ name: "OUTPUT" data_type: TYPE_FP32 dims: [ -1 ] }} ]
instance_group [ {{ count: 1 kind: KIND_CPU }} ]
"""

_PROGRAM: Final = """\
import time

import numpy as np
import triton_python_backend_utils as pb_utils

ADDEND = np.float32({addend})


class TritonPythonModel:
    def initialize(self, args):
        self.ballast = np.ones({mib} << 20, np.uint8)
        time.sleep({pause})

    def execute(self, requests):
        return [answer(request) for request in requests]


def answer(request):
    numbers = pb_utils.get_input_tensor_by_name(request, "INPUT").as_numpy()
    return pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", numbers + ADDEND)])
"""


class Model(NamedTuple):
    """`addend`: what version 1 adds to each number. `mib`: held beside what Python takes. `pause`:
    seconds that its load takes beside what Python takes."""

    name: str
    addend: int
    mib: int = 0
    pause: float = 0.0


def write_repository(folder: Path, models: Iterable[Model]) -> None:
    """A Triton model repository with version 1 of each."""
    for model in models:
        version = folder / model.name / "1"
        version.mkdir(parents=True)
        (folder / model.name / "config.pbtxt").write_text(_CONFIG.format(name=model.name))
        program = _PROGRAM.format(addend=model.addend, mib=model.mib, pause=model.pause)
        (version / "model.py").write_text(program)


def request(model: Model) -> bytes:
    """A serialized ModelInferRequest with a tensor FP32 [1, FLOATS]."""
    message = service_pb2.ModelInferRequest(model_name=model.name)
    message.inputs.add(name="INPUT", datatype="FP32", shape=[1, FLOATS])
    message.raw_input_contents.append(numbers().tobytes())
    return bytes(message.SerializeToString())


def is_right(model: Model, answer: bytes) -> bool:
    """Whether `answer`, a serialized ModelInferResponse, is what `model` makes of `request`."""
    message = service_pb2.ModelInferResponse.FromString(answer)
    wanted = (numbers() + np.float32(model.addend)).tobytes()
    return message.model_name == model.name and list(message.raw_output_contents) == [wanted]


def numbers() -> np.ndarray:
    return np.arange(FLOATS, dtype="<f4")
