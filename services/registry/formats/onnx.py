"""Inputs and outputs of an ONNX model, read without its weights.

A file may hold two gigabytes of them, so it is mapped, and only the fields that describe the graph
are looked at.
"""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import onnx
from google.protobuf.message import DecodeError

# Field numbers of onnx.proto.
_MODEL_GRAPH: Final = 7
_GRAPH_INITIALIZER: Final = 5
_GRAPH_INPUT: Final = 11
_GRAPH_OUTPUT: Final = 12
_TENSOR_NAME: Final = 8

_VARINT, _I64, _BYTES, _I32 = 0, 1, 2, 5  # wire types

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
    """The text says what is wrong with the file."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """`shape`: -1 for a size that the graph leaves open. `data_type` as Triton spells it."""

    name: str
    data_type: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Graph:
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


def read(path: Path) -> Graph:
    """Raises NotReadable, OSError."""
    with path.open("rb") as file:
        if not path.stat().st_size:
            raise NotReadable(f"{path.name} is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return _graph(data)
            except (IndexError, ValueError, DecodeError):
                raise NotReadable(f"{path.name} is not an ONNX model") from None


def _graph(data: mmap.mmap) -> Graph:
    inputs: list[bytes] = []
    outputs: list[bytes] = []
    weights: set[str] = set()
    graphs = [span for number, span in _fields(data, 0, len(data)) if number == _MODEL_GRAPH]
    if not graphs:
        raise ValueError("no graph")
    for start, end in graphs:
        for number, (first, last) in _fields(data, start, end):
            if number == _GRAPH_INPUT:
                inputs.append(data[first:last])
            elif number == _GRAPH_OUTPUT:
                outputs.append(data[first:last])
            elif number == _GRAPH_INITIALIZER:
                weights.add(_name(data, first, last))
    # Up to IR version 3 every weight is listed as an input too.
    tensors = (_tensor(raw) for raw in inputs)
    return Graph(
        tuple(tensor for tensor in tensors if tensor.name not in weights),
        tuple(_tensor(raw) for raw in outputs),
    )


def _name(data: mmap.mmap, start: int, end: int) -> str:
    names = [
        data[first:last]
        for number, (first, last) in _fields(data, start, end)
        if number == _TENSOR_NAME
    ]
    return names[-1].decode() if names else ""


def _tensor(raw: bytes) -> Tensor:
    info: Any = onnx.ValueInfoProto.FromString(raw)
    kind = info.type.WhichOneof("value")
    if kind != "tensor_type":
        raise NotReadable(f"{info.name!r} is no tensor but a {kind}, which Triton cannot pass")
    tensor = info.type.tensor_type
    element = onnx.TensorProto.DataType.Name(tensor.elem_type)
    if element not in DATA_TYPES:
        raise NotReadable(f"{info.name!r} has elements of {element}, which Triton does not know")
    if not tensor.HasField("shape"):
        raise NotReadable(f"the graph does not say how many dimensions {info.name!r} has")
    shape = tuple(
        dim.dim_value if dim.WhichOneof("value") == "dim_value" and dim.dim_value > 0 else -1
        for dim in tensor.shape.dim
    )
    return Tensor(info.name, DATA_TYPES[element], shape)


def _fields(data: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, tuple[int, int]]]:
    """(field number, start and end of its value) of one message, top level only."""
    while at < end:
        tag, at = _varint(data, at)
        start, wire = at, tag & 7
        if wire == _VARINT:
            _, at = _varint(data, at)
        elif wire == _I64:
            at += 8
        elif wire == _I32:
            at += 4
        elif wire == _BYTES:
            size, start = _varint(data, at)
            at = start + size
        else:
            raise ValueError(f"wire type {wire}")
        if at > end:
            raise ValueError("truncated")
        yield tag >> 3, (start, at)


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("varint")
