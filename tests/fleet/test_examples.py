"""The example models and our Python-based backends, on a real Triton without Shoal."""

import json
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton
from google.protobuf import text_format
from onnx import TensorProto, helper
from tritonclient.grpc import model_config_pb2 as config_pb

from model_repository.build import build
from model_repository.examples import (
    EXAMPLES,
    LABELS,
    PYTHON_SOURCE,
    byte_strings,
    example,
)
from services.embedded.backends import assemble
from tests.support.direct_calls import at_once, infer
from tests.support.onnx_models import onnx_model, tensor_info, write_config
from tests.support.triton_direct import BACKENDS, ROOT, DirectTriton, triton_direct, triton_python
from tests.support.waiting import wait_until

pytestmark = pytest.mark.triton

SOURCE = ROOT / "model_repository"
SELFCHECK = ROOT / "deploy" / "triton" / "selfcheck"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy that the models may write their caches to, with its model files freshly built."""
    copy = tmp_path_factory.mktemp("examples") / "repository"
    generated = shutil.ignore_patterns("__pycache__", "model.onnx")
    shutil.copytree(SOURCE, copy, ignore=generated)
    assert len(build(copy)) == 10
    assert build(copy) == []
    return copy


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository for models that tests make, all before the server reads them."""
    return tmp_path_factory.mktemp("made")


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, repository: Path, made: Path
) -> Iterator[DirectTriton]:
    selfcheck = tmp_path_factory.mktemp("selfcheck")
    shutil.copytree(SELFCHECK, selfcheck, dirs_exist_ok=True)
    with triton_direct(tmp_path_factory.mktemp("server"), repository, made, selfcheck) as running:
        yield running


def parsed(path: Path) -> config_pb.ModelConfig:
    return text_format.Parse(path.read_text(), config_pb.ModelConfig())


# The example models


@pytest.mark.parametrize(("model", "version"), EXAMPLES)
def test_example_answers_as_recorded(server: DirectTriton, model: str, version: int) -> None:
    server.load(model)
    known = example(model, version)
    assert known.mismatches(infer(server, model, dict(known.inputs), version)) == []
    # Not waited for: it takes a second, and no test depends on it.
    server.client.unload_model(model, headers=server.admin)


def test_every_version_folder_has_an_example() -> None:
    folders = SOURCE.glob("*/[1-9]*")
    assert {(folder.parent.name, int(folder.name)) for folder in folders} == set(EXAMPLES)


@pytest.mark.parametrize("path", sorted(SOURCE.glob("*/config.pbtxt")), ids=lambda p: p.parent.name)
def test_config_is_named_and_has_one_cpu_instance(path: Path) -> None:
    config = parsed(path)
    assert config.name == path.parent.name
    if config.platform != "ensemble":
        [group] = config.instance_group
        assert (group.count, group.kind) == (1, config_pb.ModelInstanceGroup.KIND_CPU)


def test_densenet_names_its_classes(server: DirectTriton) -> None:
    server.load("densenet_onnx")
    best = infer(
        server,
        "densenet_onnx",
        dict(example("densenet_onnx").inputs),
        outputs=[triton.InferRequestedOutput("fc6_1", class_count=3)],
    )["fc6_1"]
    score, index, label = best[0].decode().split(":")
    names = (SOURCE / "densenet_onnx" / "densenet_labels.txt").read_text().splitlines()
    assert float(score) == pytest.approx(0.460955, rel=1e-3)
    assert label == names[int(index)]
    assert len(best) == 3


def test_labels_are_those_of_the_magika_package(repository: Path) -> None:
    import magika

    config = Path(magika.__file__).parent / "models" / "standard_v3_3" / "config.min.json"
    labels = json.loads(config.read_text())["target_labels_space"]
    assert LABELS.read_text().split() == labels
    assert (SOURCE / "file_label" / "1" / "labels.txt").read_text().split() == labels


def test_file_type_agrees_with_the_magika_package(server: DirectTriton) -> None:
    import magika

    contents = [
        PYTHON_SOURCE,
        b'{"a": 1, "b": [1, 2, 3], "name": "x"}',
        b"SELECT name, count(*) FROM users WHERE age > 3 GROUP BY name ORDER BY 2 DESC;",
        Path(__file__).read_bytes(),
        (SOURCE / "README.md").read_bytes() * 3,
        triton_python().resolve().read_bytes(),
    ]
    server.load("file_type")
    answers = infer(server, "file_type", {"CONTENT": byte_strings(*contents).reshape(-1, 1)})
    theirs = [magika.Magika().identify_bytes(content) for content in contents]
    assert [label.decode() for label in answers["LABEL"][:, 0]] == [t.dl.label for t in theirs]
    assert answers["SCORE"][:, 0] == pytest.approx([t.score for t in theirs], rel=1e-3)


def test_selfcheck_answers_what_it_was_sent(server: DirectTriton) -> None:
    server.load("shoal-selfcheck")
    numbers = np.array([0.0, -1.5, 3e38, np.inf], dtype=np.float32)
    answer = infer(server, "shoal-selfcheck", {"INPUT": numbers})["OUTPUT"]
    np.testing.assert_array_equal(answer, numbers)


# The onnxruntime backend


def test_a_wrong_shape_fails_alone_in_a_batch(server: DirectTriton, made: Path) -> None:
    """The config lets any width through, the model takes four: one batch, two outcomes."""
    onnx_model(
        made / "weigh",
        helper.make_node("MatMul", ["X", "weights"], ["Y"]),
        inputs=[tensor_info("X", TensorProto.FLOAT, ["batch", 4])],
        outputs=[tensor_info("Y", TensorProto.FLOAT, ["batch", 2])],
        initializers={"weights": np.arange(8, dtype=np.float32).reshape(4, 2)},
    )
    write_config(
        made / "weigh",
        """max_batch_size: 8
        input [{ name: "X" data_type: TYPE_FP32 dims: [-1] }]
        output [{ name: "Y" data_type: TYPE_FP32 dims: [2] }]
        dynamic_batching { max_queue_delay_microseconds: 200000 preferred_batch_size: [7] }""",
    )
    server.load("weigh")
    good = [np.full((size, 4), size, dtype=np.float32) for size in (1, 2, 3)]
    bad = np.ones((1, 5), dtype=np.float32)
    results = at_once(server, "weigh", [{"X": array} for array in (*good, bad)])
    for array, result in zip(good, results, strict=False):
        assert isinstance(result, triton.InferResult)
        weights = np.arange(8, dtype=np.float32).reshape(4, 2)
        np.testing.assert_allclose(result.as_numpy("Y"), array @ weights)
    refusal = results[-1]
    assert isinstance(refusal, triton.InferenceServerException)
    assert refusal.status() == "StatusCode.INVALID_ARGUMENT"
    assert "Got: 5 Expected: 4" in refusal.message()


def test_requests_that_came_together_run_together(server: DirectTriton, made: Path) -> None:
    onnx_model(
        made / "negate",
        helper.make_node("Neg", ["X"], ["Y"]),
        helper.make_node("ReduceMin", ["Y"], ["LEAST"], axes=[1], keepdims=0),
        inputs=[tensor_info("X", TensorProto.FLOAT, ["batch", 2])],
        outputs=[
            tensor_info("Y", TensorProto.FLOAT, ["batch", 2]),
            tensor_info("LEAST", TensorProto.FLOAT, ["batch"]),
        ],
    )
    write_config(
        made / "negate",
        """max_batch_size: 6
        input [{ name: "X" data_type: TYPE_FP32 dims: [2] }]
        output [
          { name: "Y" data_type: TYPE_FP32 dims: [2] },
          { name: "LEAST" data_type: TYPE_FP32 dims: [1] reshape { shape: [] } }
        ]
        dynamic_batching { max_queue_delay_microseconds: 5000000 preferred_batch_size: [6] }""",
    )
    server.load("negate")
    arrays = [np.full((size, 2), size, dtype=np.float32) for size in (1, 2, 3)]
    results = at_once(server, "negate", [{"X": array} for array in arrays])
    for array, result in zip(arrays, results, strict=True):
        assert isinstance(result, triton.InferResult)
        np.testing.assert_array_equal(result.as_numpy("Y"), -array)
        np.testing.assert_array_equal(result.as_numpy("LEAST"), -array[:, :1])

    def counts() -> tuple[int, int]:
        (row,) = server.client.get_inference_statistics("negate", headers=server.admin).model_stats
        return row.inference_count, row.execution_count

    # Triton counts a moment after it has answered.
    wait_until(lambda: counts()[0] == 6, 5.0, "all are counted")
    assert counts() == (6, 1)


def test_strings_pass_and_must_be_utf8(server: DirectTriton, made: Path) -> None:
    onnx_model(
        made / "echo_text",
        helper.make_node("Identity", ["X"], ["Y"]),
        inputs=[tensor_info("X", TensorProto.STRING, ["n", 1])],
        outputs=[tensor_info("Y", TensorProto.STRING, ["n", 1])],
    )
    write_config(
        made / "echo_text",
        """input [{ name: "X" data_type: TYPE_STRING dims: [-1] reshape { shape: [-1, 1] } }]
        output [{ name: "Y" data_type: TYPE_STRING dims: [-1] reshape { shape: [-1, 1] } }]""",
    )
    server.load("echo_text")
    texts = byte_strings(b"shoal", "été".encode(), b"", b"nul\0inside")
    np.testing.assert_array_equal(infer(server, "echo_text", {"X": texts})["Y"], texts)
    with pytest.raises(triton.InferenceServerException, match="isn't UTF-8") as caught:
        infer(server, "echo_text", {"X": byte_strings(b"\xff\xfe")})
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_file_name_threads_optional_input_and_requested_output(
    server: DirectTriton, made: Path
) -> None:
    """What a config can say beyond the plain case, in one model of two nodes."""
    onnx_model(
        made / "affine",
        helper.make_node("Add", ["X", "OFFSET"], ["SUM"]),
        helper.make_node("ReduceMax", ["SUM"], ["TOP"]),
        inputs=[
            tensor_info("X", TensorProto.DOUBLE, ["n"]),
            tensor_info("OFFSET", TensorProto.DOUBLE, [1]),
        ],
        outputs=[
            tensor_info("SUM", TensorProto.DOUBLE, ["n"]),
            tensor_info("TOP", TensorProto.DOUBLE, [1]),
        ],
        initializers={"OFFSET": np.array([10.0])},
        file="affine.bin",
    )
    write_config(
        made / "affine",
        """default_model_filename: "affine.bin"
        input [
          { name: "X" data_type: TYPE_FP64 dims: [-1] },
          { name: "OFFSET" data_type: TYPE_FP64 dims: [1] optional: true }
        ]
        output [
          { name: "SUM" data_type: TYPE_FP64 dims: [-1] },
          { name: "TOP" data_type: TYPE_FP64 dims: [1] }
        ]
        optimization { graph { level: 1 } }
        parameters { key: "intra_op_thread_count" value: { string_value: "2" } }
        parameters { key: "enable_mem_arena" value: { string_value: "0" } }""",
    )
    server.load("affine")
    numbers = np.array([1.0, 5.0, 2.0])
    answer = infer(server, "affine", {"X": numbers})
    np.testing.assert_array_equal(answer["SUM"], numbers + 10)
    np.testing.assert_array_equal(answer["TOP"], [15.0])
    top = infer(
        server,
        "affine",
        {"X": numbers, "OFFSET": np.array([1.0])},
        outputs=[triton.InferRequestedOutput("TOP")],
    )
    assert {name: list(array) for name, array in top.items()} == {"TOP": [6.0]}


def test_a_failing_node_is_the_models_fault(server: DirectTriton, made: Path) -> None:
    onnx_model(
        made / "pick",
        helper.make_node("Gather", ["TABLE", "AT"], ["Y"]),
        inputs=[tensor_info("AT", TensorProto.INT64, ["n"])],
        outputs=[tensor_info("Y", TensorProto.FLOAT, ["n"])],
        initializers={"TABLE": np.arange(3, dtype=np.float32)},
    )
    write_config(
        made / "pick",
        """input [{ name: "AT" data_type: TYPE_INT64 dims: [-1] }]
        output [{ name: "Y" data_type: TYPE_FP32 dims: [-1] }]""",
    )
    server.load("pick")
    with pytest.raises(triton.InferenceServerException, match="out of data bounds"):
        infer(server, "pick", {"AT": np.array([7])})
    assert list(infer(server, "pick", {"AT": np.array([2])})["Y"]) == [2.0]


PLAIN = """input [{ name: "X" data_type: TYPE_FP32 dims: [2] }]
output [{ name: "Y" data_type: TYPE_FP32 dims: [2] }]"""


@pytest.mark.parametrize(
    ("name", "change", "complaint"),
    [
        ("ort_input", ('"X"', '"Z"'), "configuration lacks inputs of the model: X"),
        ("ort_output", ('"Y"', '"Z"'), "unexpected output 'Z', the model has Y"),
        ("ort_type", ("TYPE_FP32", "TYPE_FP16"), "expects TYPE_FP16 for input 'X'"),
        ("ort_shape", ("dims: [2]", "dims: [3]"), r"expects shape \[3\] for input 'X'"),
        ("ort_batch", ("input", "max_batch_size: 2 input"), r"expects shape \[-1, 2\]"),
    ],
)
def test_a_config_unlike_the_model_fails_the_load(
    server: DirectTriton, made: Path, name: str, change: tuple[str, str], complaint: str
) -> None:
    onnx_model(
        made / name,
        helper.make_node("Neg", ["X"], ["Y"]),
        inputs=[tensor_info("X", TensorProto.FLOAT, [2])],
        outputs=[tensor_info("Y", TensorProto.FLOAT, [2])],
    )
    write_config(made / name, PLAIN.replace(*change, 1))
    with pytest.raises(triton.InferenceServerException, match=complaint) as caught:
        server.load(name)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("ort_absent", None, "File doesn't exist"),
        ("ort_broken", b"this is no model", "Protobuf parsing failed"),
    ],
)
def test_a_file_that_is_no_model_fails_the_load(
    server: DirectTriton, made: Path, name: str, content: bytes | None, complaint: str
) -> None:
    (made / name / "1").mkdir(parents=True)
    if content is not None:
        (made / name / "1" / "model.onnx").write_bytes(content)
    write_config(made / name, PLAIN)
    with pytest.raises(triton.InferenceServerException, match=complaint):
        server.load(name)


# The pytorch backend


TORCH_MODELS = """
import pathlib, sys, torch
from typing import Dict, List, Tuple

class Two(torch.nn.Module):
    def forward(self, left, right) -> Tuple[torch.Tensor, torch.Tensor]:
        return left - right, left * right

class Widths(torch.nn.Module):
    def forward(self, texts: List[str]) -> torch.Tensor:
        return torch.tensor([len(text) for text in texts])

class Named(torch.nn.Module):
    def forward(self, named: Dict[str, torch.Tensor]) -> torch.Tensor:
        return named["A"] + 2 * named["B"]

class Linear(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weights = torch.nn.Parameter(torch.arange(8.0).reshape(4, 2))

    def forward(self, x):
        return x @ self.weights

for name, module in (("two", Two()), ("two_names", Two()), ("widths", Widths()), ("named", Named()),
                     ("linear", Linear()), ("wrong_type", Linear()), ("one_of_two", Two())):
    folder = pathlib.Path(sys.argv[1], "torch_" + name, "1")
    folder.mkdir(parents=True)
    torch.jit.save(torch.jit.script(module), folder / "model.pt")
"""
TORCH_CONFIGS = {
    # Against their order in the config: the numbers in the names count.
    "two": """input [{ name: "INPUT__1" data_type: TYPE_FP32 dims: [-1] },
                     { name: "INPUT__0" data_type: TYPE_FP32 dims: [-1] }]
        output [{ name: "OUTPUT__1" data_type: TYPE_FP32 dims: [-1] },
                { name: "OUTPUT__0" data_type: TYPE_FP32 dims: [-1] }]""",
    "two_names": """input [{ name: "right" data_type: TYPE_FP32 dims: [-1] },
                           { name: "left" data_type: TYPE_FP32 dims: [-1] }]
        output [{ name: "difference" data_type: TYPE_FP32 dims: [-1] },
                { name: "product" data_type: TYPE_FP32 dims: [-1] }]""",
    "widths": """input [{ name: "texts" data_type: TYPE_STRING dims: [-1] }]
        output [{ name: "OUTPUT__0" data_type: TYPE_INT64 dims: [-1] }]""",
    "named": """input [{ name: "A" data_type: TYPE_FP32 dims: [-1] },
                       { name: "B" data_type: TYPE_FP32 dims: [-1] }]
        output [{ name: "OUTPUT__0" data_type: TYPE_FP32 dims: [-1] }]""",
    "linear": """max_batch_size: 8
        input [{ name: "INPUT__0" data_type: TYPE_FP32 dims: [-1] }]
        output [{ name: "OUTPUT__0" data_type: TYPE_FP32 dims: [2] }]
        dynamic_batching { max_queue_delay_microseconds: 200000 preferred_batch_size: [4] }
        parameters { key: "INFERENCE_MODE" value: { string_value: "true" } }""",
    "wrong_type": """input [{ name: "x" data_type: TYPE_FP32 dims: [-1, 4] }]
        output [{ name: "OUTPUT__0" data_type: TYPE_INT32 dims: [-1, 2] }]""",
    "one_of_two": """input [{ name: "INPUT__0" data_type: TYPE_FP32 dims: [-1] }]
        output [{ name: "OUTPUT__0" data_type: TYPE_FP32 dims: [-1] }]""",
}


@pytest.fixture(scope="module")
def has_torch() -> bool:
    find = "import importlib.util as u; raise SystemExit(u.find_spec('torch') is None)"
    return subprocess.run([triton_python(), "-c", find], check=False).returncode == 0


@pytest.fixture(scope="module")
def torch_models(
    tmp_path_factory: pytest.TempPathFactory, has_torch: bool, made: Path, server: DirectTriton
) -> Callable[[str], str]:
    """Makes the models once; the result loads one and returns its full name."""
    if not has_torch:
        pytest.skip("`shoal setup-triton --with-torch` installs torch")
    script = tmp_path_factory.mktemp("torch") / "models.py"
    script.write_text(TORCH_MODELS)  # a file, for TorchScript reads its classes' source
    subprocess.run([triton_python(), script, made], check=True)
    for name, config in TORCH_CONFIGS.items():
        write_config(made / f"torch_{name}", config, platform="pytorch_libtorch")

    def load(name: str) -> str:
        server.load(f"torch_{name}")
        return f"torch_{name}"

    return load


def test_without_torch_the_load_says_what_to_do(
    has_torch: bool, server: DirectTriton, made: Path
) -> None:
    if has_torch:
        pytest.skip("torch is installed")
    (made / "torch_none" / "1").mkdir(parents=True)
    write_config(made / "torch_none", PLAIN, platform="pytorch_libtorch")
    with pytest.raises(triton.InferenceServerException, match="shoal setup-triton --with-torch"):
        server.load("torch_none")


def test_torch_names_say_which_argument(
    server: DirectTriton, torch_models: Callable[[str], str]
) -> None:
    left, right = np.array([7, 8], dtype=np.float32), np.array([1, 2], dtype=np.float32)
    answer = infer(server, torch_models("two"), {"INPUT__0": left, "INPUT__1": right})
    assert list(answer["OUTPUT__0"]) == [6, 6]
    assert list(answer["OUTPUT__1"]) == [7, 16]
    answer = infer(server, torch_models("two_names"), {"left": left, "right": right})
    assert list(answer["difference"]) == [6, 6]
    assert list(answer["product"]) == [7, 16]


def test_torch_takes_strings_and_a_dictionary(
    server: DirectTriton, torch_models: Callable[[str], str]
) -> None:
    texts = byte_strings(b"shoal", "été".encode(), b"")
    answer = infer(server, torch_models("widths"), {"texts": texts})
    assert list(answer["OUTPUT__0"]) == [5, 5, 0]  # UTF-8 bytes
    ones = np.ones(2, dtype=np.float32)
    assert list(infer(server, torch_models("named"), {"A": ones, "B": ones})["OUTPUT__0"]) == [3, 3]


def test_a_wrong_shape_fails_alone_in_a_torch_batch(
    server: DirectTriton, torch_models: Callable[[str], str]
) -> None:
    good, bad = np.ones((1, 4), dtype=np.float32), np.ones((1, 5), dtype=np.float32)
    model = torch_models("linear")
    *answers, refusal = at_once(server, model, [{"INPUT__0": array} for array in (good, good, bad)])
    for answer in answers:
        assert isinstance(answer, triton.InferResult)
        np.testing.assert_array_equal(answer.as_numpy("OUTPUT__0"), [[12.0, 16.0]])
    assert isinstance(refusal, triton.InferenceServerException)
    assert "1x5 and 4x2" in refusal.message()


def test_torch_mismatches_are_told(
    server: DirectTriton, torch_models: Callable[[str], str]
) -> None:
    model = torch_models("wrong_type")
    with pytest.raises(triton.InferenceServerException, match="expects TYPE_INT32 for output"):
        infer(server, model, {"x": np.ones((1, 4), dtype=np.float32)})
    with pytest.raises(triton.InferenceServerException, match="expects 1 inputs, the model has 2"):
        torch_models("one_of_two")


# The server itself


def test_administration_asks_for_the_secret(server: DirectTriton) -> None:
    for call in (
        server.client.get_model_repository_index,
        server.client.get_inference_statistics,
        server.client.get_log_settings,
        server.client.get_trace_settings,
        server.client.get_system_shared_memory_status,
        server.client.get_cuda_shared_memory_status,
        partial(server.client.load_model, "multiplier"),
        partial(server.client.unload_model, "multiplier"),
        partial(server.client.get_model_config, "multiplier"),
    ):
        with pytest.raises(triton.InferenceServerException, match="restricted"):
            call()
    assert server.client.get_server_metadata().name == server.spec.id
    assert server.spec.admin_secret not in server.log.read_text()
    assert server.spec.admin_secret not in repr(server.spec)


def test_it_listens_on_loopback_only(server: DirectTriton) -> None:
    listening = [
        connection.laddr
        for connection in server.process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert {address.port for address in listening} == {
        server.spec.grpc_port,
        server.spec.metrics_port,
    }
    assert all(address.ip.endswith("127.0.0.1") for address in listening)


def test_stubs_tell_their_model_and_version(server: DirectTriton) -> None:
    server.load("multiplier")
    server.load("magika")
    units = set()
    for stub in server.process.children():
        arguments = stub.cmdline()
        units.add(tuple(arguments[1].split("/")[-3:-1]))
        assert arguments[2].startswith(server.spec.shm_prefix)
    assert {("multiplier", "1"), ("multiplier", "2"), ("magika", "1")} <= units


def test_assembling_backends_again_changes_nothing(server: DirectTriton) -> None:
    def files() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}

    folder = server.spec.backend_directory
    before = files()
    assert {"libtriton_python.so", "triton_python_backend_stub"} <= {path.name for path in before}
    assemble(server.spec.site_packages, BACKENDS, folder)
    assert files() == before


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("repositories", (Path("/srv/my models"),)),
        ("repositories", (Path("relative"),)),
        ("backend_directory", Path("/srv/$(id)")),
        ("id", "triton 0"),
        ("shm_prefix", "../other"),
        ("admin_secret", "short"),
        ("admin_secret", "a:secret,with=separators"),
    ],
)
def test_a_spec_refuses_what_triton_would_misread(
    server: DirectTriton, field: str, value: Any
) -> None:
    with pytest.raises(ValueError, match=r"Triton cannot|not a plain word|admin secret"):
        replace(server.spec, **{field: value})


def test_a_killed_server_leaves_no_process_and_no_shared_memory(
    tmp_path: Path, repository: Path
) -> None:
    with triton_direct(tmp_path, repository) as running:
        running.load("multiplier")
        stubs = running.process.children()
        prefix = running.spec.shm_prefix
        running.process.send_signal(signal.SIGKILL)
        # Reaped, or the stubs would take the zombie for a living parent.
        running.process.wait(10)
        _, alive = psutil.wait_procs(stubs, timeout=5)
        assert alive == []
        wait_until(lambda: not list(Path("/dev/shm").glob(f"{prefix}*")), 5, "shared memory to go")
