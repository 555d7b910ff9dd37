"""Small Python models that a test writes, loads and asks."""

from pathlib import Path

import numpy as np
import psutil
import tritonclient.grpc as triton_client
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from services.controller.measurement.footprints import stub_unit
from tests.support.triton_direct import DirectTriton

CODE = """
import time
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        {initialize}

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        x = pb_utils.get_input_tensor_by_name(request, "INPUT").as_numpy()
        return pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", {answer})])
"""


def config(name: str, instances: int = 1) -> model_config_pb2.ModelConfig:
    made = model_config_pb2.ModelConfig(name=name, backend="python")
    made.input.add(name="INPUT", data_type=model_config_pb2.TYPE_FP32, dims=[-1])
    made.output.add(name="OUTPUT", data_type=model_config_pb2.TYPE_FP32, dims=[-1])
    made.instance_group.add(count=instances, kind=model_config_pb2.ModelInstanceGroup.KIND_CPU)
    made.parameters["kept"].string_value = "as it is"
    return made


def wire(name: str, instances: int = 1) -> bytes:
    return bytes(config(name, instances).SerializeToString())


def write(
    repository: Path,
    name: str,
    version: int = 1,
    *,
    initialize: str = "pass",
    answer: str = "x",
    instances: int = 1,
) -> None:
    code = CODE.format(initialize=initialize, answer=answer)
    write_program(repository, config(name, instances), code, version)


def write_program(
    repository: Path, made: model_config_pb2.ModelConfig, code: str, version: int = 1
) -> None:
    """`code`: of its model.py."""
    folder = repository / made.name / str(version)
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(code)
    (repository / made.name / "config.pbtxt").write_text(text_format.MessageToString(made))


def pids(server: DirectTriton, model: str) -> dict[int, set[int]]:
    """Of the living processes of each version."""
    found: dict[int, set[int]] = {}
    for child in server.process.children():
        if child.status() == psutil.STATUS_ZOMBIE:  # killed, and not unloaded yet
            continue
        unit = stub_unit(child.cmdline())
        if unit is not None and unit.model == model:
            found.setdefault(unit.version, set()).add(child.pid)
    return found


def ask(server: DirectTriton, model: str, version: int) -> list[float]:
    values = np.array([1.0, 2.0], np.float32)
    tensor = triton_client.InferInput("INPUT", [2], "FP32")
    tensor.set_data_from_numpy(values)
    result = server.client.infer(model, [tensor], model_version=str(version))
    return list(result.as_numpy("OUTPUT"))
