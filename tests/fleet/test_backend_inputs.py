"""Inputs that requests do not carry: sequence controls, implicit state and batch inputs, on a real
Triton with our Python-based backends."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from onnx import TensorProto, helper

from tests.support.direct_calls import at_once, tensors
from tests.support.onnx_models import onnx_model, tensor_info, write_config
from tests.support.triton_direct import DirectTriton, triton_direct, triton_python

pytestmark = pytest.mark.triton

INT32, FLOAT = TensorProto.INT32, TensorProto.FLOAT


def control(name: str, kind: str, values: str = "int32_false_true: [0, 1]") -> str:
    return (
        f'control_input {{ name: "{name}" control {{ kind: CONTROL_SEQUENCE_{kind} {values} }} }}'
    )


START = control("START", "START")
END = control("END", "END")
READY = control("READY", "READY")
CORRID = control("CORRID", "CORRID", "data_type: TYPE_UINT64")
PLAIN = """max_batch_size: 8
input [{ name: "INPUT" data_type: TYPE_INT32 dims: [1] }]
output [{ name: "OUTPUT" data_type: TYPE_INT32 dims: [1] }]
"""


def simple_sequence(folder: Path) -> None:
    """The model that Triton's test suite makes for ONNX: a start is told by adding one."""
    onnx_model(
        folder,
        helper.make_node("Add", ["INPUT", "START"], ["SUM"]),
        helper.make_node("Mul", ["SUM", "READY"], ["OUTPUT"]),
        inputs=[tensor_info(name, INT32, ["n", 1]) for name in ("INPUT", "START", "READY")],
        outputs=[tensor_info("OUTPUT", INT32, ["n", 1])],
    )
    write_config(folder, f"{PLAIN} sequence_batching {{ {START} {READY} }}")


def simple_dyna_sequence(folder: Path) -> None:
    """Adds up a sequence, and adds its id to the last sum, as the example of Triton does."""
    onnx_model(
        folder,
        helper.make_node("Sub", ["ONE", "START"], ["GOES_ON"]),
        helper.make_node("Mul", ["SUM_BEFORE", "GOES_ON"], ["KEPT"]),
        helper.make_node("Add", ["INPUT", "KEPT"], ["SUM"]),
        helper.make_node("Cast", ["CORRID"], ["ID"], to=INT32),
        helper.make_node("Mul", ["ID", "END"], ["LAST"]),
        helper.make_node("Add", ["SUM", "LAST"], ["ADDED"]),
        helper.make_node("Mul", ["ADDED", "READY"], ["OUTPUT"]),
        inputs=[
            *(tensor_info(name, INT32, ["n", 1]) for name in ("INPUT", "START", "END", "READY")),
            tensor_info("SUM_BEFORE", INT32, ["n", 1]),
            tensor_info("CORRID", TensorProto.UINT64, ["n", 1]),
        ],
        outputs=[tensor_info("OUTPUT", INT32, ["n", 1]), tensor_info("SUM", INT32, ["n", 1])],
        initializers={"ONE": np.array([1], np.int32)},
    )
    (folder / "config.pbtxt").write_text(f"""{PLAIN} platform: "onnxruntime_onnx"
        sequence_batching {{
          max_sequence_idle_microseconds: 10000000
          oldest {{ max_candidate_sequences: 1024 max_queue_delay_microseconds: 10000 }}
          {START} {END} {READY} {CORRID}
          state {{ input_name: "SUM_BEFORE" output_name: "SUM" data_type: TYPE_INT32 dims: [1] }}
        }}
        instance_group [{{ count: 2 kind: KIND_CPU }}]""")


def running_total(folder: Path) -> None:
    """Begins with the value of a file, and shows its state as an output, too."""
    onnx_model(
        folder,
        helper.make_node("Add", ["INPUT", "BEFORE"], ["TOTAL"]),
        helper.make_node("Identity", ["BEFORE"], ["OUTPUT"]),
        inputs=[tensor_info("INPUT", FLOAT, [1]), tensor_info("BEFORE", FLOAT, [1])],
        outputs=[tensor_info("OUTPUT", FLOAT, [1]), tensor_info("TOTAL", FLOAT, [1])],
    )
    tensor = "data_type: TYPE_FP32 dims: [1]"
    write_config(
        folder,
        f"""input [{{ name: "INPUT" {tensor} }}]
        output [{{ name: "OUTPUT" {tensor} }}, {{ name: "TOTAL" {tensor} }}]
        sequence_batching {{ state {{
          input_name: "BEFORE" output_name: "TOTAL" {tensor}
          initial_state {{ name: "ten" {tensor} data_file: "ten" }}
        }} }}""",
    )
    (folder / "initial_state").mkdir()
    np.array([10], np.float32).tofile(folder / "initial_state" / "ten")


RAGGED = """max_batch_size: 8
input [{ name: "INPUT" data_type: TYPE_FP32 dims: [-1] allow_ragged_batch: true }]
dynamic_batching { max_queue_delay_microseconds: 5000000 preferred_batch_size: [3] }
"""


def ragged(folder: Path) -> None:
    """Adds up everything as far as the end of each request, where the batch input says it is."""
    onnx_model(
        folder,
        helper.make_node("CumSum", ["INPUT", "AXIS"], ["SUMS"]),
        helper.make_node("Cast", ["INDEX"], ["ENDS"], to=TensorProto.INT64),
        helper.make_node("Sub", ["ENDS", "ONE"], ["LAST"]),
        helper.make_node("Gather", ["SUMS", "LAST"], ["ROW"]),
        helper.make_node("Unsqueeze", ["ROW", "ONE"], ["OUTPUT"]),
        inputs=[tensor_info("INPUT", FLOAT, ["elements"]), tensor_info("INDEX", FLOAT, ["n"])],
        outputs=[tensor_info("OUTPUT", FLOAT, ["n", 1])],
        initializers={"AXIS": np.array(0), "ONE": np.array([1])},
    )
    write_config(
        folder,
        RAGGED
        + """output [{ name: "OUTPUT" data_type: TYPE_FP32 dims: [1] }]
        batch_input [{ kind: BATCH_ACCUMULATED_ELEMENT_COUNT target_name: "INDEX"
                       data_type: TYPE_FP32 source_input: "INPUT" }]""",
    )


def scattered(folder: Path) -> None:
    """Gives each request's numbers back, negated, in the shape of its input."""
    onnx_model(
        folder,
        helper.make_node("Neg", ["INPUT"], ["OUTPUT"]),
        inputs=[tensor_info("INPUT", FLOAT, ["elements"])],
        outputs=[tensor_info("OUTPUT", FLOAT, ["elements"])],
    )
    write_config(
        folder,
        RAGGED
        + """output [{ name: "OUTPUT" data_type: TYPE_FP32 dims: [-1] }]
        batch_output [{ kind: BATCH_SCATTER_WITH_INPUT_SHAPE target_name: "OUTPUT"
                        source_input: "INPUT" }]""",
    )


# What the model has not: the config, and the reason of the failure.
REFUSED = {
    "no_such_control": (
        f"sequence_batching {{ {control('BEGIN', 'START')} }}",
        "unexpected sequence control 'BEGIN', the model has INPUT",
    ),
    "no_such_state": (
        'sequence_batching { state { input_name: "INPUT" output_name: "NEXT" '
        "data_type: TYPE_INT32 dims: [1] } }",
        "unexpected state output 'NEXT', the model has OUTPUT",
    ),
}
MODELS = (simple_sequence, simple_dyna_sequence, running_total, ragged, scattered)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for write in MODELS:
        write(folder / write.__name__)
    for name, (config, _) in REFUSED.items():
        onnx_model(
            folder / name,
            helper.make_node("Identity", ["INPUT"], ["OUTPUT"]),
            inputs=[tensor_info("INPUT", INT32, ["n", 1])],
            outputs=[tensor_info("OUTPUT", INT32, ["n", 1])],
        )
        write_config(folder / name, PLAIN + config)
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Iterator[DirectTriton]:
    with triton_direct(tmp_path_factory.mktemp("server"), repository) as running:
        yield running


class Sequence:
    """A sequence of requests to a model with one number as its input."""

    def __init__(self, server: DirectTriton, model: str, sequence: int, shape: list[int]) -> None:
        self.server, self.model, self.sequence, self.shape = server, model, sequence, shape
        self.type = np.float32 if model == "running_total" else np.int32

    def ask(self, number: int, *, start: bool = False, end: bool = False) -> triton.InferResult:
        return self.server.client.infer(
            self.model,
            tensors({"INPUT": np.full(self.shape, number, self.type)}),
            sequence_id=self.sequence,
            sequence_start=start,
            sequence_end=end,
            client_timeout=30,
        )

    def output(self, number: int, *, start: bool = False, end: bool = False) -> int:
        return int(self.ask(number, start=start, end=end).as_numpy("OUTPUT").item())


def test_controls_tell_a_model_where_a_sequence_begins(server: DirectTriton) -> None:
    server.load("simple_sequence")
    # The second one has the second slot, so the first slot of its batches is not ready.
    one, two = (Sequence(server, "simple_sequence", number, [1, 1]) for number in (7, 8))
    assert one.output(5, start=True) == 6
    assert two.output(20, start=True) == 21
    assert two.output(30) == 30
    assert one.output(7) == 7
    assert [one.output(9, end=True), two.output(1, end=True)] == [9, 1]


def test_a_state_goes_from_request_to_request(server: DirectTriton) -> None:
    server.load("simple_dyna_sequence")
    sequences = [Sequence(server, "simple_dyna_sequence", 1000 + at, [1, 1]) for at in range(4)]
    first = [one.output(at, start=True) for at, one in enumerate(sequences)]
    then = [one.output(10) for one in sequences]
    last = [one.output(100, end=True) for one in sequences]
    assert first == [0, 1, 2, 3]
    assert then == [10, 11, 12, 13]
    assert last == [1110, 1112, 1114, 1116]
    assert sequences[0].output(3, start=True) == 3
    assert sequences[0].output(4, start=True) == 4, "a new start forgets the old state"
    assert sequences[0].output(0, end=True) == 1004


def test_a_state_begins_with_its_initial_value(server: DirectTriton) -> None:
    server.load("running_total")
    one = Sequence(server, "running_total", 3, [1])
    answers = [one.ask(2, start=True), one.ask(5), one.ask(1, end=True)]
    assert [answer.as_numpy("OUTPUT").item() for answer in answers] == [10, 12, 17]
    assert [answer.as_numpy("TOTAL").item() for answer in answers] == [12, 17, 18]


def numbers(*sizes: int) -> list[dict[str, np.ndarray]]:
    return [{"INPUT": np.full((1, size), size, np.float32)} for size in sizes]


def test_ragged_requests_run_together(server: DirectTriton) -> None:
    server.load("ragged")
    sums = [
        result.as_numpy("OUTPUT")
        for result in at_once(server, "ragged", numbers(3, 4, 5))
        if isinstance(result, triton.InferResult)
    ]
    assert [array.shape for array in sums] == [(1, 1)] * 3
    assert max(array.item() for array in sums) == 9 + 16 + 25, "the last one of the batch has all"


def test_an_output_is_divided_as_the_input_was(server: DirectTriton) -> None:
    server.load("scattered")
    for asked, result in zip(
        numbers(3, 1, 5), at_once(server, "scattered", numbers(3, 1, 5)), strict=True
    ):
        assert isinstance(result, triton.InferResult)
        np.testing.assert_array_equal(result.as_numpy("OUTPUT"), -asked["INPUT"])


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_given_fails_the_load(server: DirectTriton, name: str) -> None:
    with pytest.raises(triton.InferenceServerException, match=REFUSED[name][1]):
        server.load(name)


# The pytorch backend


TORCH_MODELS = """
import pathlib, sys, torch
from typing import Tuple

class Totals(torch.nn.Module):
    def forward(self, given, start, before) -> Tuple[torch.Tensor, torch.Tensor]:
        total = given + before
        return total + 100 * start, total

for name in ("totals", "misnamed"):
    folder = pathlib.Path(sys.argv[1], "torch_" + name, "1")
    folder.mkdir(parents=True)
    torch.jit.save(torch.jit.script(Totals()), folder / "model.pt")
"""
TORCH_STATE = """state { input_name: "BEFORE__2" output_name: "TOTAL__1" data_type: TYPE_INT32
    dims: [1] initial_state { name: "none" data_type: TYPE_INT32 dims: [1] zero_data: true } }"""


def test_torch_has_controls_and_a_state_by_their_numbers(
    tmp_path: Path, server: DirectTriton, repository: Path
) -> None:
    find = "import importlib.util as u; raise SystemExit(u.find_spec('torch') is None)"
    if subprocess.run([triton_python(), "-c", find], check=False).returncode:
        pytest.skip("setup.sh --with-torch installs torch")
    script = tmp_path / "models.py"
    script.write_text(TORCH_MODELS)
    subprocess.run([triton_python(), script, repository], check=True)
    named = PLAIN.replace('PUT"', 'PUT__0"')
    for name, start in (("totals", "START__1"), ("misnamed", "START")):
        config = f"{named} sequence_batching {{ {control(start, 'START')} {TORCH_STATE} }}"
        write_config(repository / f"torch_{name}", config, platform="pytorch_libtorch")
    server.load("torch_totals")
    totals = [
        server.client.infer(
            "torch_totals",
            tensors({"INPUT__0": np.array([[number]], np.int32)}),
            sequence_id=5,
            sequence_start=number == 1,
            sequence_end=number == 3,
        )
        .as_numpy("OUTPUT__0")
        .item()
        for number in (1, 2, 3)
    ]
    assert totals == [101, 3, 6]
    with pytest.raises(triton.InferenceServerException, match="'START' does not follow <name>__"):
        server.load("torch_misnamed")
