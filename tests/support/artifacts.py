"""Artifacts of every format, small, and built by hand so that each byte can be wrong."""

import json
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from onnx import TensorProto, helper

from shoal.protobuf import encoded

XGBOOST_TREE = {"left_children": [1, -1, -1], "right_children": [2, -1, -1]}


def onnx_model(
    nodes: list[Any] | None = None,
    *,
    weights: list[TensorProto] | None = None,
    opset: int = 20,
    ir: int = 10,
    domain: str = "",
    outputs: tuple[str, ...] = ("y",),
) -> bytes:
    """A serialized model from x to y, of the shape [batch, 4]."""

    def value(name: str) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4])

    graph = helper.make_graph(
        nodes if nodes is not None else [helper.make_node("Identity", ["x"], ["y"])],
        "graph",
        [value("x")],
        [value(name) for name in outputs],
        weights or [],
    )
    opsets = [helper.make_opsetid(domain, opset)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=ir, producer_name="test")
    return bytes(model.SerializeToString())


def external_weight(location: str, **entries: str) -> TensorProto:
    """A weight of 16 bytes in another file."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4])
    tensor.data_location = TensorProto.EXTERNAL
    for key, text in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=text)
    return tensor


def with_weight(weight: TensorProto) -> bytes:
    return onnx_model([helper.make_node("Add", ["x", "w"], ["y"])], weights=[weight])


def zipped(path: Path, files: Mapping[str, bytes | str]) -> Path:
    """Write an archive without compression, as torch does."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


FORWARD = """class M(Module):
  __parameters__ = []
  def forward(self: __torch__.M,
    x: Tensor) -> Tensor:
    return torch.relu(x)
"""


Changed = Mapping[str, bytes | str | None]


def torchscript(path: Path, changed: Changed = MappingProxyType({})) -> Path:
    """Write a TorchScript module; `changed` are files of it, None for those to leave out."""
    files: dict[str, bytes | str] = {
        "m/data.pkl": b"\x80\x02c__torch__\nM\nq\x00)\x81q\x01.",
        "m/code/__torch__.py": FORWARD,
        "m/constants.pkl": b"\x80\x02).",
        "m/version": "3\n",
    }
    return zipped(path, _changed(files, changed))


def exported(path: Path, changed: Changed = MappingProxyType({})) -> Path:
    """Write a program of torch.export."""
    sizes = [{"as_expr": {"expr_str": "s0"}}, {"as_int": 4}]
    program = {
        "graph_module": {
            "graph": {"tensor_values": {n: {"dtype": 7, "sizes": sizes} for n in ("x", "relu")}},
            "signature": {
                "input_specs": [
                    {"parameter": {"arg": {"name": "w"}}},
                    {"user_input": {"arg": {"as_tensor": {"name": "x"}}}},
                ],
                "output_specs": [{"user_output": {"arg": {"as_tensor": {"name": "relu"}}}}],
            },
        },
        "torch_version": "2.13.0",
    }
    files: dict[str, bytes | str] = {
        "m/archive_format": "pt2",
        "m/archive_version": "0",
        "m/models/model.json": json.dumps(program),
        "m/data/weights/model_weights_config.json": json.dumps(
            {"config": {"w": {"path_name": "weight_0"}}}
        ),
        "m/data/weights/weight_0": b"\0" * 16,
    }
    return zipped(path, _changed(files, changed))


def _changed(files: dict[str, bytes | str], changed: Changed) -> dict[str, bytes | str]:
    merged = {**files, **{f"m/{name}": content for name, content in changed.items()}}
    return {name: content for name, content in merged.items() if content is not None}


def safetensors(tensors: Mapping[str, Any] | None = None, data: bytes = b"\0" * 16) -> bytes:
    said = {"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}
    header = json.dumps(said if tensors is None else tensors).encode()
    return struct.pack("<Q", len(header)) + header + data


def transformers(folder: Path, **config: Any) -> Path:
    """Write a folder of transformers, with safetensors."""
    folder.mkdir(exist_ok=True)
    said = {"model_type": "bert", "architectures": ["BertModel"], **config}
    (folder / "config.json").write_text(json.dumps(said))
    (folder / "model.safetensors").write_bytes(safetensors())
    return folder


def message(number: int, content: bytes | str | int) -> bytes:
    """Return a protobuf field."""
    if isinstance(content, int):
        return encoded(number << 3) + encoded(content)
    raw = content.encode() if isinstance(content, str) else content
    return encoded(number << 3 | 2) + encoded(len(raw)) + raw


def saved_model(
    *, tag: str = "serve", signature: str = "serving_default", op: str = "Relu", dtype: int = 1
) -> bytes:
    """Return a saved_model.pb with one signature from x to y, of the shape [-1, 4]."""
    shape = message(2, message(1, 2**64 - 1)) + message(2, message(1, 4))
    info = message(2, dtype) + message(3, shape)

    def entry(name: str, value: bytes) -> bytes:
        return message(1, name) + message(2, value)

    serving = message(1, entry("x", info)) + message(2, entry("y", info))
    graph = message(1, message(4, tag) + message(5, "2.20.0"))
    graph += message(2, message(1, message(1, "node") + message(2, op)))
    graph += message(5, entry(signature, serving))
    return message(1, 1) + message(2, graph)


def plan(version: tuple[int, int, int, int] = (10, 5, 0, 18), *, form: int = 0) -> bytes:
    return b"ftrt" + struct.pack("<I16s4B", form, b"", *version) + b"\0" * 1000


def openvino(
    *, version: int = 11, size: int = 16, edges: str = "", before: str = "", dim: str = "-1"
) -> str:
    port = f'<port id="0" precision="FP32" names="{{}}"><dim>{dim}</dim><dim>4</dim></port>'
    return f"""<?xml version="1.0"?>{before}
<net name="m" version="{version}"><layers>
<layer id="0" name="x" type="Parameter"><output>{port.format("x")}</output></layer>
<layer id="1" name="w" type="Const"><data offset="0" size="{size}"/></layer>
<layer id="2" name="add" type="Add"><input>{port.format("")}</input>
<output>{port.format("y,add:0").replace('id="0"', 'id="1"')}</output></layer>
<layer id="3" name="add/sink_port_0" type="Result"><input>{port.format("")}</input></layer>
</layers><edges>
<edge from-layer="0" from-port="0" to-layer="2" to-port="0"/>
<edge from-layer="2" from-port="1" to-layer="3" to-port="0"/>{edges}
</edges></net>"""


def skops(
    path: Path, module: str = "sklearn.linear_model", cls: str = "Ridge", **more: Any
) -> Path:
    node = {"__module__": module, "__class__": cls, "__loader__": "ObjectNode", **more}
    return zipped(path, {"schema.json": json.dumps({**node, "_skops_version": "0.16"})})


def xgboost(*, tree: Any = XGBOOST_TREE, features: str = "4", trees: int = 1) -> dict[str, Any]:
    return {
        "learner": {
            "learner_model_param": {"num_feature": features, "num_class": "0"},
            "objective": {"name": "binary:logistic"},
            "gradient_booster": {
                "name": "gbtree",
                "model": {"gbtree_model_param": {"num_trees": str(trees)}, "trees": [tree]},
            },
        },
        "version": [3, 2, 0],
    }


def ubjson(value: Any) -> bytes:
    """Return a value as XGBoost writes it."""
    match value:
        case dict():
            return b"{" + b"".join(_text(key) + ubjson(one) for key, one in value.items()) + b"}"
        case [int(), *_]:
            return b"[$l#" + b"L" + struct.pack(f">q{len(value)}i", len(value), *value)
        case list():
            return b"[#L" + struct.pack(">q", len(value)) + b"".join(map(ubjson, value))
        case str():
            return b"S" + _text(value)
    raise TypeError(value)


def _text(text: str) -> bytes:
    return b"L" + struct.pack(">q", len(text)) + text.encode()


def lightgbm(*, trees: int = 1, left: str = "1 -1", right: str = "-2 -3", end: bool = True) -> str:
    tree = f"num_leaves=3\nleft_child={left}\nright_child={right}\n"
    return (
        "tree\nversion=v4\nmax_feature_idx=3\nobjective=binary\n"
        f"tree_sizes={' '.join(['100'] * trees)}\n\nTree=0\n{tree}\n"
    ) + ("end of trees\n" if end else "")


class Bomb:
    """An object whose pickle runs a command."""

    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        import os

        return os.system, (f"touch {self._canary}",)


def bomb(canary: Path, protocol: int = 2) -> bytes:
    return pickle.dumps(Bomb(canary), protocol)
