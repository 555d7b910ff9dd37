"""The models that the cases ask: small Python ones, written to a folder, and two examples."""

import shutil
from pathlib import Path

from model_repository import examples

EXAMPLES = Path(examples.__file__).parent

# So many of each, all alike, that cases can wait for their model to go and come back side by side.
COPIES = {
    "echo": 4,
    "pair": 1,
    "batched": 2,
    "told": 2,
    "failing": 2,
    "decoupled": 2,
    "sequence": 2,
    "multiplier": 1,
    "text_stats": 1,
    "chain": 1,
}
# Never loaded before it is asked for: it fails.
BROKEN = "broken"

TYPES = ("FP32", "FP64", "INT8", "INT32", "INT64", "UINT16", "BOOL", "BYTES")


def _tensor(name: str, datatype: str, dims: str, more: str = "") -> str:
    kind = f"TYPE_{'STRING' if datatype == 'BYTES' else datatype}"
    return f'{{ name: "{name}" data_type: {kind} dims: [{dims}] {more} }}'


def _config(
    name: str, inputs: list[str], outputs: list[str], batch: int = 0, more: str = ""
) -> str:
    return (
        f'name: "{name}"\nbackend: "python"\nmax_batch_size: {batch}\n'
        f"input [{', '.join(inputs)}]\noutput [{', '.join(outputs)}]\n"
        f"instance_group [{{ count: 1 kind: KIND_CPU }}]\n{more}\n"
    )


CODE = """
import json
import numpy as np
import triton_python_backend_utils as pb

tensor = pb.get_input_tensor_by_name

def answer(**arrays):
    return pb.InferenceResponse([pb.Tensor(name, array) for name, array in arrays.items()])

class TritonPythonModel:
    def execute(self, requests):
        return [self.one(request) for request in requests]
"""

# What `one` does with a request.
ECHO = """
    def one(self, request):
        wanted = request.requested_output_names()
        found = {}
        for given in request.inputs():
            if (name := given.name().replace("IN_", "OUT_")) in wanted:
                found[name] = given.as_numpy()
        return answer(**found)
"""

PAIR = """
    def one(self, request):
        a, b = (tensor(request, name).as_numpy() for name in "AB")
        return answer(SUM=a + b[:, 0], PRODUCT=a * b[:, 0])
"""

BATCHED = """
    def one(self, request):
        return answer(SCORES=tensor(request, "INPUT").as_numpy())
"""

# `request.parameters()` is JSON; what else there is to see of a request is put beside it.
TOLD = """
    def one(self, request):
        seen = {
            "parameters": json.loads(request.parameters()),
            "id": request.request_id(),
            "correlation": request.correlation_id(),
            "flags": request.flags(),
            "timeout": request.timeout(),
        }
        text = json.dumps(seen, sort_keys=True).encode()
        return answer(SEEN=np.array([text], np.object_))
"""

FAILING = """
    def one(self, request):
        kind = tensor(request, "KIND").as_numpy()[0].decode()
        if kind == "raise":
            raise ValueError("it was asked to fail")
        if kind == "nothing":
            return pb.InferenceResponse([])
        code = getattr(pb.TritonError, kind)
        return pb.InferenceResponse(error=pb.TritonError("it was asked to fail", code))
"""

DECOUPLED = """
class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            count = int(tensor(request, "COUNT").as_numpy()[0])
            for number in range(abs(count)):
                sender.send(answer(NUMBER=np.array([number], np.int32)))
            if count < 0:
                error = pb.TritonError("it was asked to fail", pb.TritonError.INVALID_ARG)
                sender.send(pb.InferenceResponse(error=error))
            sender.send(flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""

SEQUENCE = """
    def initialize(self, args):
        self.sums = {}

    def one(self, request):
        value, start, end, id_ = (
            tensor(request, name).as_numpy().ravel()[0] for name in ("INPUT", "START", "END", "ID")
        )
        total = value + (0 if start else self.sums.get(id_, 0))
        self.sums[id_] = total
        if end:
            del self.sums[id_]
        return answer(SUM=np.array([[total]], np.int32))
"""


def _sequence(name: str) -> str:
    controls = "".join(
        f'control_input {{ name: "{control}" control {{ kind: {kind} {values} }} }} '
        for control, kind, values in (
            ("START", "CONTROL_SEQUENCE_START", "int32_false_true: [0, 1]"),
            ("END", "CONTROL_SEQUENCE_END", "int32_false_true: [0, 1]"),
            ("ID", "CONTROL_SEQUENCE_CORRID", "data_type: TYPE_UINT64"),
        )
    )
    more = f"sequence_batching {{ max_sequence_idle_microseconds: 60000000 {controls} }}"
    return _config(name, [_tensor("INPUT", "INT32", "1")], [_tensor("SUM", "INT32", "1")], 4, more)


def _described(kind: str, name: str) -> tuple[str, str]:
    """Config and code of a copy of `kind`."""
    if kind == "echo":
        inputs = [_tensor(f"IN_{one}", one, "-1", "optional: true") for one in TYPES]
        outputs = [_tensor(f"OUT_{one}", one, "-1") for one in TYPES]
        return _config(name, inputs, outputs), CODE + ECHO
    if kind == "pair":
        inputs = [_tensor("A", "FP32", "2"), _tensor("B", "FP32", "2, -1")]
        outputs = [_tensor("SUM", "FP32", "2"), _tensor("PRODUCT", "FP32", "2")]
        return _config(name, inputs, outputs), CODE + PAIR
    if kind == "batched":
        outputs = [_tensor("SCORES", "FP32", "3", 'label_filename: "labels.txt"')]
        more = (
            "dynamic_batching { priority_levels: 2 default_priority_level: 1 "
            "default_queue_policy { timeout_action: REJECT allow_timeout_override: true } }"
        )
        inputs = [_tensor("INPUT", "FP32", "3")]
        return _config(name, inputs, outputs, 4, more), CODE + BATCHED
    if kind == "told":
        inputs = [_tensor("ANY", "INT32", "1")]
        return _config(name, inputs, [_tensor("SEEN", "BYTES", "1")]), CODE + TOLD
    if kind == "failing":
        inputs = [_tensor("KIND", "BYTES", "1")]
        return _config(name, inputs, [_tensor("OUT", "INT32", "1")]), CODE + FAILING
    if kind == "decoupled":
        more = "model_transaction_policy { decoupled: true }"
        inputs, outputs = [_tensor("COUNT", "INT32", "1")], [_tensor("NUMBER", "INT32", "1")]
        return _config(name, inputs, outputs, 0, more), CODE.partition("class")[0] + DECOUPLED
    if kind == "sequence":
        return _sequence(name), CODE + SEQUENCE
    assert kind == BROKEN
    return (
        _config(name, [_tensor("A", "FP32", "1")], [_tensor("B", "FP32", "1")]),
        "raise ValueError('weights are missing')",
    )


CHAIN = """
name: "chain"
platform: "ensemble"
max_batch_size: 8
input [{ name: "INPUT" data_type: TYPE_FP32 dims: [-1] }]
output [{ name: "OUTPUT" data_type: TYPE_FP32 dims: [-1] }]
ensemble_scheduling { step [
  { model_name: "multiplier" model_version: 1
    input_map { key: "INPUT" value: "INPUT" } output_map { key: "OUTPUT" value: "once" } },
  { model_name: "multiplier" model_version: 2
    input_map { key: "INPUT" value: "once" } output_map { key: "OUTPUT" value: "OUTPUT" } }
] }
"""


def copies(kind: str) -> list[str]:
    count = COPIES.get(kind, 1)
    return [kind] if count == 1 else [f"{kind}-{number}" for number in range(count)]


def write(repository: Path) -> None:
    for kind in (*COPIES, BROKEN):
        if kind in ("multiplier", "text_stats"):
            clean = shutil.ignore_patterns("__pycache__")
            shutil.copytree(EXAMPLES / kind, repository / kind, ignore=clean)
            continue
        for name in copies(kind):
            folder = repository / name
            (folder / "1").mkdir(parents=True)
            if kind == "chain":
                (folder / "config.pbtxt").write_text(CHAIN)
                continue
            config, code = _described(kind, name)
            (folder / "config.pbtxt").write_text(config)
            (folder / "1" / "model.py").write_text(code)
            if kind == "batched":
                (folder / "labels.txt").write_text("cat\ndog\nfish\n")
