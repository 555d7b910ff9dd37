"""Broken and hostile artifacts: each is refused with its own sentence, and nothing of it runs."""

import json
import os
import pickle
import struct
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from onnx import helper

from services.registry.formats.inspection import inspect
from services.registry.formats.refusal import Refusal
from tests.support import artifacts as made

# Far more than any case takes, and far less than what a hostile one asks for.
MAX_SECONDS = 20.0
MAX_MEMORY = 96 * 2**20

Build = Callable[[Path, Path], Any]
CASES: dict[str, tuple[Build, str]] = {}


def case(words: str) -> Callable[[Build], Build]:
    """Register what builds an artifact (in a folder, with a canary that code would touch), and the
    words with which it is refused."""

    def register(build: Build) -> Build:
        CASES[build.__name__] = build, words
        return build

    return register


def file(name: str, content: Callable[[], bytes | str], words: str, case: str = "") -> None:
    """Register an artifact of one file."""

    def build(folder: Path, _: Path) -> None:
        data = content()
        (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)

    CASES[case or f"{name}: {words}"[:60]] = build, words


# --- ONNX -----------------------------------------------------------------------------------------

node = helper.make_node
for cut in (30, 60, 80, -1):
    file(
        "model.onnx",
        lambda cut=cut: made.onnx_model()[:cut],  # type: ignore[misc]
        "model.onnx is cut off",
        f"onnx_cut_at_{cut}",
    )
file("model.onnx", lambda: b"\x08\x0a\x12\x04test", "it has no graph")
file("model.onnx", lambda: b"", "model.onnx is empty", "onnx_empty")
file("model.onnx", lambda: b"not a model at all", "is named like ONNX, and its content is not")
file("model.onnx", lambda: made.onnx_model(opset=99), "needs opset 99 of ai.onnx")
file(
    "model.onnx",
    lambda: made.onnx_model(opset=9, domain="ai.onnx.ml"),
    "needs opset 9 of ai.onnx.ml",
)
file("model.onnx", lambda: made.onnx_model(ir=99), "has IR version 99")
file(
    "model.onnx",
    lambda: made.onnx_model([node("Add", ["x", "b"], ["a"]), node("Relu", ["a"], ["b"]),
                             node("Relu", ["b"], ["y"])]),
    "goes in a circle",
    "onnx_cyclic",
)  # fmt: skip
file("model.onnx", lambda: made.onnx_model([node("Relu", ["y"], ["y"])]), "circle: y -> y")
file("model.onnx", lambda: made.onnx_model([node("Relu", ["z"], ["y"])]), "takes 'z', from nowhere")
file("model.onnx", lambda: made.onnx_model([]), "nothing in model.onnx produces its output 'y'")
file(
    "model.onnx",
    lambda: made.onnx_model([node("Relu", ["x"], ["y"]), node("Abs", ["x"], ["y"])]),
    "two nodes in model.onnx produce 'y'",
)
file("model.onnx", lambda: made.onnx_model(outputs=()), "has no output", "onnx_no_output")
for where in ("../secret", "/etc/passwd", "a/../../b"):
    file(
        "model.onnx",
        lambda where=where: made.with_weight(made.external_weight(where)),  # type: ignore[misc]
        f"lies outside the model's folder, at '{where}'",
    )
file(
    "model.onnx",
    lambda: made.with_weight(made.external_weight("weights.bin")),
    "lies in 'weights.bin', which is missing",
)
file(
    "model.onnx",
    lambda: made.with_weight(made.external_weight("model.onnx", offset="100000", length="16")),
    "ends at byte 100016 of 'model.onnx', which has only",
)
file(
    "model.onnx",
    lambda: made.with_weight(made.external_weight("model.onnx", length="1000000")),
    "should have 16 bytes, and says that it has 1000000",
)
file(
    "model.onnx",
    lambda: made.with_weight(made.external_weight("model.onnx", offset="-1")),
    "has the offset '-1', which is no number",
)


@case("a link that leads out of the folder")
def onnx_linked_weights(folder: Path, canary: Path) -> None:
    (folder / "model.onnx").write_bytes(made.with_weight(made.external_weight("w.bin")))
    (folder / "w.bin").symlink_to("/etc/hostname")


@case("should have 4000000000000 bytes, and has 4")
def onnx_enormous_weight(folder: Path, canary: Path) -> None:
    weight = helper.make_tensor("w", 1, [1], b"\0" * 4, raw=True)
    weight.dims[:] = [10**6, 10**6]
    (folder / "model.onnx").write_bytes(made.with_weight(weight))


@case("has a name of 100000 bytes")
def onnx_enormous_name(folder: Path, canary: Path) -> None:
    (folder / "model.onnx").write_bytes(made.onnx_model([node("Relu", ["x"], ["z" * 100_000])]))


@case("nested more than")
def onnx_nested_graphs(folder: Path, canary: Path) -> None:
    graph = made.message(1, made.message(4, "If"))
    for _ in range(2000):
        graph = made.message(1, made.message(5, made.message(6, graph)))
    content = b"\x08\x0a" + made.message(8, made.message(2, 20)) + made.message(7, graph)
    (folder / "model.onnx").write_bytes(content)


@case("it has several ONNX models, a.onnx, b.onnx")
def onnx_several(folder: Path, canary: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        (folder / name).write_bytes(made.onnx_model())


# --- archives -------------------------------------------------------------------------------------


@case("is a zip archive that is cut off")
def zip_cut_off(folder: Path, canary: Path) -> None:
    path = made.torchscript(folder / "model.pt")
    path.write_bytes(path.read_bytes()[:-50])


@case("would unpack")
def zip_bomb(folder: Path, canary: Path) -> None:
    with zipfile.ZipFile(folder / "model.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/data.pkl", b"\0" * (200 * 2**20))


@case("has files that overlap")
def zip_overlapping(folder: Path, canary: Path) -> None:
    path = made.zipped(folder / "model.pt", {"m/a": b"a" * 100, "m/b": b"b" * 100})
    data = bytearray(path.read_bytes())
    second = data.rfind(b"PK\x01\x02")
    data[second + 42 : second + 46] = struct.pack("<L", 10)  # where its content begins
    path.write_bytes(data)


@case("with a directory of 4000000000 files")
def zip_enormous_directory(folder: Path, canary: Path) -> None:
    path = made.torchscript(folder / "model.pt")
    data = path.read_bytes()
    end = data.rfind(b"PK\x05\x06")
    large = b"PK\x06\x06" + struct.pack("<QHHLLQQQQ", 44, 45, 45, 0, 0, 1, 4 * 10**9, 10**12, 0)
    short = data[end : end + 10] + b"\xff" * 10 + data[end + 20 :]
    path.write_bytes(data[:end] + large + short)


@case("has a file whose name leads out of it: '../../evil'")
def zip_slip(folder: Path, canary: Path) -> None:
    made.zipped(folder / "model.pt", {"../../evil": "x"})


@case("is a zip archive of no known format, with hello.txt")
def zip_of_something(folder: Path, canary: Path) -> None:
    made.zipped(folder / "model.pt", {"hello.txt": "hello"})


@case("has two files of the name 'm/version'")
def zip_duplicate(folder: Path, canary: Path) -> None:
    path = made.zipped(folder / "model.pt", {"m/version": "3", "m/Version": "3"})
    path.write_bytes(path.read_bytes().replace(b"m/Version", b"m/version"))


# --- PyTorch --------------------------------------------------------------------------------------


@case("was saved by a newer torch, in version 99 of its form")
def torchscript_newer(folder: Path, canary: Path) -> None:
    made.torchscript(folder / "model.pt", {"version": "99\n"})


@case("is a TorchScript archive without code")
def torchscript_no_code(folder: Path, canary: Path) -> None:
    made.torchscript(folder / "model.pt", {"code/__torch__.py": None})


@case("has no number in its file m/version")
def torchscript_odd_version(folder: Path, canary: Path) -> None:
    made.torchscript(folder / "model.pt", {"version": "three"})


@case("data.pkl in model.pt is a pickle that is cut off")
def torchscript_cut_pickle(folder: Path, canary: Path) -> None:
    made.torchscript(folder / "model.pt", {"data.pkl": b"\x80\x02c__torch__\n"})


@case("data.pkl in model.pt is a pickle that would import posix.system")
def torchscript_with_bomb(folder: Path, canary: Path) -> None:
    made.torchscript(folder / "model.pt", {"data.pkl": made.bomb(canary)})


@case("holds compiled libraries")
def exported_libraries(folder: Path, canary: Path) -> None:
    made.exported(folder / "model.pt2", {"data/aotinductor/m/a.so": b"\x7fELF"})


@case("lacks the weights 'weight_0'")
def exported_without_weights(folder: Path, canary: Path) -> None:
    made.exported(folder / "model.pt2", {"data/weights/weight_0": None})


@case("models/model.json in model.pt2 is not JSON")
def exported_cut_graph(folder: Path, canary: Path) -> None:
    made.exported(folder / "model.pt2", {"models/model.json": '{"graph_module": '})


@case("was saved by a newer torch, in version 7 of its form")
def exported_newer(folder: Path, canary: Path) -> None:
    made.exported(folder / "model.pt2", {"archive_version": "7"})


@case("does not say what the model takes")
def exported_without_signature(folder: Path, canary: Path) -> None:
    made.exported(folder / "model.pt2", {"models/model.json": "{}"})


@case("data/sample_inputs/model.pt in model.pt2 is a pickle that would import posix.system")
def exported_with_bomb(folder: Path, canary: Path) -> None:
    inner = made.zipped(folder / "inner", {"m/data.pkl": made.bomb(canary)}).read_bytes()
    (folder / "inner").unlink()
    made.exported(folder / "model.pt2", {"data/sample_inputs/model.pt": inner})


@case("m/data.pkl in model.pt is a pickle that would import posix.system")
def state_dict_with_bomb(folder: Path, canary: Path) -> None:
    made.zipped(folder / "model.pt", {"m/data.pkl": made.bomb(canary), "m/version": "3"})


@case("holds weights and nothing that computes: put a model.py")
def state_dict_alone(folder: Path, canary: Path) -> None:
    made.zipped(folder / "model.pt", {"m/data.pkl": b"\x80\x02}.", "m/version": "3"})


@case("is a pickled object and not only weights")
def pickled_module(folder: Path, canary: Path) -> None:
    data = b"\x80\x02cmine.models\nNet\n)\x81."
    made.zipped(folder / "model.pt", {"m/data.pkl": data, "m/version": "3"})


@case("was saved by torch before 1.6")
def legacy_torch(folder: Path, canary: Path) -> None:
    begin = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
    (folder / "model.pt").write_bytes(begin + made.bomb(canary))


@case("model.pt does not record the names and types of its tensors")
def torchscript_without_config(folder: Path, canary: Path) -> None:
    made.torchscript(folder / "model.pt")


# --- pickles --------------------------------------------------------------------------------------


@case("model.pkl is a pickle that would import posix.system, which no model needs")
def pickle_bomb(folder: Path, canary: Path) -> None:
    (folder / "model.pkl").write_bytes(made.bomb(canary, 4))


@case("old.pkl is a pickle that would import posix.system")
def pickle_bomb_in_text(folder: Path, canary: Path) -> None:
    (folder / "old.pkl").write_bytes(made.bomb(canary, 0))


@case("model.joblib is a pickle that would import posix.system")
def pickle_bomb_compressed(folder: Path, canary: Path) -> None:
    (folder / "model.joblib").write_bytes(zlib.compress(made.bomb(canary)))


@case("is a pickle that would import builtins.eval")
def pickle_eval(folder: Path, canary: Path) -> None:
    call = f"open({str(canary)!r}, 'w')"
    (folder / "model.pkl").write_bytes(
        b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93" + b"X" + struct.pack("<I", len(call))
        + call.encode() + b"\x85R."
    )  # fmt: skip


@case("is a pickle that hides what it imports")
def pickle_computed_name(folder: Path, canary: Path) -> None:
    (folder / "model.pkl").write_bytes(b"\x80\x04]\x8c\x06system\x93.")


@case("model.pkl is a pickle that is cut off")
def pickle_cut_off(folder: Path, canary: Path) -> None:
    data = pickle.dumps({"weights": list(range(100))})
    (folder / "model.pkl").write_bytes(data[: len(data) // 2])


@case("is a damaged pickle")
def pickle_damaged(folder: Path, canary: Path) -> None:
    (folder / "model.pkl").write_bytes(b"\x80\x04\xff\xfe\xfd")


@case("unpacks to more than")
def pickle_zip_bomb(folder: Path, canary: Path) -> None:
    data = b"\x80\x04\x8e" + struct.pack("<Q", 2**26) + b"\0" * 2**26
    (folder / "model.joblib").write_bytes(zlib.compress(data))


@case("is a compressed pickle that is damaged")
def pickle_damaged_compression(folder: Path, canary: Path) -> None:
    data = zlib.compress(pickle.dumps(list(range(10_000))))
    (folder / "model.joblib").write_bytes(data[:2000] + b"\xff" * 2000)


@case("is a pickle of more than 2000000 instructions")
def pickle_endless(folder: Path, canary: Path) -> None:
    (folder / "model.pkl").write_bytes(b"\x80\x04" + b"N0" * 1_100_000 + b"N.")


@case("imports __main__.Mine, which only the program has that saved it")
def pickle_of_a_script(folder: Path, canary: Path) -> None:
    (folder / "model.pkl").write_bytes(b"\x80\x02c__main__\nMine\n)\x81.")


# --- safetensors and Hugging Face -----------------------------------------------------------------


def weights(words: str, name: str, content: Callable[[], bytes]) -> None:
    def build(folder: Path, _: Path) -> None:
        made.transformers(folder)
        (folder / "model.safetensors").write_bytes(content())

    CASES[name] = build, words


def tensor(shape: list[int], start: int, stop: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


weights("its header has 1099511627776 bytes", "safe_enormous_header",
        lambda: struct.pack("<Q", 2**40) + b"{}")  # fmt: skip
weights("has a header of 9000000 bytes", "safe_large_header",
        lambda: struct.pack("<Q", 9_000_000) + b" " * 9_000_000)  # fmt: skip
weights("the header of model.safetensors is not JSON", "safe_not_json",
        lambda: struct.pack("<Q", 4) + b"{{{{")  # fmt: skip
weights("is cut off: its tensors need 16 bytes, and it has 8", "safe_cut_off",
        lambda: made.safetensors()[:-8])  # fmt: skip
weights("has 4 bytes after its tensors", "safe_trailing", lambda: made.safetensors() + b"evil")
weights("overlaps another tensor", "safe_overlap",
        lambda: made.safetensors({"a": tensor([4], 0, 16), "b": tensor([2], 8, 16)}))  # fmt: skip
weights("has 8 bytes before 'a' that belong to nothing", "safe_gap",
        lambda: made.safetensors({"a": tensor([2], 8, 16)}))  # fmt: skip
weights("needs 4000000000000 bytes, and takes 16", "safe_enormous_shape",
        lambda: made.safetensors({"a": tensor([10**6, 10**6], 0, 16)}))  # fmt: skip
weights("has an impossible shape or place", "safe_negative",
        lambda: made.safetensors({"a": tensor([-4], 0, 16)}))  # fmt: skip
weights("has the unknown type 'OBJECT'", "safe_type",
        lambda: made.safetensors({"a": tensor([4], 0, 16, "OBJECT")}))  # fmt: skip
weights("does not say what 'a' is", "safe_odd", lambda: made.safetensors({"a": [1, 2]}))


@case("model.safetensors is missing")
def transformers_without_weights(folder: Path, canary: Path) -> None:
    made.transformers(folder)
    (folder / "model.safetensors").unlink()


@case("names a file outside the folder: '../../w.safetensors'")
def transformers_shard_outside(folder: Path, canary: Path) -> None:
    made.transformers(folder)
    index = {"weight_map": {"w": "../../w.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@case("two.safetensors, which model.safetensors.index.json names, is missing")
def transformers_shard_missing(folder: Path, canary: Path) -> None:
    made.transformers(folder)
    index = {"weight_map": {"w": "model.safetensors", "v": "two.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@case("pytorch_model.bin is a pickle that would import posix.system")
def transformers_bomb(folder: Path, canary: Path) -> None:
    made.transformers(folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(made.bomb(canary))


@case("config.json is not JSON: see line 1")
def transformers_bad_config(folder: Path, canary: Path) -> None:
    made.transformers(folder)
    (folder / "config.json").write_text('{"model_type": ')


@case("config.json is not JSON: see line 1")
def transformers_deep_config(folder: Path, canary: Path) -> None:
    made.transformers(folder)
    (folder / "config.json").write_text('{"model_type": ' + "[" * 100_000)


@case("names a folder outside the model's: '../other'")
def sentences_outside(folder: Path, canary: Path) -> None:
    kind = "sentence_transformers.models.Transformer"
    (folder / "modules.json").write_text(json.dumps([{"type": kind, "path": "../other"}]))


# --- TensorFlow, TensorRT, OpenVINO ---------------------------------------------------------------

file("saved_model.pb", lambda: made.saved_model()[:-20], "saved_model.pb is cut off or damaged")
file("saved_model.pb", lambda: made.saved_model(tag="train"), "no graph with the tag 'serve'")
file(
    "saved_model.pb",
    lambda: made.saved_model(signature="train"),
    "has no signature serving_default, only train",
)
file("saved_model.pb", lambda: b"\x08\x01", "it has no graph with tags")
file("saved_model.pb", lambda: made.saved_model(dtype=8), "of a type that Triton does not support")


@case("it has 1 of 2 files variables.data-*")
def savedmodel_missing_shard(folder: Path, canary: Path) -> None:
    (folder / "saved_model.pb").write_bytes(made.saved_model())
    (folder / "variables").mkdir()
    (folder / "variables/variables.index").touch()
    (folder / "variables/variables.data-00000-of-00002").write_bytes(b"x")


file("model.plan", lambda: made.plan()[:60], "model.plan is cut off: a plan has more than 60 bytes")
file("model.plan", lambda: made.plan(form=9), "is a plan in form 9, which is newer")
file("model.plan", lambda: made.plan((8, 6, 1, 6)), "was made with TensorRT 8.6, and the servers")
file("model.plan", lambda: b"ptrt" + b"\0" * 999, "is named like TensorRT, and its content is not")


def openvino(words: str, name: str, graph: Callable[[], str], weights: bytes = b"\0" * 16) -> None:
    def build(folder: Path, _: Path) -> None:
        (folder / "model.xml").write_text(graph())
        if weights:
            (folder / "model.bin").write_bytes(weights)

    CASES[name] = build, words


LAUGHS = '<!DOCTYPE net [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]>'
OUTSIDE = '<!DOCTYPE net [<!ENTITY a SYSTEM "file:///etc/passwd">]>'
BACK = '<edge from-layer="3" from-port="0" to-layer="2" to-port="1"/>'
openvino("has a DOCTYPE", "openvino_laughs", lambda: made.openvino(before=LAUGHS))
openvino("has a DOCTYPE", "openvino_entity", lambda: made.openvino(before=OUTSIDE))
openvino("model.xml is cut off", "openvino_cut_off", lambda: made.openvino()[:300])
openvino("model.bin is missing", "openvino_no_weights", made.openvino, b"")
openvino("model.bin is cut off", "openvino_short_weights", made.openvino, b"\0" * 8)
openvino(
    "graph in model.xml goes in a circle", "openvino_cyclic", lambda: made.openvino(edges=BACK)
)
openvino("has IR version 99", "openvino_newer", lambda: made.openvino(version=99))
openvino("has a number that is none", "openvino_number", lambda: made.openvino(dim="many"))
openvino("nested more than 64 deep", "openvino_deep",
         lambda: '<net name="m" version="11">' + "<a>" * 100_000)  # fmt: skip

# --- trees and skops ------------------------------------------------------------------------------

CYCLE = {"left_children": [1, 0, -1], "right_children": [2, -1, -1]}
BEYOND = {"left_children": [1, -1, -1], "right_children": [9, -1, -1]}


def xgboost_text(**changed: Any) -> str:
    return json.dumps(made.xgboost(**changed))


file("model.json", lambda: xgboost_text()[:-40], "model.json is cut off or damaged")
file("model.json", lambda: xgboost_text(tree=CYCLE), "tree 0 in model.json goes in a circle")
file("model.json", lambda: xgboost_text(tree=BEYOND), "has a child 9, and only 3 nodes")
file("model.json", lambda: xgboost_text(trees=5), "model.json is not a whole XGBoost model")
file("model.json", lambda: xgboost_text(features="-4"), "says that it takes -4 features")
file("model.json", lambda: '{"learner": {"learner": ' + "[" * 99_999, "cut off or damaged", "deep")
file("m.ubj", lambda: made.ubjson(made.xgboost())[:-9], "m.ubj is cut off at byte")
file("m.ubj", lambda: made.ubjson(made.xgboost(tree=CYCLE)), "tree 0 in m.ubj goes in a circle")
file("m.ubj", lambda: made.ubjson(made.xgboost()) + b"more", "m.ubj has 4 bytes after its end")
file(
    "m.ubj",
    lambda: b"{L" + struct.pack(">q", 7) + b"learner[$l#L" + struct.pack(">q", 2**60),
    "m.ubj has a size of 1152921504606846976",
)
file(
    "m.ubj",
    lambda: b"{L" + struct.pack(">q", 7) + b"learner" + b"[" * 10_000,
    "m.ubj has too many values, or nests them too deep",
)
file("m.txt", lambda: made.lightgbm(end=False), "m.txt is cut off after 1 of 1 trees")
file("m.txt", lambda: made.lightgbm(trees=3), "m.txt has 1 trees, and says that it has 3")
file("m.txt", lambda: made.lightgbm(left="0 -1"), "tree 0 in m.txt goes in a circle")
file("m.txt", lambda: made.lightgbm(left="1 -9"), "tree 0 in m.txt has a leaf that is not there")
file("m.txt", lambda: made.lightgbm(left="1 x"), "a child of tree 0 in m.txt is 'x'")


@case("m.skops is cut off: it lacks 1.npy")
def skops_without_array(folder: Path, canary: Path) -> None:
    made.skops(folder / "m.skops", file="1.npy")


@case("schema.json in m.skops is not JSON")
def skops_bad_schema(folder: Path, canary: Path) -> None:
    made.zipped(folder / "m.skops", {"schema.json": "{"})


@case("schema.json in m.skops has 68000000 bytes")
def skops_enormous_schema(folder: Path, canary: Path) -> None:
    made.zipped(folder / "m.skops", {"schema.json": " " * 68_000_000})


# --- MLflow, Python, ensembles, and what is no model ----------------------------------------------


@case("MLmodel has aliases")
def mlflow_laughs(folder: Path, canary: Path) -> None:
    lines = "\n".join(f"l{i}: &l{i} [*l{i - 1}, *l{i - 1}]" for i in range(1, 40))
    (folder / "MLmodel").write_text(f"l0: &l0 [x]\n{lines}\nflavors: *l39\n")


@case("MLmodel is not YAML")
def mlflow_tag(folder: Path, canary: Path) -> None:
    (folder / "MLmodel").write_text(
        f"flavors: !!python/object/apply:os.system ['touch {canary}']\n"
    )


@case("MLmodel has only the flavors spark, of which Shoal knows none")
def mlflow_unknown(folder: Path, canary: Path) -> None:
    (folder / "MLmodel").write_text("flavors: {spark: {data: x}}\n")


@case("MLmodel names a file outside the folder: '../../etc'")
def mlflow_outside(folder: Path, canary: Path) -> None:
    (folder / "MLmodel").write_text("flavors: {onnx: {data: ../../etc}}\n")


@case("model.py is not Python: line 2")
def python_syntax(folder: Path, canary: Path) -> None:
    (folder / "model.py").write_text(
        f"open({str(canary)!r}, 'w')\nclass TritonPythonModel(:\n    pass\n"
    )


@case("the class TritonPythonModel in model.py has no method execute")
def python_without_execute(folder: Path, canary: Path) -> None:
    (folder / "model.py").write_text(
        f"open({str(canary)!r}, 'w')\nclass TritonPythonModel:\n    pass\n"
    )


@case("neither a file nor a folder")
def pipe(folder: Path, canary: Path) -> None:
    os.mkfifo(folder / "model.onnx")


file("model.onnx", lambda: b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS")
file("model.onnx", lambda: b"<!doctype html><title>Log in", "is a web page: the download needs")
file("model.h5", lambda: b"\x89HDF\r\n\x1a\n" + b"\0" * 64, "is an HDF5 file")
file("model.gguf", lambda: b"GGUF" + b"\0" * 64, "is a GGUF file")
file("libmodel.so", lambda: b"\x7fELF" + b"\0" * 64, "is a library, not a model")
file("model.tflite", lambda: b"\x1c\0\0\0TFL3" + b"\0" * 64, "is a TensorFlow Lite model")


@case("it has no files")
def nothing(folder: Path, canary: Path) -> None:
    (folder / "empty").mkdir()


def test_there_are_many() -> None:
    assert len(CASES) > 100


@pytest.mark.parametrize("name", CASES)
def test_refused_with_its_own_sentence(name: str, tmp_path: Path) -> None:
    build, words = CASES[name]
    folder, canary = tmp_path / "model", tmp_path / "canary"
    folder.mkdir()
    build(folder, canary)
    traced = name != "pickle_endless"  # tracing makes each of its steps slow
    if traced:
        tracemalloc.start()
    began = time.monotonic()
    try:
        with pytest.raises(Refusal) as refused:
            inspect(folder, server_versions={"tensorrt": "10.5"})
        took, (_, peak) = time.monotonic() - began, tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert words in str(refused.value)
    assert not canary.exists()
    assert took < MAX_SECONDS
    assert peak < MAX_MEMORY
