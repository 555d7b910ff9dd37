"""The few fields of a ModelInferRequest that routing needs, read without decoding the others.

A protobuf message may repeat a scalar field; the last occurrence counts. The walk honours that, so
the Router and Triton cannot disagree about the model that was asked for, and an appended field
overrides the one before it."""

from collections.abc import Iterator
from functools import lru_cache
from itertools import repeat
from math import prod
from typing import Final, NamedTuple

from shoal.protobuf import (
    BYTES,
    FIXED32,
    FIXED64,
    MAX_TAG,
    NUMBER_BYTES,
    VARINT,
    VARINT_BYTES,
    Malformed,
    fields,
    signed,
    text_field,
    varint,
)

# Field numbers of inference.ModelInferRequest; in ModelInferResponse the first two are the same.
MODEL_NAME: Final = 1
MODEL_VERSION: Final = 2
VERSION_MARK: Final = "0"  # in front of a version in `overridden_in_stream`

_NAMES: Final = frozenset({1 << 3 | 2, 2 << 3 | 2, 3 << 3 | 2})  # model, version, id
_INPUT: Final = 5 << 3 | 2  # an InferInputTensor, of which only the shape is read
_SHAPE: Final = 3
_CONTENTS: Final = 7 << 3 | 2  # of an input: not read
_KEY, _VALUE = 1, 2  # in an entry of a map
_PARAMETER: Final = 4 << 3 | 2  # an entry of the map `parameters`
_READ: Final = frozenset({"sequence_id", "sequence_start", "sequence_end", "priority"})
_PRIORITY_KEY: Final = b"priority"
_OUTPUT: Final = 6 << 3 | 2  # an InferRequestedOutputTensor
_CLASSES: Final = b"classification"
# The choices of an InferParameter, with their wire types: bool, int64, string, double, uint64.
_CHOICES: Final = frozenset({(1, 0), (2, 0), (3, 2), (4, 1), (5, 0)})
_BOOL: Final = 1  # among the choices of an InferParameter

# Asks for a final reply that says nothing but that it is the last.
_FINAL_REPLY: Final = b"triton_enable_empty_final_response"
_FINAL_REPLY_ENTRY: Final = (
    bytes((_KEY << 3 | 2, len(_FINAL_REPLY))) + _FINAL_REPLY + bytes((2 << 3 | 2, 2, _BOOL << 3, 1))
)

# More than any client sends, but few enough that a hostile message costs little.
_MAX_FIELDS: Final = 2**14
_MAX_TEXT: Final = 2**16  # bytes of a name, version or id
_MAX_PARAMETERS: Final = 64  # of the kinds that are read
_MAX_PARAMETER_FIELDS: Final = 16
_MAX_INPUT_FIELDS: Final = 256
_MAX_DIMENSIONS: Final = 64  # as many as numpy has
_MAX_ELEMENTS: Final = 2**48  # of a tensor; no memory holds more

# What precedes the contents of the tensors is mostly the same in one request as in the next.
LONGEST_PREAMBLE: Final = 512  # bytes
MOST_PREAMBLES: Final = 4096
_MOST_CONTENTS: Final = 64


class Sequence(NamedTuple):
    """What a request says about the sequence that it belongs to."""

    id: int | str
    start: bool
    end: bool


class Head(NamedTuple):
    """The fields that routing needs."""

    model: str
    version: str
    id: str
    sequence: Sequence | None = None
    #: In Triton's terms: 1 is the most urgent, 0 the model's default.
    priority: int = 0
    #: Whether an output may ask for classes instead of a tensor.
    classes: bool = False


class Preamble(NamedTuple):
    """How a request began, and what that says."""

    #: All bytes in front of the tensors' contents.
    preamble: bytes
    head: Head
    #: Bytes of the whole request if at most one tensor's contents followed, else 0.
    size: int
    #: All bytes up to those contents themselves.
    start: bytes


preambles: Final[dict[bytes, Preamble]] = {}  # by the first field, which is the model's name


def head(message: bytes) -> Head:
    """Return model, version, id, sequence and priority of a serialized ModelInferRequest.

    Raises Malformed, also for what protobuf accepts and no client sends: groups, more or larger
    fields than the limits above, and shapes whose elements cannot be counted."""
    first = message[: message[1] + 2] if len(message) > 1 else message
    known = preambles.get(first)
    if known is not None:
        preamble, found, size, start = known
        if len(message) == size and message.startswith(start):
            return found
        if message.startswith(preamble) and _are_contents(message, len(preamble)):
            return found
    found, size = _walk(message)
    if size <= LONGEST_PREAMBLE:
        if len(preambles) >= MOST_PREAMBLES:
            preambles.clear()
        start = message[: _contents_start(message, size)]
        whole = len(message) if start else 0
        preambles[first] = Preamble(message[:size], found, whole, start)
    return found


def _contents_start(message: bytes, position: int) -> int:
    """Return where the contents of the only tensor begin after a preamble, or 0 if there are
    several."""
    end = len(message)
    if position == end:
        return end
    size, position = varint(message, position + 1, NUMBER_BYTES)
    return position if position + size == end else 0


def _are_contents(message: bytes, position: int) -> bool:
    """Return whether nothing but the contents of a few tensors follows from `position` on. False
    may also mean that only `_walk` can tell."""
    end = len(message)
    try:
        for _ in repeat(None, _MOST_CONTENTS):
            if position >= end or message[position] != _CONTENTS:
                break
            size = message[position + 1]
            position += 2
            if size & 0x80:
                size, position = varint(message, position - 1, NUMBER_BYTES)
            position += size
    except (IndexError, Malformed):
        return False
    return position == end


def _walk(message: bytes) -> tuple[Head, int]:
    """Read a request field by field. Returns its head and the size of its preamble, after which
    there are only tensors' contents."""
    found = ["", "", "", ""]
    parameters: list[slice] = []
    classes = False
    preamble = position = 0
    end = len(message)
    try:
        for _ in repeat(None, _MAX_FIELDS):
            if position >= end:
                break
            tag = message[position]
            size = message[position + 1]
            if size < 0x80:  # most fields of most requests
                if tag == _CONTENTS:
                    position += size + 2
                    continue
                if tag == _INPUT:
                    start = position + 2
                    position = start + size
                    _check_small_input(message[start:position])
                    preamble = position
                    continue
                if tag in _NAMES:
                    start = position + 2
                    position = start + size
                    found[tag >> 3] = message[start:position].decode()
                    preamble = position
                    continue
            position += 1
            if tag & 0x80:
                tag, position = varint(message, position - 1, NUMBER_BYTES)
                if tag > MAX_TAG:
                    raise Malformed(f"a field number beyond what there is at byte {position}")
            kind = tag & 7
            if kind == BYTES:
                size = message[position]
                position += 1
                if size & 0x80:
                    size, position = varint(message, position - 1, NUMBER_BYTES)
                start, position = position, position + size
                if tag in _NAMES:
                    if size > _MAX_TEXT:
                        raise Malformed(f"a name of {size} bytes at byte {start}")
                    found[tag >> 3] = message[start:position].decode()
                elif tag == _PARAMETER and (
                    message.find(b"sequence_", start, position) >= 0
                    or message.find(_PRIORITY_KEY, start, position) >= 0
                ):
                    parameters.append(slice(start, position))
                elif tag == _OUTPUT and message.find(_CLASSES, start, position) >= 0:
                    classes = True
                elif tag == _INPUT and position <= end:
                    _check_input(message, slice(start, position))
            elif kind == VARINT:
                _, position = varint(message, position, VARINT_BYTES)
            elif kind == FIXED64:
                position += 8
            elif kind == FIXED32:
                position += 4
            else:
                raise Malformed(f"wire type {kind} at byte {position}")
            if tag < 8:
                raise Malformed(f"field number 0 at byte {position}")
            if tag != _CONTENTS:
                preamble = position
        if position < end:
            raise Malformed(f"more than {_MAX_FIELDS} fields")
        if position > end:
            raise Malformed("it ends in the middle of a field")
        sequence, priority = _parameters(message, parameters) if parameters else (None, 0)
        return Head(found[1], found[2], found[3], sequence, priority, classes), preamble
    except UnicodeDecodeError as error:
        raise Malformed(f"a name is not UTF-8: {error.reason}") from error
    except IndexError as error:
        raise Malformed("it ends in the middle of a field") from error


@lru_cache(maxsize=10_000)
def _check_small_input(tensor: bytes) -> None:
    """Check an input, once for all requests that have it: a model's inputs are alike from request
    to request."""
    _check_input(tensor, slice(0, len(tensor)))


def _check_input(message: bytes, tensor: slice) -> None:
    """Raises Malformed if the dimensions do not multiply to a number of elements.

    Triton 24.10 lets the product overflow. If the result matches the contents, the process of a
    Python model dies of such an input, and the model cannot even be unloaded. Negative products are
    refused by Triton itself."""
    shape = _dimensions(message, tensor)
    if prod(max(abs(size), 1) for size in shape) > _MAX_ELEMENTS:
        raise Malformed(f"an input of more than {_MAX_ELEMENTS} elements: {shape}")
    if min(shape, default=0) < 0 <= prod(shape):
        raise Malformed(f"an input with negative dimensions: {shape}")


def _dimensions(message: bytes, tensor: slice) -> list[int]:
    """Return the shape of an InferInputTensor."""
    shape: list[int] = []
    for number, kind, content in fields(message, tensor, "an input", _MAX_INPUT_FIELDS):
        if number != _SHAPE or kind not in (VARINT, BYTES):
            continue
        if isinstance(content, slice):
            position, end = content.start, content.stop
            while position < end and len(shape) <= _MAX_DIMENSIONS:
                size, position = varint(message, position, VARINT_BYTES)
                shape.append(signed(size))
            if position > end:
                raise Malformed("a shape ends in the middle of a number")
        else:
            shape.append(signed(content))
        if len(shape) > _MAX_DIMENSIONS:
            raise Malformed(f"an input of more than {_MAX_DIMENSIONS} dimensions")
    return shape


def _parameters(message: bytes, entries: list[slice]) -> tuple[Sequence | None, int]:
    """Return sequence and priority from entries of `parameters`. The ids 0 and "" do not name a
    sequence."""
    if len(entries) > _MAX_PARAMETERS:
        raise Malformed(f"more than {_MAX_PARAMETERS} parameters about sequences or priority")
    values: dict[str, int | str] = {}
    for entry in entries:
        key, value = _entry(message, entry)
        if key in _READ:
            values[key] = _parameter_value(message, value)
    id_, urgent = values.get("sequence_id"), values.get("priority")
    priority = urgent if isinstance(urgent, int) else 0
    if not id_:
        return None, priority
    start, end = bool(values.get("sequence_start")), bool(values.get("sequence_end"))
    return Sequence(id_, start, end), priority


def _entry(message: bytes, entry: slice) -> tuple[str, slice]:
    """Return the key and the value of an entry. Entries that repeat a field or have other fields
    are refused, since parsers differ on them."""
    found: dict[int, slice] = {}
    for number, _, content in _parameter_fields(message, entry):
        if number not in (_KEY, _VALUE) or number in found or not isinstance(content, slice):
            raise Malformed("a parameter with other fields than one key and one value")
        found[number] = content
    nothing = slice(0, 0)
    return _text(message, found.get(_KEY, nothing)), found.get(_VALUE, nothing)


def _parameter_value(message: bytes, value: slice) -> int | str:
    """Return the value of an InferParameter, 0 for a double. If there are several, the last one
    counts."""
    chosen: int | str = 0
    for number, kind, content in _parameter_fields(message, value):
        if (number, kind) in _CHOICES:
            chosen = _text(message, content) if isinstance(content, slice) else content
            if number == _BOOL:
                chosen = int(chosen != 0)
    return chosen


def _parameter_fields(message: bytes, part: slice) -> Iterator[tuple[int, int, int | slice]]:
    return fields(message, part, "a parameter", _MAX_PARAMETER_FIELDS)


def _text(message: bytes, part: slice) -> str:
    size = part.stop - part.start
    if size > _MAX_TEXT:
        raise Malformed(f"a name of {size} bytes at byte {part.start}")
    return message[part].decode()


def overridden(message: bytes, model: str | None, version: int | None) -> bytes:
    """Return the message with another model name or version, by appending fields that override
    them."""
    return message + override(model, version)


def name_fields(model: str | None, version: str | None) -> bytes:
    """Return fields that name a model and a version, leaving out what is None."""
    name = b"" if model is None else text_field(MODEL_NAME, model)
    return name if version is None else name + text_field(MODEL_VERSION, version)


def asks_for_final_reply(message: bytes) -> bool | None:
    """Return whether a serialized ModelInferRequest that `head` accepts asks for a final reply of
    its own, which says that there are no more; None if it asks in a way that Triton refuses.

    Raises Malformed."""
    if _FINAL_REPLY not in message:
        return False
    asked: bool | None = False
    for entry in _entries(message):
        if message.find(_FINAL_REPLY, entry.start, entry.stop) < 0:
            continue
        key, value = _entry(message, entry)
        if key == _FINAL_REPLY.decode():
            found = _parameter_fields(message, value)
            chosen = [number for number, kind, _ in found if (number, kind) in _CHOICES]
            asked = bool(_parameter_value(message, value)) if chosen[-1:] == [_BOOL] else None
    return asked


def _entries(message: bytes) -> Iterator[slice]:
    """Yield the entries of `parameters` in a message that `head` accepts."""
    for number, _, content in fields(message, slice(0, len(message)), "a request", _MAX_FIELDS):
        if number == _PARAMETER >> 3 and isinstance(content, slice):
            yield content


def overridden_in_stream(message: bytes, model: str | None, version: int) -> bytes:
    """Return the message with another model name or version, for a model that may be decoupled:
    Triton then says when the last reply has been sent.

    The version is the same number with a leading 0. Triton reads it as the number and repeats it
    literally in that final reply alone, while the model's own replies name the number."""
    return message + _stream_override(model, version)


@lru_cache(maxsize=10_000)
def probe(model: str, version: int) -> bytes:
    """Return a request for an existing model that Triton refuses before it looks at the inputs: its
    sequence's id is a boolean."""
    name = b"sequence_id"
    entry = bytes((_KEY << 3 | 2, len(name))) + name + bytes((_VALUE << 3 | 2, 2, _BOOL << 3, 1))
    return override(model, version) + bytes((_PARAMETER, len(entry))) + entry


@lru_cache(maxsize=10_000)
def _stream_override(model: str | None, version: int) -> bytes:
    names = name_fields(model, f"{VERSION_MARK}{version}")
    return names + bytes((_PARAMETER, len(_FINAL_REPLY_ENTRY))) + _FINAL_REPLY_ENTRY


@lru_cache(maxsize=10_000)
def override(model: str | None, version: int | None) -> bytes:
    """Return what to append to a message to override its model name or version."""
    return name_fields(model, None if version is None else str(version))
