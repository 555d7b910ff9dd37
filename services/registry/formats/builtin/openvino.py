"""OpenVINO's intermediate representation: a graph in XML, and weights in a file beside it."""

import xml.parsers.expat as expat
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from services.registry.formats.artifact import Artifact
from services.registry.formats.content.graphs import check_acyclic
from services.registry.formats.content.torch_files import one_of
from services.registry.formats.format import Described
from services.registry.formats.refusal import Refusal
from services.registry.formats.tensor import Tensor

name = "openvino"
backend = "openvino"
runs_code = ""

MAX_VERSION: Final = 11

_CHUNK: Final = 2**16  # bytes
_MAX_GRAPH: Final = 512 * 2**20  # bytes
_MAX_DEPTH: Final = 64
# A document without its end: no element, an unclosed token, a partial character, an open section.
_CUT_OFF: Final = frozenset({3, 5, 6, 20})
_TYPES: Final = {
    "FP16": "TYPE_FP16",
    "FP32": "TYPE_FP32",
    "FP64": "TYPE_FP64",
    "BF16": "TYPE_BF16",
    "I8": "TYPE_INT8",
    "I16": "TYPE_INT16",
    "I32": "TYPE_INT32",
    "I64": "TYPE_INT64",
    "U8": "TYPE_UINT8",
    "U16": "TYPE_UINT16",
    "U32": "TYPE_UINT32",
    "U64": "TYPE_UINT64",
    "BOOL": "TYPE_BOOL",
    "BOOLEAN": "TYPE_BOOL",
    "STRING": "TYPE_STRING",
}


def detect(artifact: Artifact) -> bool:
    return bool(_found(artifact))


def validate(artifact: Artifact) -> Described:
    file = one_of(_found(artifact), "model.xml", "OpenVINO graphs")
    if artifact.files[file] > _MAX_GRAPH:
        raise Refusal(f"{file} has {artifact.files[file]} bytes, more than {_MAX_GRAPH}")
    net = _read(artifact, file)
    if not 10 <= net.version <= MAX_VERSION:
        raise Refusal(
            f"{file} has IR version {net.version or 'unknown'}, and OpenVINO reads 10 to "
            f"{MAX_VERSION}: convert the model again"
        )
    weights = f"{file.removesuffix('.xml')}.bin"
    if net.weights and weights not in artifact.files:
        raise Refusal(f"{file} needs weights, and {weights} is missing")
    if net.weights > artifact.files.get(weights, 0):
        raise Refusal(
            f"{weights} is cut off: {file} needs {net.weights} bytes of it, and it has "
            f"{artifact.files[weights]}"
        )
    check_acyclic(net.edges, file)
    inputs = tuple(_tensor(layer) for layer in net.layers if layer.kind == "Parameter")
    outputs = tuple(_tensor(layer) for layer in net.layers if layer.kind == "Result")
    if not outputs:
        raise Refusal(f"the graph in {file} has no output")
    return Described(
        inputs=inputs,
        outputs=outputs,
        batched=all(tensor.shape[:1] == (-1,) for tensor in (*inputs, *outputs)),
        notes=(f"IR version {net.version}",),
        file=file,
    )


def _found(artifact: Artifact) -> list[str]:
    return [
        one
        for one, head in artifact.heads(1024)
        if head.lstrip(b"\xef\xbb\xbf \r\n\t")[:1] == b"<" and b"<net " in head
    ]


@dataclass(slots=True)
class _Layer:
    key: str
    kind: str
    label: str
    precision: str = ""
    tensor: str = ""
    ports: dict[str, str] = field(default_factory=dict)  # outputs' first names
    dims: list[int] = field(default_factory=list)


@dataclass(slots=True)
class _Net:
    """What a graph says. `weights` is how many bytes of the other file it needs."""

    version: int = 0
    weights: int = 0
    layers: list[_Layer] = field(default_factory=list)
    edges: dict[str, list[str]] = field(default_factory=dict)
    sources: dict[str, tuple[str, str]] = field(default_factory=dict)  # layer and port

    def name_results(self) -> None:
        """Name each result as the tensor that it is, by its producer's port."""
        layers = {layer.key: layer for layer in self.layers}
        for layer in self.layers:
            if layer.kind == "Result" and layer.key in self.sources:
                producer, port = self.sources[layer.key]
                if producer in layers:
                    layer.tensor = layers[producer].ports.get(port, "") or layer.tensor


def _read(artifact: Artifact, file: str) -> _Net:
    """Parse the graph piece by piece. Raises Refusal."""
    builder = _Builder(file)
    parser = expat.ParserCreate()
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.text
    parser.StartDoctypeDeclHandler = builder.doctype
    try:
        with artifact.stream(file) as stream:
            while chunk := stream.read(_CHUNK):
                parser.Parse(chunk, False)
        parser.Parse(b"", True)
    except expat.ExpatError as error:
        problem = "is cut off" if error.code in _CUT_OFF else "is not XML"
        raise Refusal(f"{file} {problem}, at line {error.lineno}") from None
    except (ValueError, OverflowError):
        raise Refusal(f"{file} has a number that is none") from None
    builder.net.name_results()
    return builder.net


class _Builder:
    """Takes a parser's events. Layers within layers (bodies of loops) are left alone."""

    def __init__(self, file: str) -> None:
        self.net = _Net()
        self._file = file
        self._path: list[str] = []
        self._layer: _Layer | None = None
        self._digits = ""

    def doctype(self, *_: object) -> None:
        raise Refusal(f"{self._file} has a DOCTYPE, whose entities could make it endless")

    def start(self, tag: str, said: Mapping[str, str]) -> None:
        self._path.append(tag)
        if len(self._path) > _MAX_DEPTH:
            raise Refusal(f"{self._file} is nested more than {_MAX_DEPTH} deep")
        match self._path:
            case ["net"]:
                self.net.version = int(said.get("version", "0"))
            case ["net", "layers", "layer"]:
                self._layer = _Layer(said.get("id", ""), said.get("type", ""), said.get("name", ""))
                self.net.layers.append(self._layer)
            case ["net", "layers", "layer", "input" | "output", "port"] if self._layer:
                self._layer.precision = said.get("precision", self._layer.precision)
                self._layer.tensor = said.get("names", "").split(",")[0] or self._layer.tensor
                self._layer.ports[said.get("id", "")] = self._layer.tensor
                self._layer.dims = []
            case ["net", "edges", "edge"]:
                source, target = said.get("from-layer", ""), said.get("to-layer", "")
                self.net.edges.setdefault(target, []).append(source)
                self.net.sources[target] = source, said.get("from-port", "")
            case [*_, "data"] if "offset" in said and "size" in said:
                start, size = int(said["offset"]), int(said["size"])
                if start < 0 or size < 0:
                    raise Refusal(f"{self._file} has weights at an impossible place")
                self.net.weights = max(self.net.weights, start + size)
        self._digits = ""

    def text(self, data: str) -> None:
        if self._path[-1] == "dim" and len(self._digits) < 32:
            self._digits += data

    def end(self, tag: str) -> None:
        ports = ["net", "layers", "layer"]
        if tag == "dim" and self._layer and self._path[:3] == ports and len(self._path) == 6:
            self._layer.dims.append(int(self._digits))
        if self._path == ports:
            self._layer = None
        self._path.pop()


def _tensor(layer: _Layer) -> Tensor:
    label = layer.tensor or layer.label
    if layer.precision not in _TYPES:
        raise Refusal(
            f"{label!r} has elements of {layer.precision or 'no type'}, which Triton "
            "does not support"
        )
    shape = tuple(dim if dim > 0 else -1 for dim in layer.dims)
    return Tensor(label.removesuffix("/sink_port_0"), _TYPES[layer.precision], shape)
