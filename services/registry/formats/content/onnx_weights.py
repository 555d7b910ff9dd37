"""The nodes and weights of an ONNX graph, read by hand and checked within bounds."""

import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Final

from services.registry.formats.artifact import Artifact
from services.registry.formats.content.graphs import check_acyclic
from services.registry.formats.refusal import Refusal
from shoal.protobuf import fields

# Field numbers of onnx.proto.
_MODEL_GRAPH: Final = 7
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT, _GRAPH_SPARSE = 1, 5, 11, 12, 15
_NODE_INPUT, _NODE_OUTPUT, _NODE_ATTRIBUTE = 1, 2, 5
_ATTRIBUTE_TENSOR, _ATTRIBUTE_GRAPH, _ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS = 5, 6, 10, 11
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_NAME, _TENSOR_RAW, _TENSOR_EXTERNAL = 1, 2, 8, 9, 13
_TENSOR_LOCATION: Final = 14
_VALUE_NAME: Final = 1
_SPARSE_VALUES: Final = 1

_MAX_NAME: Final = 2**16  # bytes
_MAX_VALUE: Final = 2**20  # bytes
_MAX_FIELDS: Final = 20_000_000
_MAX_DEPTH: Final = 32  # graphs within nodes of graphs
_MAX_DIMS: Final = 64

# Bits of an element, by TensorProto.DataType.
_BITS: Final = {
    1: 32,
    2: 8,
    3: 8,
    4: 16,
    5: 16,
    6: 32,
    7: 64,
    9: 8,
    10: 16,
    11: 64,
    12: 32,
    13: 64,
    14: 64,
    15: 128,
    16: 16,
    17: 8,
    18: 8,
    19: 8,
    20: 8,
    21: 4,
    22: 4,
    23: 4,
    24: 8,
}


@dataclass(slots=True)
class Weights:
    """Reads a mapped model, and checks the graph and every weight in it. Raises Refusal."""

    artifact: Artifact
    name: str
    data: mmap.mmap
    external: set[str] = field(default_factory=set)
    _read: int = 0

    def check(self) -> None:
        for number, content in self._fields(slice(0, len(self.data))):
            if number == _MODEL_GRAPH and isinstance(content, slice):
                self._graph(content, 0)

    def _fields(self, part: slice) -> Iterator[tuple[int, int | slice]]:
        for number, _, content in fields(self.data, part, self.name):
            self._read += 1
            if self._read > _MAX_FIELDS:
                raise Refusal(f"{self.name} has a graph of more than {_MAX_FIELDS} fields")
            yield number, content

    def _graph(self, graph: slice, depth: int) -> None:
        if depth > _MAX_DEPTH:
            raise Refusal(f"{self.name} has graphs nested more than {_MAX_DEPTH} deep")
        nodes: list[tuple[list[str], list[str]]] = []
        known: set[str] = set()
        outputs: list[str] = []
        for number, content in self._fields(graph):
            if not isinstance(content, slice):
                continue
            if number == _GRAPH_NODE:
                nodes.append(self._node(content, depth))
            elif number == _GRAPH_INITIALIZER:
                known.add(self._tensor(content))
            elif number == _GRAPH_SPARSE:
                known |= {
                    self._tensor(values)
                    for inner, values in self._fields(content)
                    if inner == _SPARSE_VALUES and isinstance(values, slice)
                }
            elif number in (_GRAPH_INPUT, _GRAPH_OUTPUT):
                if content.stop - content.start > _MAX_VALUE:
                    raise Refusal(f"{self.name} describes an input or output in too many bytes")
                value = self._text(content, _VALUE_NAME)
                if number == _GRAPH_INPUT:
                    known.add(value)
                else:
                    outputs.append(value)
        if depth == 0:
            self._check_nodes(nodes, known, outputs)

    def _check_nodes(
        self, nodes: list[tuple[list[str], list[str]]], known: set[str], outputs: list[str]
    ) -> None:
        """Check that every value comes from somewhere, once, and from no later one than itself."""
        producers: dict[str, int] = {}
        for index, (_, produced) in enumerate(nodes):
            for value in filter(None, produced):
                if value in producers:
                    raise Refusal(f"two nodes in {self.name} produce {_short(value)}")
                producers[value] = index
        for taken, _ in nodes:
            for value in filter(None, taken):
                if value not in producers and value not in known:
                    raise Refusal(f"a node in {self.name} takes {_short(value)}, from nowhere")
        for value in outputs:
            if value not in producers and value not in known:
                raise Refusal(f"nothing in {self.name} produces its output {_short(value)}")
        ordered = all(
            producers.get(value, -1) < index
            for index, (taken, _) in enumerate(nodes)
            for value in taken
        )
        if not ordered:
            check_acyclic(
                {
                    value: [one for one in taken if one in producers]
                    for taken, produced in nodes
                    for value in filter(None, produced)
                },
                self.name,
            )

    def _node(self, node: slice, depth: int) -> tuple[list[str], list[str]]:
        taken: list[str] = []
        produced: list[str] = []
        for number, content in self._fields(node):
            if not isinstance(content, slice):
                continue
            if number == _NODE_INPUT:
                taken.append(self._name(content))
            elif number == _NODE_OUTPUT:
                produced.append(self._name(content))
            elif number == _NODE_ATTRIBUTE:
                self._attribute(content, depth)
        return taken, produced

    def _attribute(self, attribute: slice, depth: int) -> None:
        for number, content in self._fields(attribute):
            if not isinstance(content, slice):
                continue
            if number in (_ATTRIBUTE_TENSOR, _ATTRIBUTE_TENSORS):
                self._tensor(content)
            elif number in (_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS):
                self._graph(content, depth + 1)

    def _tensor(self, tensor: slice) -> str:
        """Check a tensor's data and return its name."""
        name, kind, raw, external = "", 0, -1, False
        dims: list[int] = []
        entries: dict[str, str] = {}
        for number, content in self._fields(tensor):
            if isinstance(content, slice):
                if number == _TENSOR_NAME:
                    name = self._name(content)
                elif number == _TENSOR_RAW:
                    raw = content.stop - content.start
                elif number == _TENSOR_EXTERNAL:
                    entries[self._text(content, 1)] = self._text(content, 2)
                elif number == _TENSOR_DIMS:  # packed
                    dims += self._packed(content)
            elif number == _TENSOR_DIMS:
                dims.append(content)
            elif number == _TENSOR_TYPE:
                kind = content
            elif number == _TENSOR_LOCATION:
                external = content == 1
        if len(dims) > _MAX_DIMS or any(dim >= 2**63 for dim in dims):
            raise Refusal(f"the weight {_short(name)} in {self.name} has an impossible shape")
        wanted = (math.prod(dims) * _BITS[kind] + 7) // 8 if kind in _BITS else -1
        if external:
            self._check_external(name, entries, wanted)
        elif raw >= 0 and wanted >= 0 and raw != wanted:
            raise Refusal(
                f"the weight {_short(name)} in {self.name} should have {wanted} bytes, and has "
                f"{raw}"
            )
        return name

    def _check_external(self, tensor: str, entries: dict[str, str], wanted: int) -> None:
        location = entries.get("location", "")
        path = PurePosixPath(location)
        what = f"the weight {_short(tensor)} in {self.name}"
        shown = location[:200]
        if not location or path.is_absolute() or ".." in path.parts or "\\" in location:
            raise Refusal(f"{what} lies outside the model's folder, at {shown!r}")
        name = str(path)
        if name in self.artifact.outside:
            raise Refusal(f"{what} lies in {shown!r}, a link that leads out of the model's folder")
        if name not in self.artifact.files:
            raise Refusal(f"{what} lies in {shown!r}, which is missing")
        offset, length = _number(entries, "offset", what, 0), _number(entries, "length", what, -1)
        if length >= 0 and wanted >= 0 and length != wanted:
            raise Refusal(f"{what} should have {wanted} bytes, and says that it has {length}")
        end, size = offset + (length if length >= 0 else max(wanted, 0)), self.artifact.files[name]
        if end > size:
            raise Refusal(f"{what} ends at byte {end} of {shown!r}, which has only {size}")
        self.external.add(name)

    def _packed(self, part: slice) -> list[int]:
        found, number, shift = [], 0, 0
        for byte in self.data[part.start : min(part.stop, part.start + 10 * _MAX_DIMS)]:
            number |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                found.append(number)
                number = shift = 0
        return found

    def _text(self, message: slice, wanted: int) -> str:
        found = ""
        for number, content in self._fields(message):
            if number == wanted and isinstance(content, slice):
                found = self._name(content)
        return found

    def _name(self, part: slice) -> str:
        if part.stop - part.start > _MAX_NAME:
            raise Refusal(f"{self.name} has a name of {part.stop - part.start} bytes")
        return self.data[part].decode(errors="backslashreplace")


def _number(entries: dict[str, str], key: str, what: str, otherwise: int) -> int:
    text = entries.get(key, "")
    if not text:
        return otherwise
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise Refusal(f"{what} has the {key} {text[:50]!r}, which is no number")
    return int(text)


def _short(name: str) -> str:
    return repr(name if len(name) <= 100 else f"{name[:100]}…")
