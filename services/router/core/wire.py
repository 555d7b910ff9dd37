"""The few fields of a ModelInferRequest that routing needs, read without decoding the rest.

A protobuf message may repeat a scalar field, and the last one counts. The walk honours that, so
the Router and Triton cannot disagree about which model was asked for, and an appended field
overrides the one before it.
"""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Final, NamedTuple

# Field numbers of inference.ModelInferRequest; in ModelInferResponse the first two are the same.
MODEL_NAME: Final = 1
MODEL_VERSION: Final = 2

_KEY: Final = 1  # in an entry of a map; 2 is its value
_PARAMETER: Final = 4 << 3 | 2  # an entry of the map `parameters`

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_VARINT_BYTES: Final = 10
# Of tags and sizes. C++ parsers drop the bits of a tag beyond 32, and would see another field.
_NUMBER_BYTES: Final = 5
_MAX_TAG: Final = 2**32 - 1


class Malformed(ValueError):
    """The bytes are no protobuf message."""


class Sequence(NamedTuple):
    """Of what a request says of the sequence that it belongs to."""

    id: int | str
    start: bool
    end: bool


class Head(NamedTuple):
    model: str
    version: str
    id: str
    sequence: Sequence | None = None


def head(message: bytes) -> Head:
    """Model, version, id and sequence of a serialized ModelInferRequest. Raises Malformed."""
    found = [b"", b"", b"", b""]
    said: list[bytes] = []
    position, end = 0, len(message)
    while position < end:
        tag = message[position]
        position += 1
        if tag & 0x80:
            tag, position = _varint(message, position - 1, _NUMBER_BYTES)
            if tag > _MAX_TAG:
                raise Malformed(f"a field number beyond what there is at byte {position}")
        kind = tag & 7
        if kind == _BYTES:
            size = message[position] if position < end else 0x80
            position += 1
            if size & 0x80:
                size, position = _varint(message, position - 1, _NUMBER_BYTES)
            start, position = position, position + size
            if tag <= 0x1A:  # fields 1, 2, 3 as length-delimited
                found[tag >> 3] = message[start:position]
            elif tag == _PARAMETER and b"sequence_" in message[start:position]:
                said.append(message[start:position])
        elif kind == _VARINT:
            _, position = _varint(message, position, _VARINT_BYTES)
        elif kind == _FIXED64:
            position += 8
        elif kind == _FIXED32:
            position += 4
        else:
            raise Malformed(f"wire type {kind} at byte {position}")
        if tag < 8:
            raise Malformed(f"field number 0 at byte {position}")
    if position != end:
        raise Malformed("it ends in the middle of a field")
    try:
        return Head(
            found[1].decode(),
            found[2].decode(),
            found[3].decode(),
            _sequence(said) if said else None,
        )
    except UnicodeDecodeError as error:
        raise Malformed(f"a name is not UTF-8: {error.reason}") from error


def _sequence(entries: Iterable[bytes]) -> Sequence | None:
    """From entries of `parameters`; None where they name no sequence, which 0 and "" do not."""
    said: dict[str, int | str] = {}
    for entry in entries:
        key, value = b"", b""
        for number, content in _fields(entry):
            if isinstance(content, bytes):
                key, value = (content, value) if number == _KEY else (key, content)
        # Of an InferParameter's choices the last one counts.
        said[key.decode()] = next(
            (c.decode() if isinstance(c, bytes) else c for _, c in reversed([*_fields(value)])), 0
        )
    id_ = said.get("sequence_id")
    if not id_:
        return None
    return Sequence(id_, bool(said.get("sequence_start")), bool(said.get("sequence_end")))


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Numbers and contents of the fields that are numbers or bytes."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position, _NUMBER_BYTES)
        kind = tag & 7
        if kind == _BYTES:
            size, position = _varint(message, position, _NUMBER_BYTES)
            if position + size > len(message):
                raise Malformed("a parameter ends in the middle of a field")
            yield tag >> 3, message[position : position + size]
            position += size
        elif kind == _VARINT:
            number, position = _varint(message, position, _VARINT_BYTES)
            yield tag >> 3, number
        elif kind in (_FIXED64, _FIXED32):
            position += 8 if kind == _FIXED64 else 4
        else:
            raise Malformed(f"wire type {kind} in a parameter")


def overridden(message: bytes, model: str | None, version: int | None) -> bytes:
    """The message with another model name or version, by appending what then counts."""
    return message + _tail(model, version)


@lru_cache(maxsize=10_000)
def _tail(model: str | None, version: int | None) -> bytes:
    tail = b""
    if model is not None:
        tail += _field(MODEL_NAME, model)
    if version is not None:
        tail += _field(MODEL_VERSION, str(version))
    return tail


def _field(number: int, text: str) -> bytes:
    data = text.encode()
    return bytes((number << 3 | _BYTES,)) + _encoded(len(data)) + data


def _encoded(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _varint(message: bytes, position: int, longest: int) -> tuple[int, int]:
    """The number at `position`, of at most `longest` bytes, and where it ends."""
    result = 0
    for index in range(longest):
        if position >= len(message):
            raise Malformed("it ends in the middle of a number")
        byte = message[position]
        position += 1
        result |= (byte & 0x7F) << (7 * index)
        if not byte & 0x80:
            return result, position
    raise Malformed(f"a number of more than {longest} bytes at byte {position}")
