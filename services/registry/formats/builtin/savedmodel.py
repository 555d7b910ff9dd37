"""TensorFlow SavedModel: a folder with saved_model.pb, read by hand."""

import mmap
import re
from collections.abc import Iterator
from typing import Final

from services.registry.formats.artifact import Artifact
from services.registry.formats.format import Described
from services.registry.formats.refusal import Refusal
from services.registry.formats.tensor import Tensor
from shoal.protobuf import BYTES, VARINT, Malformed, fields, signed

name = "savedmodel"
backend = "tensorflow"
runs_code = ""

FOLDER: Final = "model.savedmodel"  # as Triton calls it
_FILE: Final = "saved_model.pb"
_SIGNATURE: Final = "serving_default"

# Field numbers of saved_model.proto and the messages in it.
_META_GRAPHS: Final = 2
_META_INFO, _GRAPH, _SIGNATURES = 1, 2, 5
_TAGS, _VERSION = 4, 5
_NODES, _LIBRARY, _FUNCTION, _FUNCTION_NODES, _OP = 1, 2, 1, 3, 2

# Operations that reach beyond the model when it answers.
_REACHING: Final = frozenset(
    {"ReadFile", "WriteFile", "MatchingFiles", "PyFunc", "PyFuncStateless", "EagerPyFunc"}
)
_TYPES: Final = {
    1: "TYPE_FP32",
    2: "TYPE_FP64",
    3: "TYPE_INT32",
    4: "TYPE_UINT8",
    5: "TYPE_INT16",
    6: "TYPE_INT8",
    7: "TYPE_STRING",
    9: "TYPE_INT64",
    10: "TYPE_BOOL",
    14: "TYPE_BF16",
    17: "TYPE_UINT16",
    19: "TYPE_FP16",
    22: "TYPE_UINT32",
    23: "TYPE_UINT64",
}
_MAX_FIELDS: Final = 10_000_000
_MAX_NAME: Final = 2**16  # bytes
_MAX_TENSORS: Final = 10_000
_SHARD: Final = re.compile(r"variables/variables\.data-\d{5}-of-(\d{5})")


def detect(artifact: Artifact) -> bool:
    return _prefix(artifact) is not None


def validate(artifact: Artifact) -> Described:
    prefix = _prefix(artifact)
    assert prefix is not None
    _check_variables(artifact, prefix)
    with artifact.mapped(prefix + _FILE) as data:
        assert isinstance(data, mmap.mmap)
        try:
            inputs, outputs, notes, code = _Reading(data).served()
        except Malformed as error:
            raise Refusal(f"{_FILE} is cut off or damaged: {error}") from None
    tensors = (*inputs, *outputs)
    return Described(
        inputs=inputs,
        outputs=outputs,
        batched=bool(tensors) and all(tensor.shape[:1] == (-1,) for tensor in tensors),
        notes=notes,
        file=prefix.rstrip("/"),
        code=code,
    )


def _prefix(artifact: Artifact) -> str | None:
    """Return the folder of the model, with its slash, or None if it is none."""
    for prefix in ("", f"{FOLDER}/"):
        if prefix + _FILE in artifact.files:
            return prefix
    return None


def _check_variables(artifact: Artifact, prefix: str) -> None:
    """Check that all files of weights are there, as far as their names tell."""
    names = [one.removeprefix(prefix) for one in artifact.files if one.startswith(prefix)]
    shards = [match for one in names if (match := _SHARD.fullmatch(one))]
    if shards and len(shards) != int(shards[0][1]):
        raise Refusal(f"it has {len(shards)} of {int(shards[0][1])} files variables.data-*")
    if shards and "variables/variables.index" not in names:
        raise Refusal("it has variables, but variables/variables.index is missing")
    if not shards and "variables/variables.index" in names:
        raise Refusal(
            "it has variables/variables.index, but the files variables.data-* are missing"
        )


class _Reading:
    """One saved_model.pb, mapped. Raises Refusal, Malformed."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._read = 0

    def served(
        self,
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[str, ...], tuple[str, ...]]:
        """Return the inputs and outputs of the serving signature, notes, and what reaches out."""
        tagged: list[str] = []
        for graph in self._messages(slice(0, len(self._data)), _META_GRAPHS):
            tags, version = self._info(graph)
            tagged += tags
            if "serve" not in tags:
                continue
            signatures = dict(self._map(graph, _SIGNATURES))
            if _SIGNATURE not in signatures:
                others = ", ".join(sorted(signatures)[:5]) or "none"
                raise Refusal(
                    f"{_FILE} has no signature {_SIGNATURE}, only {others}: save the model with "
                    "signatures={'serving_default': …}"
                )
            inputs = self._tensors(signatures[_SIGNATURE], 1)
            outputs = self._tensors(signatures[_SIGNATURE], 2)
            if not outputs:
                raise Refusal(f"the signature {_SIGNATURE} in {_FILE} has no output")
            notes = (f"saved by TensorFlow {version}",) if version else ()
            return inputs, outputs, notes, self._reaching(graph)
        if not tagged:
            raise Refusal(f"{_FILE} is cut off or no SavedModel: it has no graph with tags")
        raise Refusal(f"{_FILE} has no graph with the tag 'serve', only {', '.join(tagged[:5])}")

    def _info(self, graph: slice) -> tuple[list[str], str]:
        tags: list[str] = []
        version = ""
        for info in self._messages(graph, _META_INFO):
            for number, kind, content in self._fields(info):
                if kind == BYTES and isinstance(content, slice):
                    if number == _TAGS:
                        tags.append(self._text(content))
                    elif number == _VERSION:
                        version = self._text(content)
        return tags, version

    def _reaching(self, graph: slice) -> tuple[str, ...]:
        """Return what the graph does beyond computing."""
        found: set[str] = set()
        for part in self._messages(graph, _GRAPH):
            nodes = [(part, _NODES)]
            for library in self._messages(part, _LIBRARY):
                nodes += ((one, _FUNCTION_NODES) for one in self._messages(library, _FUNCTION))
            for owner, number in nodes:
                for node in self._messages(owner, number):
                    found |= {self._text(op) for op in self._messages(node, _OP)} & _REACHING
        return tuple(
            f"its graph has {op}, which reaches files or code outside the model"
            for op in sorted(found)
        )

    def _tensors(self, signature: slice, number: int) -> tuple[Tensor, ...]:
        found = sorted(self._map(signature, number))
        if len(found) > _MAX_TENSORS:
            raise Refusal(f"{_FILE} has a signature of {len(found)} tensors")
        return tuple(self._tensor(label, info) for label, info in found)

    def _tensor(self, label: str, info: slice) -> Tensor:
        element, shape, known = 0, [], False
        for number, kind, content in self._fields(info):
            if number == 2 and kind == VARINT and isinstance(content, int):
                element = content
            elif number == 3 and isinstance(content, slice):
                known = True
                for inner, inner_kind, value in self._fields(content):
                    if inner == 2 and isinstance(value, slice):
                        shape.append(self._size(value))
                    elif inner == 3 and inner_kind == VARINT and value:
                        known = False
        if element not in _TYPES:
            raise Refusal(f"{label!r} has elements of a type that Triton does not support")
        if not known:
            raise Refusal(f"the signature does not say how many dimensions {label!r} has")
        return Tensor(label, _TYPES[element], tuple(shape))

    def _size(self, dim: slice) -> int:
        size = 0
        for number, kind, content in self._fields(dim):
            if number == 1 and kind == VARINT and isinstance(content, int):
                size = signed(content)
        return size if size > 0 else -1

    def _map(self, message: slice, number: int) -> Iterator[tuple[str, slice]]:
        for entry in self._messages(message, number):
            key, value = "", slice(entry.stop, entry.stop)
            for inner, kind, content in self._fields(entry):
                if kind == BYTES and isinstance(content, slice):
                    if inner == 1:
                        key = self._text(content)
                    elif inner == 2:
                        value = content
            yield key, value

    def _messages(self, message: slice, wanted: int) -> Iterator[slice]:
        for number, _, content in self._fields(message):
            if number == wanted and isinstance(content, slice):
                yield content

    def _fields(self, part: slice) -> Iterator[tuple[int, int, int | slice]]:
        for found in fields(self._data, part, _FILE):
            self._read += 1
            if self._read > _MAX_FIELDS:
                raise Refusal(f"{_FILE} has more than {_MAX_FIELDS} fields")
            yield found

    def _text(self, part: slice) -> str:
        if part.stop - part.start > _MAX_NAME:
            raise Refusal(f"{_FILE} has a name of {part.stop - part.start} bytes")
        return self._data[part].decode(errors="backslashreplace")
