"""The `onnxruntime` backend as a Python-based backend.

Serves models whose config says `backend: "onnxruntime"` or `platform: "onnxruntime_onnx"`, with
the parameters and the checks of NVIDIA's backend of that name, which takes over, models and
configs unchanged, wherever it is installed. `reshape` is done by Triton before and after.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils
from batching import Batches, Failed, Refused
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument
from signature import Arrays, Entries, Signature, boolean, model_shape, parameters

# onnxruntime's name of an element type for each one of Triton's.
ELEMENT_TYPES = {
    "TYPE_BOOL": "bool",
    "TYPE_UINT8": "uint8",
    "TYPE_UINT16": "uint16",
    "TYPE_UINT32": "uint32",
    "TYPE_UINT64": "uint64",
    "TYPE_INT8": "int8",
    "TYPE_INT16": "int16",
    "TYPE_INT32": "int32",
    "TYPE_INT64": "int64",
    "TYPE_FP16": "float16",
    "TYPE_FP32": "float",
    "TYPE_FP64": "double",
    "TYPE_STRING": "string",
}
# NVIDIA's numbers for `optimization { graph { level } }`; any other means everything.
GRAPH_LEVELS = {
    -1: ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    1: ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    2: ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
SHRINK_ARENAS = "memory.enable_memory_arena_shrinkage"


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        self.signature = Signature.of(config)
        self.batches = Batches(config, self.signature, self.run)
        path = Path(args["model_repository"], args["model_version"])
        path /= config.get("default_model_filename") or "model.onnx"
        try:
            self.session = ort.InferenceSession(
                path, session_options(config), providers=execution_providers(args)
            )
        except pb_utils.TritonModelException:
            raise
        except Exception as error:
            raise pb_utils.TritonModelException(f"onnxruntime: {error}") from None
        if complaint := mismatch(self.signature, self.session):
            raise pb_utils.TritonModelException(
                f"unable to load model {args['model_name']!r}: {complaint}"
            )
        self.run_options = ort.RunOptions()
        if devices := parameters(config).get(SHRINK_ARENAS):
            self.run_options.add_run_config_entry(SHRINK_ARENAS, devices)

    def execute(self, requests: list[Any]) -> list[Any]:
        return self.batches.execute(requests)

    def run(self, arrays: Arrays, names: list[str]) -> Arrays:
        feeds = {
            name: strings(name, array) if array.dtype == np.object_ else array
            for name, array in arrays.items()
        }
        try:
            produced = self.session.run(names, feeds, self.run_options)
        except InvalidArgument as error:
            raise Refused(f"onnxruntime: {error}") from None
        except Exception as error:
            raise Failed(f"onnxruntime: {error}") from None
        return {
            name: encoded(array) if array.dtype == np.object_ else array
            for name, array in zip(names, produced, strict=True)
        }


def session_options(config: dict[str, Any]) -> ort.SessionOptions:
    given = parameters(config)
    options = ort.SessionOptions()
    # NVIDIA's default is one thread per core, in the one process that holds every model; here
    # each model instance is a process, and a machine runs dozens.
    options.intra_op_num_threads = int(given.get("intra_op_thread_count", "1"))
    options.inter_op_num_threads = int(given.get("inter_op_thread_count", "1"))
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    if given.get("execution_mode", "0") == "1":
        options.execution_mode = ort.ExecutionMode.ORT_PARALLEL
    options.enable_cpu_mem_arena = boolean(given.get("enable_mem_arena", "1"))
    options.enable_mem_pattern = boolean(given.get("enable_mem_pattern", "1"))
    level = config.get("optimization", {}).get("graph", {}).get("level", 0)
    options.graph_optimization_level = GRAPH_LEVELS.get(
        int(level), ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    )
    options.log_severity_level = 3  # errors; its warnings are about its own optimizations
    return options


def execution_providers(args: dict[str, str]) -> list[Any]:
    if args["model_instance_kind"] != "GPU":
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        raise pb_utils.TritonModelException(
            "the model asks for a GPU instance, and this onnxruntime has no CUDA"
        )
    device = {"device_id": args["model_instance_device_id"]}
    return [("CUDAExecutionProvider", device), "CPUExecutionProvider"]


def mismatch(signature: Signature, session: ort.InferenceSession) -> str | None:
    """Say where the config names, types or shapes a tensor unlike the model, if anywhere."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    configured = signature.given.keys() | signature.made.keys()
    missing = {node.name for node in inputs} - configured
    if missing:
        return f"the configuration lacks inputs of the model: {', '.join(sorted(missing))}"
    # An input with a default of its own may be configured, but needn't be.
    inputs = [*inputs, *session.get_overridable_initializers()]
    for kind, entries, nodes in (
        ("input", signature.inputs, inputs),
        ("sequence control", signature.controls, inputs),
        ("state input", signature.state_inputs, inputs),
        ("batch input", signature.made, inputs),
        ("output", signature.outputs, outputs),
        ("state output", signature.state_outputs, outputs),
    ):
        if found := entry_mismatch(kind, entries, nodes, signature):
            return found
    return None


def entry_mismatch(
    kind: str, entries: Entries, nodes: Iterable[Any], signature: Signature
) -> str | None:
    known = {node.name: node for node in nodes}
    for name, entry in entries.items():
        node = known.get(name)
        if node is None:
            return f"unexpected {kind} {name!r}, the model has {', '.join(sorted(known))}"
        expects = f"configuration expects {{}} for {kind} {name!r}, the model has {{}}"
        if node.type != f"tensor({ELEMENT_TYPES.get(entry['data_type'])})":
            return expects.format(entry["data_type"], node.type)
        if "dims" not in entry or name in signature.scattered:
            continue  # the config does not tell the shape that the model has
        dims = model_shape(entry)
        if entry.get("allow_ragged_batch"):
            dims = [-1]
        elif signature.batched:
            dims = [-1, *dims]
        shape = [dim if isinstance(dim, int) else -1 for dim in node.shape]
        if not fits(dims, shape, signature.batched):
            return expects.format(f"shape {dims}", shape)
    return None


def fits(dims: list[int], shape: list[int], batched: bool) -> bool:
    """Return whether a configured shape can be one of the model's; -1 is any size."""
    if len(dims) != len(shape) or (batched and shape[0] != -1):
        return False
    return all(a == b or a == -1 or b == -1 for a, b in zip(dims, shape, strict=True))


def strings(name: str, array: np.ndarray) -> np.ndarray:
    """BYTES elements as the `str` objects that onnxruntime takes, same shape."""
    try:
        return elementwise(array, bytes.decode)
    except UnicodeDecodeError as error:
        raise Refused(f"input {name!r} has an element that isn't UTF-8: {error}") from None


def encoded(array: np.ndarray) -> np.ndarray:
    return elementwise(array, str.encode)


def elementwise(array: np.ndarray, change: Any) -> np.ndarray:
    changed = np.empty(array.shape, dtype=np.object_)
    changed.reshape(-1)[:] = [change(item) for item in array.reshape(-1)]
    return changed
