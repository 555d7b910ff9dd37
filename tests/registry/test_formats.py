"""What an artifact is, by its content, and the config that is written for it."""

import json
import pickle
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper
from pydantic import ValidationError
from tritonclient.grpc.model_config_pb2 import ModelConfig

from services.registry.formats import known
from services.registry.formats.artifact import open_artifact
from services.registry.formats.config import parse_config
from services.registry.formats.format import Described
from services.registry.formats.inspection import Inspected, inspect
from services.registry.formats.refusal import Refusal, Unservable
from services.registry.formats.tensor import Tensor
from services.registry.formats.written import write_config
from services.registry.settings import RegistrySettings
from tests.support import artifacts as made

X, Y = Tensor("x", "TYPE_FP32", (-1, 4)), Tensor("y", "TYPE_FP32", (-1, 4))
PYTHON = "class TritonPythonModel:\n    def execute(self, requests):\n        return []\n"


def write(name: str, content: Callable[[], bytes | str]) -> Callable[[Path], Any]:
    def build(folder: Path) -> None:
        data = content()
        (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)

    return build


def weights_with_code(folder: Path) -> None:
    made.zipped(folder / "model.pt", {"m/data.pkl": b"\x80\x02}.", "m/version": "3"})
    (folder / "model.py").write_text("def build():\n    return Net()\n")


def sentences(folder: Path) -> None:
    kinds = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    modules = [{"type": f"sentence_transformers.models.{k}", "path": path} for k, path in kinds]
    made.transformers(folder)
    (folder / "modules.json").write_text(json.dumps(modules))


def mlflow(folder: Path) -> None:
    (folder / "MLmodel").write_text(
        "flavors:\n  python_function: {loader_module: mlflow.onnx}\n  onnx: {data: model.onnx}\n"
        "  sklearn: {pickled_model: model.pkl}\n"
    )
    (folder / "model.onnx").write_bytes(made.onnx_model())
    (folder / "model.pkl").write_bytes(pickle.dumps({}))


def openvino(folder: Path) -> None:
    (folder / "model.xml").write_text(made.openvino())
    (folder / "model.bin").write_bytes(b"\0" * 16)


ENSEMBLE = """platform: "ensemble"
input { name: "x" data_type: TYPE_FP32 dims: [4] } output { name: "y" data_type: TYPE_FP32 dims: [4] }
ensemble_scheduling { step { model_name: "one" model_version: -1
  input_map { key: "x" value: "x" } output_map { key: "y" value: "y" } } }
"""  # noqa: E501

BUILT: dict[str, list[Callable[[Path], Any]]] = {
    "ensemble": [write("config.pbtxt", lambda: ENSEMBLE)],
    "lightgbm": [write("anything", made.lightgbm)],
    "mlflow": [mlflow],
    "onnx": [write("model.onnx", made.onnx_model), write("weights.dat", made.onnx_model)],
    "openvino": [openvino],
    "python": [write("model.py", lambda: PYTHON)],
    "savedmodel": [write("saved_model.pb", made.saved_model)],
    "sentence-transformers": [sentences],
    "sklearn-pickle": [
        write("model.pkl", lambda: pickle.dumps({}, 4)),
        write("text", lambda: made.bomb(Path("x"), 0).replace(b"posix", b"sklea")),
        write("model.joblib", lambda: zlib.compress(pickle.dumps({}, 2))),
    ],
    "sklearn-skops": [lambda folder: made.skops(folder / "renamed.zip")],
    "state-dict": [weights_with_code],
    "tensorrt-plan": [write("engine", made.plan)],
    "torch-export": [lambda folder: made.exported(folder / "model.zip")],
    "torchscript": [lambda folder: made.torchscript(folder / "model.bin")],
    "transformers": [lambda folder: made.transformers(folder)],
    "xgboost": [
        write("m", lambda: json.dumps(made.xgboost())),
        write("m", lambda: made.ubjson(made.xgboost())),
    ],
}
ONE_OF_EACH = [(name, build) for name, builds in BUILT.items() for build in builds]


def test_the_built_in_formats_come_through_the_same_door() -> None:
    assert {one.name for one in known.formats()} == set(known.ORDER) == set(BUILT)


@pytest.mark.parametrize(("name", "build"), ONE_OF_EACH)
def test_detected_by_content_and_as_nothing_else(
    name: str, build: Callable[[Path], Any], tmp_path: Path
) -> None:
    build(tmp_path)
    found = {one.name for one in known.formats() if one.detect(open_artifact(tmp_path))}
    inside = {"mlflow": {"onnx", "sklearn-pickle"}, "sentence-transformers": {"transformers"}}
    assert found == {name} | inside.get(name, set())


@pytest.mark.parametrize(("name", "build"), ONE_OF_EACH)
def test_every_cut_is_refused_or_complete(
    name: str, build: Callable[[Path], Any], tmp_path: Path
) -> None:
    """Whatever is cut off anywhere, only Unservable comes out, or a model that still is whole."""
    build(tmp_path)
    for path in [one for one in tmp_path.rglob("*") if one.is_file()]:
        whole = path.read_bytes()
        for size in range(0, len(whole), max(1, len(whole) // 40)):
            path.write_bytes(whole[:size])
            with suppress(Unservable):
                inspect(tmp_path)
        path.write_bytes(whole)


def inspected(tmp_path: Path, build: Callable[[Path], Any], **options: Any) -> Inspected:
    build(tmp_path)
    return inspect(tmp_path, **options)


@pytest.mark.parametrize("name", ["onnx", "savedmodel", "openvino"])
def test_tensors_of_formats_that_record_them(name: str, tmp_path: Path) -> None:
    found = inspected(tmp_path, BUILT[name][0])
    assert (found.described.inputs, found.described.outputs) == ((X,), (Y,))
    assert found.described.batched
    config = found.config
    assert config.max_batch_size == 4
    assert config.HasField("dynamic_batching")
    assert list(config.input[0].dims) == list(config.output[0].dims) == [4]


def test_a_complete_config_is_written_for_onnx(tmp_path: Path) -> None:
    found = inspected(tmp_path, write("network.onnx", made.onnx_model), kind="KIND_CPU")
    config = parse_config(found.config_text)
    assert config == found.config
    assert (config.backend, config.platform) == ("onnxruntime", "onnxruntime_onnx")
    assert config.default_model_filename == "network.onnx"
    assert [(group.kind, group.count) for group in config.instance_group] == [(2, 1)]
    assert "opset ai.onnx 20" in found.notes
    assert not found.must_convert


def test_what_the_user_wrote_is_kept(tmp_path: Path) -> None:
    text = """max_batch_size: 32
instance_group { kind: KIND_GPU count: 3 }
input { name: "x" data_type: TYPE_FP32 dims: [ 4 ] }"""
    (tmp_path / "config.pbtxt").write_text(text)
    config = inspected(tmp_path, BUILT["onnx"][0]).config
    assert (config.max_batch_size, config.instance_group[0].count) == (32, 3)
    assert not config.HasField("dynamic_batching")
    assert [one.name for one in config.output] == ["y"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('input { name: "z" data_type: TYPE_FP32 dims: [4] }', "lists the input 'z', and"),
        ('input { name: "x" data_type: TYPE_INT8 dims: [4] }', "is TYPE_INT8, the model TYPE_FP32"),
        ('input { name: "x" data_type: TYPE_FP32 dims: [5] }', "has the shape [5], the model [4]"),
        ('output { name: "y" data_type: TYPE_FP32 dims: [4, 1] }', "has the shape [4, 1]"),
    ],
)  # fmt: skip
def test_tensors_that_differ_from_the_config(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "config.pbtxt").write_text(f"max_batch_size: 8\n{text}")
    with pytest.raises(Refusal) as refused:
        inspected(tmp_path, BUILT["onnx"][0])
    assert words in str(refused.value)


def test_an_input_with_a_default_may_be_listed_or_left_out(tmp_path: Path) -> None:
    weight = helper.make_tensor("w", 1, [4], [1.0] * 4)
    model = onnx.ModelProto.FromString(made.with_weight(weight))
    model.graph.input.append(helper.make_tensor_value_info("w", 1, [4]))
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    assert [one.name for one in inspect(tmp_path).config.input] == ["x"]
    given = ModelConfig()
    given.input.add(name="x", data_type=11, dims=[-1, 4])
    given.input.add(name="w", data_type=11, dims=[4])
    assert [one.name for one in inspect(tmp_path, given=given).config.input] == ["x", "w"]
    del given.input[0]
    with pytest.raises(Refusal, match="leaves out the model's input 'x'"):
        inspect(tmp_path, given=given)


def test_an_input_that_the_model_does_not_have(tmp_path: Path) -> None:
    content = made.onnx_model([helper.make_node("Add", ["x", "x"], ["y"])])
    given = ModelConfig(max_batch_size=8)
    given.input.add(name="y", data_type=11, dims=[4])
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(Refusal, match="lists the input 'y', and the model has only x"):
        inspect(tmp_path, given=given)


def test_labels_are_written_for_the_output_that_has_them() -> None:
    described = Described((X,), (Y,), True, labels=("a", "b c", "d\ne", "f"))
    config, labels = write_config(ModelConfig(), "onnxruntime", described, "KIND_AUTO")
    assert labels == "a\nb c\nd e\nf\n"
    assert config.output[0].label_filename == "labels.txt"


def test_a_saved_model_goes_into_tritons_folder(tmp_path: Path) -> None:
    found = inspected(tmp_path, BUILT["savedmodel"][0])
    assert found.folder == "model.savedmodel"
    assert found.config.platform == "tensorflow_savedmodel"
    assert "saved by TensorFlow 2.20.0" in found.notes


def test_torchscript_says_what_forward_takes(tmp_path: Path) -> None:
    given = ModelConfig(max_batch_size=4)
    given.input.add(name="INPUT__0", data_type=11, dims=[4])
    given.output.add(name="OUTPUT__0", data_type=11, dims=[4])
    found = inspected(tmp_path, BUILT["torchscript"][0], given=given)
    assert "forward(x: Tensor) -> Tensor" in found.notes
    assert found.config.platform == "pytorch_libtorch"


def test_what_must_be_converted_keeps_the_users_config(tmp_path: Path) -> None:
    (tmp_path / "config.pbtxt").write_text("max_batch_size: 7")
    found = inspected(tmp_path, BUILT["xgboost"][1])
    assert found.must_convert
    assert found.config == ModelConfig(max_batch_size=7)
    assert found.described.inputs == (Tensor("input", "TYPE_FP32", (-1, 4)),)


def test_mlflow_takes_onnx_before_pickles(tmp_path: Path) -> None:
    found = inspected(tmp_path, mlflow, scheme="mlflow")
    assert (found.format, found.described.file) == ("onnx", "model.onnx")
    assert found.also == ("onnx", "sklearn-pickle")
    assert "it also looks like onnx, sklearn-pickle" in found.notes


def test_a_model_file_goes_before_python_code_as_in_triton(tmp_path: Path) -> None:
    BUILT["python"][0](tmp_path)
    (tmp_path / "encoder.onnx").write_bytes(made.onnx_model())
    assert inspect(tmp_path).config.backend == "python"
    (tmp_path / "encoder.onnx").rename(tmp_path / "model.onnx")
    assert inspect(tmp_path).config.backend == "onnxruntime"
    assert inspect(tmp_path, given=ModelConfig(backend="python")).config.backend == "python"


def test_a_config_that_names_another_backend(tmp_path: Path) -> None:
    given = ModelConfig(backend="tensorrt")
    with pytest.raises(Refusal, match="names the backend tensorrt, which opens nothing here"):
        inspected(tmp_path, BUILT["onnx"][0], given=given)


def test_a_backend_that_knows_its_own_files(tmp_path: Path) -> None:
    found = inspected(tmp_path, BUILT["xgboost"][0], given=ModelConfig(backend="fil"))
    assert (found.format, found.config.backend) == ("", "fil")
    (tmp_path / "libtriton_fil.so").write_bytes(b"\x7fELF")
    with pytest.raises(Refusal, match=r"libtriton_fil\.so is code"):
        inspect(tmp_path, given=ModelConfig(backend="fil"), scheme="https")


def test_an_ensemble_whose_config_lies_elsewhere(tmp_path: Path) -> None:
    assert inspect(tmp_path, given=parse_config(ENSEMBLE)).format == "ensemble"


# --- permission -----------------------------------------------------------------------------------


def own_code(folder: Path) -> None:
    made.transformers(folder, auto_map={"AutoModel": "modeling_mine.Mine"})


def pickled_weights(folder: Path) -> None:
    made.transformers(folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02ccollections\nOrderedDict\n)R.")


def own_module(folder: Path) -> None:
    made.transformers(folder)
    modules = [{"type": "mine.Pooling", "path": ""}]
    (folder / "modules.json").write_text(json.dumps(modules))


def own_type(folder: Path) -> None:
    made.skops(folder / "m.skops", "mine.models", "Net")


def own_function(folder: Path) -> None:
    content = {"module_path": "os", "function": "system"}
    made.skops(folder / "m.skops", "numpy", "ufunc", __loader__="FunctionNode", content=content)


def writes_files(folder: Path) -> None:
    (folder / "saved_model.pb").write_bytes(made.saved_model(op="WriteFile"))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (BUILT["sklearn-pickle"][0], "a pickle is a program"),
        (BUILT["python"][0], "model.py is Python code"),
        (weights_with_code, "the class that its weights belong to"),
        (own_code, "names Python code of its own (modeling_mine)"),
        (pickled_weights, "pytorch_model.bin holds its weights as a pickle"),
        (own_module, "names the module mine.Pooling"),
        (own_type, "names the types mine.models.Net"),
        (own_function, "names the types os.system"),
        (writes_files, "its graph has WriteFile"),
    ],
)
def test_code_needs_permission(build: Callable[[Path], Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(Refusal) as refused:
        inspected(tmp_path, build, scheme="https")
    assert words in str(refused.value)
    assert "SHOAL_REGISTRY_CODE_SOURCES" in str(refused.value)
    assert inspect(tmp_path, scheme="https", code_sources=("https",)).format
    assert inspect(tmp_path).format


def test_sources_whose_code_may_run_are_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    assert RegistrySettings().code_sources == ("file",)
    monkeypatch.setenv("SHOAL_REGISTRY_CODE_SOURCES", "file,hf")
    assert RegistrySettings().code_sources == ("file", "hf")
    monkeypatch.setenv("SHOAL_REGISTRY_CODE_SOURCES", "anywhere")
    with pytest.raises(ValidationError):
        RegistrySettings()


@pytest.mark.parametrize("name", ["onnx", "transformers", "sklearn-skops", "xgboost", "lightgbm"])
def test_no_permission_is_needed_for_data(name: str, tmp_path: Path) -> None:
    assert inspected(tmp_path, BUILT[name][0], scheme="https", code_sources=()).format
