"""The inputs and outputs of an ONNX model, read without its weights.

Weights can take gigabytes, so the file is mapped, and only the fields that describe the graph are
read.
"""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from google.protobuf.message import DecodeError

from services.registry.formats.tensor import Tensor
from shoal.protobuf import fields

# Field numbers of onnx.proto.
_MODEL_GRAPH: Final = 7
_GRAPH_INITIALIZER: Final = 5
_GRAPH_INPUT: Final = 11
_GRAPH_OUTPUT: Final = 12
_TENSOR_NAME: Final = 8

DATA_TYPES: Final = {
    "FLOAT": "TYPE_FP32",
    "FLOAT16": "TYPE_FP16",
    "DOUBLE": "TYPE_FP64",
    "BFLOAT16": "TYPE_BF16",
    "BOOL": "TYPE_BOOL",
    "STRING": "TYPE_STRING",
    **{
        f"{sign}INT{bits}": f"TYPE_{sign}INT{bits}"
        for sign in ("", "U")
        for bits in (8, 16, 32, 64)
    },
}


class NotReadable(Exception):
    """Say what is wrong with a file."""


@dataclass(frozen=True, slots=True)
class Graph:
    """What a graph takes and returns. `defaults` are inputs that have a value of their own."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    defaults: tuple[Tensor, ...] = ()


def read_graph(path: Path) -> Graph:
    """Read the graph of an ONNX file. Raises NotReadable, OSError."""
    with path.open("rb") as file:
        if not path.stat().st_size:
            raise NotReadable(f"{path.name} is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return graph_of(data, path.name)


def graph_of(data: mmap.mmap, name: str) -> Graph:
    """Read the graph of a mapped ONNX file, called `name`. Raises NotReadable."""
    try:
        return _graph(data)
    except (IndexError, ValueError, DecodeError):
        raise NotReadable(f"{name} is not an ONNX model") from None


def _graph(data: mmap.mmap) -> Graph:
    inputs: list[bytes] = []
    outputs: list[bytes] = []
    weights: set[str] = set()
    model = _messages(data, slice(0, len(data)))
    graphs = [content for number, content in model if number == _MODEL_GRAPH]
    if not graphs:
        raise ValueError("no graph")
    for graph in graphs:
        for number, content in _messages(data, graph):
            if number == _GRAPH_INPUT:
                inputs.append(data[content])
            elif number == _GRAPH_OUTPUT:
                outputs.append(data[content])
            elif number == _GRAPH_INITIALIZER:
                weights.add(_name(data, content))
    # Up to IR version 3, every weight is also listed as an input.
    tensors = [_tensor(raw) for raw in inputs]
    return Graph(
        tuple(tensor for tensor in tensors if tensor.name not in weights),
        tuple(_tensor(raw) for raw in outputs),
        tuple(tensor for tensor in tensors if tensor.name in weights),
    )


def _messages(data: mmap.mmap, part: slice) -> Iterator[tuple[int, slice]]:
    """Yield the number and the place of each length-delimited field in `part`."""
    for number, _, content in fields(data, part, "the model"):
        if isinstance(content, slice):
            yield number, content


def _name(data: mmap.mmap, tensor: slice) -> str:
    found = [data[content] for number, content in _messages(data, tensor) if number == _TENSOR_NAME]
    return found[-1].decode() if found else ""


def _tensor(raw: bytes) -> Tensor:
    import onnx  # takes longer than everything else here, and numpy

    info: Any = onnx.ValueInfoProto.FromString(raw)
    kind = info.type.WhichOneof("value")
    if kind != "tensor_type":
        raise NotReadable(f"{info.name!r} is not a tensor but a {kind}, which Triton cannot pass")
    tensor = info.type.tensor_type
    element = onnx.TensorProto.DataType.Name(tensor.elem_type)
    if element not in DATA_TYPES:
        raise NotReadable(f"{info.name!r} has elements of {element}, which Triton does not support")
    if not tensor.HasField("shape"):
        raise NotReadable(f"the graph does not say how many dimensions {info.name!r} has")
    shape = tuple(
        dim.dim_value if dim.WhichOneof("value") == "dim_value" and dim.dim_value > 0 else -1
        for dim in tensor.shape.dim
    )
    return Tensor(info.name, DATA_TYPES[element], shape)
