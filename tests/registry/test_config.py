"""config.pbtxt: how it is completed, and what is refused."""

import contextlib
from pathlib import Path
from typing import Any

import onnx
import pytest
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2 as mc

from services.registry.artifacts.scan import MAX_CONFIG, Scan, open_source, scan_version
from services.registry.formats.config import (
    complete_config,
    config_digest,
    parse_config,
    serialize,
)
from services.registry.formats.onnx import NotReadable, read_graph
from services.registry.formats.refusal import Unservable
from tests.support.registry import PYTHON_CODE, TENSORS, onnx_model


def scan(folder: Path, kind: str = "KIND_AUTO") -> Scan:
    source = open_source(folder, "m")
    return scan_version(source, max(source.numbers), kind)


def write(folder: Path, config: str | None = None, **files: str) -> Path:
    """A model's folder with version 1; `model_py` is model.py."""
    (folder / "1").mkdir(parents=True)
    if config is not None:
        (folder / "config.pbtxt").write_text(config)
    for name, content in files.items():
        (folder / "1" / name.replace("_", ".")).write_text(content)
    return folder


def completed(folder: Path, kind: str = "KIND_AUTO") -> mc.ModelConfig:
    found = scan(folder, kind)
    assert not found.problem
    return mc.ModelConfig.FromString(found.config)


def problem(folder: Path) -> str:
    found = scan(folder)
    assert found.config == b""
    return found.problem


def test_what_triton_would_guess_is_said(tmp_path: Path) -> None:
    config = completed(write(tmp_path / "m", TENSORS, model_py=PYTHON_CODE))
    assert config == text_format.Parse(
        f'name: "m" backend: "python" default_model_filename: "model.py" {TENSORS}'
        "instance_group { count: 1 kind: KIND_AUTO }",
        mc.ModelConfig(),
    )


@pytest.mark.parametrize(
    ("said", "files", "backend", "platform", "filename"),
    [
        ("backend: 'onnxruntime'", "model_onnx", "onnxruntime", "onnxruntime_onnx", "model.onnx"),
        ("platform: 'onnxruntime_onnx'", "model_onnx", "onnxruntime", None, "model.onnx"),
        ("", "model_onnx", "onnxruntime", "onnxruntime_onnx", "model.onnx"),
        ("", "model_pt", "pytorch", "pytorch_libtorch", "model.pt"),
        ("backend: 'pytorch'", "model_pt", "pytorch", "pytorch_libtorch", "model.pt"),
        ("", "model_plan", "tensorrt", "tensorrt_plan", "model.plan"),
        ("", "model_graphdef", "tensorflow", "tensorflow_graphdef", "model.graphdef"),
        ("backend: 'tensorflow'", "model_savedmodel", "tensorflow", "tensorflow_savedmodel", None),
        ("", "model_xml", "openvino", "", "model.xml"),
        ("backend: 'python'", "model_py", "python", "", "model.py"),
        (
            "backend: 'python' default_model_filename: 'other.py'",
            "other_py",
            "python",
            "",
            "other.py",
        ),
        ("backend: 'vllm'", "model_json", "vllm", "", ""),
    ],
)
def test_backend_platform_and_file_name_each_other(
    tmp_path: Path,
    said: str,
    files: str,
    backend: str,
    platform: str | None,
    filename: str | None,
) -> None:
    config = completed(write(tmp_path / "m", said + TENSORS, **{files: ""}))
    assert config.backend == backend
    assert config.platform == ("onnxruntime_onnx" if platform is None else platform)
    assert config.default_model_filename == (
        files.replace("_", ".") if filename is None else filename
    )


def test_instances_are_one_unless_said_otherwise(tmp_path: Path) -> None:
    plain = write(tmp_path / "plain", TENSORS, model_py="")
    assert completed(plain, "KIND_CPU").instance_group[0].kind == mc.ModelInstanceGroup.KIND_CPU
    said = "instance_group [ { kind: KIND_GPU }, { count: 4 kind: KIND_CPU } ]"
    groups = completed(write(tmp_path / "said", TENSORS + said, model_py="")).instance_group
    assert [(group.count, group.kind) for group in groups] == [
        (1, mc.ModelInstanceGroup.KIND_GPU),
        (4, mc.ModelInstanceGroup.KIND_CPU),
    ]


@pytest.mark.parametrize("backend", ["openvino", "fil"])
def test_a_backend_that_may_prefer_a_kind_is_not_overridden(tmp_path: Path, backend: str) -> None:
    folder = write(tmp_path / "m", f"backend: '{backend}'" + TENSORS, model_xml="")
    assert not completed(folder, "KIND_GPU").instance_group


def test_the_users_version_policy_is_kept(tmp_path: Path) -> None:
    policy = "version_policy { specific { versions: [ 1, 3 ] } }"
    config = completed(write(tmp_path / "m", TENSORS + policy, model_py=""))
    assert list(config.version_policy.specific.versions) == [1, 3]
    other = completed(write(tmp_path / "other", TENSORS, model_py=""))
    assert not other.HasField("version_policy")


STEP = (
    'step { model_name: "a" input_map { key: "I" value: "IN" } '
    'output_map { key: "O" value: "OUT" } }'
)
ENSEMBLE = f"platform: 'ensemble' ensemble_scheduling {{ {STEP} }}"
INPUT = 'input { name: "I" data_type: TYPE_FP32 dims: 1 }\n'


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("backend: 'python'\n  inputt [", "config.pbtxt: line 2, column 3: Message type"),
        ("backend: 'python'\nmax_batch_size: 'a'", "config.pbtxt: line 2, column 17:"),
        ("backend: 'python'", "config.pbtxt lists no output"),
        ("backend: 'python'" + INPUT, "config.pbtxt lists no output"),
        ("name: 'other'" + TENSORS, "unexpected directory name 'm' for model 'other'"),
        ("platform: 'keras'" + TENSORS, "unexpected platform type 'keras'"),
        ("backend: 'onnxruntime'" + TENSORS, "its version folder has no model.onnx"),
        ("default_model_filename: '../x.py'" + TENSORS, "the file name '../x.py' leads out"),
        ("default_model_filename: '/x.py'" + TENSORS, "the file name '/x.py' leads out"),
        ("max_batch_size: -1" + TENSORS, "'max_batch_size' must be non-negative value"),
        (TENSORS.replace("OUT", 'OUT" label_filename: "l.txt'), "its label file 'l.txt' is not"),
        (TENSORS.replace("OUT", 'OUT" label_filename: "../l'), "the file name '../l' leads out"),
        (
            TENSORS.replace("dims: [ 1 ]", "dims: [ 0 ]"),
            "model input 'IN' dimension must be integer >= 1, or -1",
        ),
        (TENSORS.replace("dims: [ 1 ]", ""), "model input 'IN' must specify 'dims'"),
        (TENSORS.replace("data_type: TYPE_FP32", ""), "model input 'IN' must specify 'data_type'"),
        (TENSORS.replace('name: "IN"', ""), "model input must specify 'name'"),
        (
            "platform: 'ensemble'" + TENSORS,
            "ensemble scheduling must be set for ensemble m whose platform is",
        ),
        (
            f"ensemble_scheduling {{ {STEP} }}" + TENSORS,
            "ensemble scheduling cannot be set for model 'm' whose platform",
        ),
        (
            f"{ENSEMBLE} instance_group [{{}}]" + TENSORS,
            "instance group should not be specified for ensemble 'm'",
        ),
        (
            "platform: 'ensemble' ensemble_scheduling { step { model_name: 'a' } }" + TENSORS,
            "must specify 'input_map' in step 0 of ensemble 'm'",
        ),
        (ENSEMBLE.replace('"a"', '"../a"') + TENSORS, "'../a' cannot be a model's name"),
        ("instance_group [ { name: 'a; id' } ]" + TENSORS, "instance_group name 'a; id' is not"),
        ("default_model_filename: 'a$(id).py'" + TENSORS, "default_model_filename 'a$(id).py' is"),
        ("backend: '../python'" + TENSORS, "backend '../python' is not allowed"),
        ("runtime: 'x y'" + TENSORS, "runtime 'x y' is not allowed"),
        (
            "parameters { key: 'EXECUTION_ENV_PATH' value { string_value: '/e && id' } }" + TENSORS,
            "EXECUTION_ENV_PATH '/e && id' is not allowed",
        ),
        ("\xff", "config.pbtxt: line 1, column 1:"),
        (
            "platform: 'python'" + TENSORS,
            "unexpected platform type 'python': write backend: \"python\" instead",
        ),
        (
            "platform: 'pytorch_libtorch'" + TENSORS,
            "its version folder has no model.pt. It has model.py, for which the config must say "
            'backend: "python"',
        ),
    ],
)
def test_what_cannot_be_served_says_why(tmp_path: Path, config: str, said: str) -> None:
    assert problem(write(tmp_path / "m", config, model_py="")).startswith(said)


def test_configs_that_are_no_text_or_too_much_of_it(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", "", model_py="")
    (folder / "config.pbtxt").write_bytes(b"name: '\xff'")
    assert problem(folder) == "config.pbtxt: line 1, column 7: a string is not UTF-8 text"
    (folder / "config.pbtxt").write_bytes(b"#" * (MAX_CONFIG + 1))
    assert problem(folder).startswith("config.pbtxt has 4194305 bytes")
    (folder / "config.pbtxt").unlink()
    (folder / "config.pbtxt").mkdir()
    assert problem(folder) == "config.pbtxt is a folder"


def test_the_name_tells_a_custom_backend(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    given = parse_config(TENSORS)
    config = complete_config(given, "model.dali", tmp_path / "1", (), "KIND_CPU")
    assert (config.backend, config.default_model_filename) == ("dali", "model.dali")
    with pytest.raises(Unservable, match="its version folder is empty"):
        complete_config(given, "model", tmp_path / "1", (), "KIND_CPU")


@pytest.mark.parametrize("encoding", ["latin-1", "gbk", "utf-8"])
def test_comments_may_be_in_any_encoding(tmp_path: Path, encoding: str) -> None:
    comment = "# caf\xe9\n" if encoding == "latin-1" else "# \u6a21\u578b\n"
    folder = write(tmp_path / "m", "", model_py="")
    (folder / "config.pbtxt").write_bytes((comment + TENSORS).encode(encoding))
    assert completed(folder).output[0].name == "OUT"


def test_without_a_version_folder_the_reason_names_none(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.pbtxt").write_text("backend: 'python'" + TENSORS)
    assert (
        problem(tmp_path / "m") == "its folder has neither model.py nor a version folder such as 1"
    )


def test_folders_without_a_model(tmp_path: Path) -> None:
    assert problem(write(tmp_path / "empty", TENSORS)) == "its version folder is empty"
    text = problem(write(tmp_path / "text", TENSORS, notes_txt=""))
    assert text.startswith("its config names no backend, and its version folder has none of model.")


def test_an_ensemble_needs_no_version_folder(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.pbtxt").write_text(ENSEMBLE + TENSORS)
    assert open_source(folder, "m").numbers == (1,)
    config = completed(folder)
    assert not config.instance_group
    assert scan(folder).ensemble


Shapes = dict[str, list[int | str]]


@pytest.mark.parametrize(
    ("inputs", "outputs", "batch", "dims"),
    [
        ({"x": ["n", 4]}, {"y": ["n", 2, "k"]}, 4, [[4], [2, -1]]),
        ({"x": [1, 4]}, {"y": [1]}, 0, [[1, 4], [1]]),
        ({"x": ["n", 4]}, {"y": [1]}, 0, [[-1, 4], [1]]),
        ({"x": ["n"]}, {"y": ["n"]}, 4, [[1], [1]]),
    ],
)
def test_tensors_come_from_the_graph(
    tmp_path: Path, inputs: Shapes, outputs: Shapes, batch: int, dims: list[list[int]]
) -> None:
    onnx_model(tmp_path / "m" / "1" / "model.onnx", inputs, outputs)
    config = completed(tmp_path / "m")
    assert config.max_batch_size == batch
    assert config.HasField("dynamic_batching") == (batch > 0)
    assert [list(entry.dims) for entry in (*config.input, *config.output)] == dims
    assert (config.input[0].name, config.output[0].name) == ("x", "y")
    scalars = [shape in ([], ["n"]) for shape in (*inputs.values(), *outputs.values())]
    assert [entry.HasField("reshape") for entry in (*config.input, *config.output)] == scalars


def test_a_scalar_needs_a_batch_as_in_triton(tmp_path: Path) -> None:
    onnx_model(tmp_path / "m" / "1" / "model.onnx", {"x": []}, {"y": [3]})
    assert "scalar tensors are not supported" in problem(tmp_path / "m")


def test_what_the_config_says_is_not_overwritten_by_the_graph(tmp_path: Path) -> None:
    onnx_model(tmp_path / "m" / "1" / "model.onnx")
    (tmp_path / "m" / "config.pbtxt").write_text(
        "max_batch_size: 8\noutput { name: 'y' data_type: TYPE_FP32 dims: 1 reshape {} }"
    )
    config = completed(tmp_path / "m")
    assert (config.max_batch_size, config.HasField("dynamic_batching")) == (8, False)
    assert list(config.input[0].dims) == [4]
    assert config.output[0].HasField("reshape")


def test_a_batch_that_the_graph_does_not_take(tmp_path: Path) -> None:
    onnx_model(tmp_path / "m" / "1" / "model.onnx", {"x": [1, 4]})
    (tmp_path / "m" / "config.pbtxt").write_text("max_batch_size: 8")
    assert "the first dimension of 'x' is fixed" in problem(tmp_path / "m")


def test_element_types(tmp_path: Path) -> None:
    for element, expected in (
        (onnx.TensorProto.INT64, mc.TYPE_INT64),
        (onnx.TensorProto.UINT8, mc.TYPE_UINT8),
        (onnx.TensorProto.STRING, mc.TYPE_STRING),
        (onnx.TensorProto.BFLOAT16, mc.TYPE_BF16),
    ):
        onnx_model(tmp_path / "m" / "1" / "model.onnx", element=element)
        assert completed(tmp_path / "m").input[0].data_type == expected
    onnx_model(tmp_path / "m" / "1" / "model.onnx", element=onnx.TensorProto.COMPLEX64)
    assert "COMPLEX64, which Triton does not support" in problem(tmp_path / "m")


def test_weights_that_are_listed_as_inputs_are_none(tmp_path: Path) -> None:
    shapes: dict[str, Any] = {"x": ["n", 4], "weights": [2]}
    graph = read_graph(onnx_model(tmp_path / "model.onnx", shapes))
    assert [tensor.name for tensor in graph.inputs] == ["x"]


def test_files_that_are_no_onnx(tmp_path: Path) -> None:
    path = onnx_model(tmp_path / "m" / "1" / "model.onnx")
    whole = path.read_bytes()
    for content, said in (
        (b"", "model.onnx is empty"),
        (b"\x00\xff\xff", "model.onnx is not an ONNX model"),
        (whole[:-7], "model.onnx is not an ONNX model"),
        (b"version https://git-lfs.github.com/spec/v1\n", "model.onnx is not an ONNX model"),
    ):
        path.write_bytes(content)
        assert problem(tmp_path / "m") == said


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_read(
    tmp_path_factory: pytest.TempPathFactory, raw: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "model.onnx"
    path.write_bytes(raw)
    with contextlib.suppress(NotReadable):
        read_graph(path)


@settings(deadline=None)
@given(st.permutations(["max_batch_size: 2", "backend: 'python'", *TENSORS.strip().splitlines()]))
def test_the_order_of_fields_does_not_matter(lines: list[str]) -> None:
    texts = ("\n".join(lines), "\n".join(sorted(lines)))
    one, two = (serialize(parse_config(text)) for text in texts)
    assert config_digest(one, "") == config_digest(two, "")


def test_the_digest_tells_what_reloads() -> None:
    def digest(text: str, auxiliary: str = "") -> str:
        return config_digest(serialize(parse_config(text)), auxiliary)

    plain = digest(TENSORS)
    assert digest(TENSORS + "version_policy { all {} } instance_group [{ count: 7 }]") == plain
    assert digest(TENSORS + "max_batch_size: 1") != plain
    assert digest(TENSORS + "parameters { key: 'k' value { string_value: 'v' } }") != plain
    assert digest(TENSORS, "labels") != plain


@pytest.mark.parametrize(
    ("said", "model", "kept"),
    [
        ("", "model_onnx", False),
        ("runtime: 'model.py'", "model_pt", True),
        ("backend: 'mine'", "model_bin", True),
        ("backend: 'python'", "model_py", True),
    ],
)
def test_code_beside_a_model_is_staged_only_where_it_is_meant(
    tmp_path: Path, said: str, model: str, kept: bool
) -> None:
    folder = write(tmp_path / "m", said + TENSORS, **{"model_py": "", model: ""})
    for place in (folder, folder / "1"):
        (place / "libtriton_onnxruntime.so").touch()
    found = scan(folder)
    assert not found.problem
    names = {file.relative for file in (*found.files.files, *found.auxiliary.files)}
    assert ("model.py" in names, "libtriton_onnxruntime.so" in names) == (kept, kept)
