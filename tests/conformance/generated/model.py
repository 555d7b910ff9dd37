"""One model folder of a generated repository, and a request to it."""

# ruff: noqa: E501 -- a config is easier to read in one line

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from onnx import NodeProto, TensorProto
from tritonclient.grpc import service_pb2
from tritonclient.utils import np_to_triton_dtype, serialize_byte_tensor

from tests.support.onnx_models import serialized, tensor_info

Arrays = Mapping[str, np.ndarray]
Parameters = Mapping[str, int | bool | str]

TYPES: Mapping[str, type] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
    "STRING": np.object_,
}

# Returns every input under the name of an output.
ECHO = """
import triton_python_backend_utils as pb

class TritonPythonModel:
    def execute(self, requests):
        return [
            pb.InferenceResponse(
                [pb.Tensor(t.name().replace("IN", "OUT"), t.as_numpy()) for t in request.inputs()
                 if t.name().replace("IN", "OUT") in request.requested_output_names()]
            )
            for request in requests
        ]
"""
# Returns the number of the version that has answered.
VERSION = """
import numpy as np
import triton_python_backend_utils as pb

class TritonPythonModel:
    def initialize(self, args):
        self.version = int(args["model_version"])

    def execute(self, requests):
        return [
            pb.InferenceResponse([pb.Tensor("OUT", np.array([self.version], np.float32))])
            for request in requests
        ]
"""
# Sends its input twice, and then says that it was the last.
DECOUPLED = """
import triton_python_backend_utils as pb

class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            given = pb.get_input_tensor_by_name(request, "IN").as_numpy()
            for _ in range(2):
                sender.send(pb.InferenceResponse([pb.Tensor("OUT", given)]))
            sender.send(flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
# Asks another model.
CALLER = """
import triton_python_backend_utils as pb

class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            inner = pb.InferenceRequest(
                model_name="CALLEE",
                requested_output_names=["OUT"],
                inputs=[pb.get_input_tensor_by_name(request, "IN")],
            ).exec()
            if inner.has_error():
                raise pb.TritonModelException(inner.error().message())
            answers.append(pb.InferenceResponse(inner.output_tensors()))
        return answers
"""
ONE = 'input [{ name: "IN" data_type: TYPE_FP32 dims: [1] }] output [{ name: "OUT" data_type: TYPE_FP32 dims: [1] }]'
PYTHON = f'backend: "python" {ONE}'
# One instance, which Shoal completes. A Triton would start two of an ONNX model.
ONE_INSTANCE = "instance_group [{ count: 1 kind: KIND_CPU }]"
ONNX = f'platform: "onnxruntime_onnx" {ONE_INSTANCE}'
NUMBER = {"IN": np.array([3], np.float32)}
BATCH = {"IN": np.array([[3]], np.float32)}


@dataclass(frozen=True)
class Model:
    """A model folder, and a request to it.

    `files` and `links` are by their path in the folder; a path that ends with "/" is a folder, and
    a link's value is where it leads. `versions` are asked for by number, beside the default one.
    """

    name: str
    config: str | bytes | None
    files: Mapping[str, bytes | str]
    request: Arrays = field(default_factory=lambda: NUMBER)
    parameters: Parameters = field(default_factory=dict)
    versions: tuple[int, ...] = ()
    links: Mapping[str, str] = field(default_factory=dict)
    #: It is in the smaller repository, too.
    light: bool = False
    #: It is asked in a stream, for it gives any number of answers.
    decoupled: bool = False
    #: A Triton alone ends when it loads or asks this, or hangs for minutes.
    hangs: bool = False

    @property
    def ensemble(self) -> bool:
        return isinstance(self.config, str) and "ensemble_scheduling" in self.config

    def write(self, repository: Path) -> None:
        folder = repository / self.name
        folder.mkdir()
        files = dict(self.files)
        if self.config is not None:
            files["config.pbtxt"] = self.config
        for path, content in files.items():
            if path.endswith("/"):
                (folder / path).mkdir(parents=True)
                continue
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            raw = content.encode() if isinstance(content, str) else content
            (folder / path).write_bytes(raw)
        for path, target in self.links.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).symlink_to(target)

    def message(self, version: str) -> bytes:
        """Return the bytes of a request to `version`, or to the default one if it is empty."""
        made = service_pb2.ModelInferRequest(model_name=self.name, model_version=version, id="1")
        for name, array in self.request.items():
            kind = np_to_triton_dtype(array.dtype)
            made.inputs.add(name=name, datatype=kind, shape=array.shape)
            raw = serialize_byte_tensor(array).item() if kind == "BYTES" else array.tobytes()
            made.raw_input_contents.append(raw)
        for key, value in self.parameters.items():
            parameter = made.parameters[key]
            if isinstance(value, bool):
                parameter.bool_param = value
            elif isinstance(value, int):
                parameter.int64_param = value
            else:
                parameter.string_param = value
        return bytes(made.SerializeToString())


def values(kind: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return an array of Triton's data type `kind` in which the values differ."""
    count = int(np.prod(shape))
    if kind == "STRING":
        texts = [f"text {number} é".encode() for number in range(count)]
        return np.array(texts, np.object_).reshape(shape)
    numbers = np.arange(count) % 2 if kind == "BOOL" else np.arange(count)
    return numbers.astype(TYPES[kind]).reshape(shape)


def python(
    name: str, more: str = "", code: str = ECHO, *, request: Arrays = NUMBER, light: bool = False
) -> Model:
    """Return a Python model with an FP32 number in and out, and `more` in its config."""
    return Model(name, f"{PYTHON} {more}", {"1/model.py": code}, request, light=light)


def graph(
    node: NodeProto,
    shape: list[int | str],
    *,
    element: int = TensorProto.FLOAT,
    out: list[int | str] | None = None,
) -> bytes:
    """Return an ONNX model of one node from IN to OUT."""
    return serialized(
        node,
        inputs=[tensor_info("IN", element, shape)],
        outputs=[tensor_info("OUT", element, shape if out is None else out)],
    )
