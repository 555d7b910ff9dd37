"""ONNX: one file, and perhaps files of weights beside it."""

import mmap
from typing import Final

from services.registry.formats.artifact import Artifact
from services.registry.formats.content.onnx_weights import Weights
from services.registry.formats.format import Described
from services.registry.formats.onnx import NotReadable, graph_of
from services.registry.formats.refusal import Refusal
from shoal.protobuf import Malformed, fields, varint

name = "onnx"
backend = "onnxruntime"
runs_code = ""

# What the ONNX Runtime of deploy/triton reads: 1.31.
MAX_OPSETS: Final = {"": 26, "ai.onnx": 26, "ai.onnx.ml": 5}
MAX_IR: Final = 13

_HEAD: Final = 4096
_IR, _PRODUCER, _PRODUCER_VERSION, _GRAPH, _OPSET = 1, 2, 3, 7, 8
# Fields of a ModelProto that may come before its graph.
_BEFORE: Final = frozenset({2, 3, 4, 5, 6, 8, 14, 20, 25, 26})
_SHORT: Final = frozenset({2, 3, 4})  # who made it, and for what
_MAX_TEXT: Final = 1024


def detect(artifact: Artifact) -> bool:
    return bool(_found(artifact))


def validate(artifact: Artifact) -> Described:
    found = _found(artifact)
    file = "model.onnx" if "model.onnx" in found else found[0]
    if len(found) > 1 and file != "model.onnx":
        raise Refusal(f"it has several ONNX models, {', '.join(found[:5])}: call one model.onnx")
    with artifact.mapped(file) as data:
        assert isinstance(data, mmap.mmap)
        try:
            notes = _check_versions(data, file)
            weights = Weights(artifact, file, data)
            weights.check()
            graph = graph_of(data, file)
        except Malformed as error:
            raise Refusal(f"{file} is cut off or damaged: {error}") from None
        except NotReadable as error:
            raise Refusal(str(error)) from None
        except RecursionError:
            raise Refusal(f"{file} has types that are nested too deep") from None
    if not graph.outputs:
        raise Refusal(f"the graph in {file} has no output")
    tensors = (*graph.inputs, *graph.outputs)
    return Described(
        inputs=graph.inputs,
        outputs=graph.outputs,
        batched=all(tensor.shape[:1] == (-1,) for tensor in tensors),
        notes=(*notes, *(f"weights in {one}" for one in sorted(weights.external))),
        file=file,
        defaults=graph.defaults,
    )


def _found(artifact: Artifact) -> list[str]:
    return [one for one, head in artifact.heads(_HEAD) if is_onnx(head)]


def is_onnx(head: bytes) -> bool:
    """Return whether a file that begins so is a ModelProto: an IR version, then what it may have,
    then a graph."""
    if len(head) < 4 or head[0] != _IR << 3 or not 1 <= head[1] < 0x80:
        return False
    position, seen = 2, 0
    try:
        while position < len(head):
            tag, position = varint(head, position, 5)
            if tag == _GRAPH << 3 | 2:
                return True
            if tag >> 3 not in _BEFORE or tag & 7 not in (0, 2):
                return False
            size, position = varint(head, position, 10)
            if tag & 7 == 2:
                text = head[position : position + size]
                if tag >> 3 in _SHORT and (size > _MAX_TEXT or not text.decode().isprintable()):
                    return False
                position += size
            seen += 1
    except (Malformed, UnicodeDecodeError):
        pass
    return seen > 0


def _check_versions(data: mmap.mmap, file: str) -> tuple[str, ...]:
    """Check what the model needs of a runtime; return facts about it. Raises Refusal, Malformed."""
    ir, graphs, producer = 0, 0, ["", ""]
    opsets: dict[str, int] = {}
    for number, _, content in fields(data, slice(0, len(data)), file, 100_000):
        if number == _IR and isinstance(content, int):
            ir = content
        elif number == _GRAPH:
            graphs += 1
        elif number in (_PRODUCER, _PRODUCER_VERSION) and isinstance(content, slice):
            producer[number - _PRODUCER] = _text(data, content)
        elif number == _OPSET and isinstance(content, slice):
            domain, version = _opset(data, content)
            opsets[domain] = version
    if not graphs:
        raise Refusal(f"{file} is cut off: it has no graph")
    if ir > MAX_IR:
        raise Refusal(
            f"{file} has IR version {ir}, and the servers' ONNX Runtime reads at most {MAX_IR}: "
            "export it with an older onnx"
        )
    if not opsets:
        raise Refusal(f"{file} is cut off or damaged: it names no opset")
    for domain, version in opsets.items():
        most = MAX_OPSETS.get(domain)
        if most is not None and version > most:
            raise Refusal(
                f"{file} needs opset {version} of {domain or 'ai.onnx'}, and the servers' ONNX "
                f"Runtime has at most {most}: export it with an older opset"
            )
    named = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in opsets.items())
    by = " ".join(filter(None, producer))
    return (f"opset {named}", f"IR version {ir}", *([f"made by {by}"] if by else []))


def _opset(data: mmap.mmap, part: slice) -> tuple[str, int]:
    domain, version = "", 0
    for number, _, content in fields(data, part, "an opset", 100):
        if number == 1 and isinstance(content, slice):
            domain = _text(data, content)
        elif number == 2 and isinstance(content, int):
            version = content
    return domain, version


def _text(data: mmap.mmap, part: slice) -> str:
    return data[part.start : min(part.stop, part.start + _MAX_TEXT)].decode(errors="replace")
