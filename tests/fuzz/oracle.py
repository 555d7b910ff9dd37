"""What protobuf reads of the bytes of a ModelInferRequest, and whether the Router's walk agrees.

The walk looks at the top level, and into inputs for their shapes, so it is compared with messages
that have no more: names are strings there, and what the walk leaves alone is bytes.
"""

from collections.abc import Iterator
from contextlib import suppress
from math import prod
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet
from tritonclient.grpc import service_pb2

from services.router.core.wire import request as wire
from services.router.core.wire.request import Head, Sequence
from shoal.protobuf import Malformed

Field = descriptor_pb2.FieldDescriptorProto
GROUP: Final = 3  # wire type

STRICTER: Final = {
    "wire type 3": "groups: nothing in Triton's protocol has one, and skipping them takes nesting",
    "a number of more than 5 bytes": "overlong sizes: C++ refuses them, Python's parser doesn't",
    "a parameter with other fields": "parsers drop, merge or keep such an entry of a map",
    "more than ": "more fields than a client sends",
    "a name of ": "longer names than a client sends",
    "an input of more than": "elements that no memory holds: Triton's product of them overflows",
    "an input with negative": "likewise, where the product is none that Triton refuses",
}
"""What the walk refuses although protobuf's Python parser takes it, by the beginning of its text,
and why."""


def _message(
    name: str,
    strings: dict[str, int],
    contents: dict[str, int],
    numbers: dict[str, int] | None = None,
) -> Any:
    """A message class of optional strings, repeated bytes and repeated int64: field numbers by
    name."""
    file = descriptor_pb2.FileDescriptorProto(name=f"{name}.proto", package="fuzz", syntax="proto3")
    message = file.message_type.add(name=name)
    for field, number in strings.items():
        message.field.add(
            name=field, number=number, type=Field.TYPE_STRING, label=Field.LABEL_OPTIONAL
        )
    for field, number in contents.items():
        message.field.add(
            name=field, number=number, type=Field.TYPE_BYTES, label=Field.LABEL_REPEATED
        )
    for field, number in (numbers or {}).items():
        message.field.add(
            name=field, number=number, type=Field.TYPE_INT64, label=Field.LABEL_REPEATED
        )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"fuzz.{name}"))


TOP: Final = _message(
    "Top",
    {"model_name": 1, "model_version": 2, "id": 3},
    {"parameters": 4, "inputs": 5, "outputs": 6, "raw_input_contents": 7},
)
ENTRY: Final = _message("Entry", {}, {"key": 1, "value": 2})
INPUT: Final = _message("Input", {}, {}, {"shape": 3})


def top_level(message: bytes) -> Head | None:
    """What the walk should find; None where protobuf refuses the top level, an input, or the
    parameters that speak of sequences."""
    try:
        top = TOP.FromString(message)
        for tensor in top.inputs:
            INPUT.FromString(tensor)
        said = dict(_entry(entry) for entry in top.parameters if _read(entry))
    except (DecodeError, UnicodeDecodeError):
        return None
    return Head(
        top.model_name,
        top.model_version,
        top.id,
        sequence(said),
        priority(said),
        any(b"classification" in output for output in top.outputs),
    )


def _read(entry: bytes) -> bool:
    """Whether an entry of `parameters` may be one that the walk looks into."""
    return b"sequence_" in entry or b"priority" in entry


def _entry(serialized: bytes) -> tuple[str, Any]:
    entry = ENTRY.FromString(serialized)
    key = (entry.key[-1] if entry.key else b"").decode()
    value = service_pb2.InferParameter()
    if key in ("sequence_id", "sequence_start", "sequence_end", "priority"):
        for part in entry.value:
            value.MergeFrom(service_pb2.InferParameter.FromString(part))
    return key, value


def _said(parameters: Any, name: str) -> int | str:
    parameter = parameters.get(name) or service_pb2.InferParameter()
    choice = parameter.WhichOneof("parameter_choice")
    if choice is None or choice == "double_param":
        return 0
    value: int | str = getattr(parameter, choice)
    return value if isinstance(value, str) else value % 2**64


def sequence(parameters: Any) -> Sequence | None:
    """From InferParameters by name."""
    id_ = _said(parameters, "sequence_id")
    if not id_:
        return None
    start, end = (bool(_said(parameters, f"sequence_{name}")) for name in ("start", "end"))
    return Sequence(id_, start, end)


def priority(parameters: Any) -> int:
    said = _said(parameters, "priority")
    return said if isinstance(said, int) else 0


def asks_for_classes(parsed: Any) -> bool:
    """Whether an output's bytes speak of classes, in whatever place."""
    return any(b"classification" in output.SerializeToString() for output in parsed.outputs)


def whole(message: bytes) -> Head | None:
    """What Triton would find, if it had protobuf's Python parser; None where that refuses."""
    try:
        parsed = service_pb2.ModelInferRequest.FromString(message)
    except DecodeError:
        return None
    parameters = {name: parsed.parameters[name] for name in parsed.parameters}
    return Head(
        parsed.model_name,
        parsed.model_version,
        parsed.id,
        sequence(parameters),
        priority(parameters),
        asks_for_classes(parsed),
    )


def disagreement(message: bytes) -> str:
    """In words, how the walk and protobuf disagree about `message`; empty where they don't."""
    wanted, full = top_level(message), whole(message)
    try:
        found = wire.head(message)
    except Malformed as refusal:
        if wanted is None and full is None:
            return ""
        return _unlisted(str(refusal), message)
    if found != wanted:
        return f"the walk read {found}, protobuf {wanted}"
    if any(_beyond_memory(message)):
        return "the walk took a shape that overflows"
    if full is not None and not _alike(found, full):
        return f"the walk read {found}, Triton would read {full}"
    return _escapes(message, found)


def _alike(found: Head, full: Head) -> bool:
    """Whether the walk found what Triton would. It says of an output that it *may* ask for classes:
    also where the word is in a part that protobuf drops, an unknown field of an entry of a map."""
    return found == full._replace(classes=full.classes or found.classes)


def _unlisted(refusal: str, message: bytes) -> str:
    """Why a refusal is none of `STRICTER`; empty where it is one, and rightly so."""
    listed = next((text for text in STRICTER if refusal.startswith(text)), None)
    if listed == "wire type 3" and not any(_groups(message)):
        return f"the walk sees a group where there is none: {refusal}"
    if listed == "a parameter with other fields" and not any(_odd_entries(message)):
        return f"the walk sees an odd parameter where there is none: {refusal}"
    if listed and listed.startswith("an input") and not any(_beyond_memory(message)):
        return f"the walk sees an odd shape where there is none: {refusal}"
    return "" if listed else f"the walk refused, protobuf did not: {refusal}"


def _groups(message: bytes) -> Iterator[bool]:
    top = TOP.FromString(message)
    yield _has_group(top)
    for tensor in top.inputs:
        yield _has_group(INPUT.FromString(tensor))
    for serialized in top.parameters:
        if _read(serialized):
            entry = ENTRY.FromString(serialized)
            yield _has_group(entry)
            for value in entry.value:
                with suppress(DecodeError):  # of a key that says nothing to anybody
                    yield _has_group(service_pb2.InferParameter.FromString(value))


def _has_group(parsed: Any) -> bool:
    fields: Any = UnknownFieldSet(parsed)
    return any(unknown.wire_type == GROUP for unknown in fields)


def _odd_entries(message: bytes) -> Iterator[bool]:
    for serialized in filter(_read, TOP.FromString(message).parameters):
        entry = ENTRY.FromString(serialized)
        unknown = len(UnknownFieldSet(entry))
        yield len(entry.key) > 1 or len(entry.value) > 1 or unknown > 0


def _beyond_memory(message: bytes) -> Iterator[bool]:
    """Whether an input's shape is one that the walk must refuse."""
    for tensor in TOP.FromString(message).inputs:
        shape = INPUT.FromString(tensor).shape
        yield len(shape) > 64 or (any(size < 0 for size in shape) and prod(shape) >= 0)
        yield prod(max(1, abs(size)) for size in shape) > 2**48


def _escapes(message: bytes, found: Head) -> str:
    """Whether an accepted message keeps anything of its own against an override."""
    for model, version in ((None, 7), ("other", 7), ("other", None)):
        changed = wire.overridden(message, model, version)
        wanted = found._replace(
            model=found.model if model is None else model,
            version=found.version if version is None else str(version),
        )
        if top_level(changed) != wanted:
            return f"overridden with {model}, {version} protobuf reads {top_level(changed)}"
        full = whole(changed)
        if (full is None) != (whole(message) is None):
            return "an override changes whether protobuf takes the message"
        if full is not None and not _alike(wanted, full):
            return f"overridden with {model}, {version} Triton would read {full}"
    return ""
