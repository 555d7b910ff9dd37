"""ONNX models that a test builds from nodes, with a config beside them."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper


def write_config(folder: Path, body: str, platform: str = "onnxruntime_onnx") -> None:
    group = "instance_group [{ count: 1 kind: KIND_CPU }]"
    (folder / "config.pbtxt").write_text(
        f'name: "{folder.name}"\nplatform: "{platform}"\n{body}\n{group}\n'
    )


def tensor_info(name: str, kind: int, shape: list[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def serialized(
    *nodes: onnx.NodeProto,
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    initializers: dict[str, np.ndarray] | None = None,
) -> bytes:
    constants = [onnx.numpy_helper.from_array(a, name) for name, a in (initializers or {}).items()]
    graph = helper.make_graph(list(nodes), "graph", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def rows(operator: str = "Identity") -> bytes:
    """Return a graph that applies an operator to rows of 4 floats: `y` of `x`."""
    return serialized(
        helper.make_node(operator, ["x"], ["y"]),
        inputs=[tensor_info("x", onnx.TensorProto.FLOAT, ["batch", 4])],
        outputs=[tensor_info("y", onnx.TensorProto.FLOAT, ["batch", 4])],
    )


def onnx_model(
    folder: Path, *nodes: onnx.NodeProto, file: str = "model.onnx", **graph: Any
) -> None:
    """Write version 1 of a model; `graph` is what `serialized` takes."""
    (folder / "1").mkdir(parents=True)
    (folder / "1" / file).write_bytes(serialized(*nodes, **graph))
