"""The few fields of a ModelInferRequest that routing needs, read without decoding the rest.

A protobuf message may repeat a scalar field, and the last one counts. The walk honours that, so
the Router and Triton cannot disagree about which model was asked for, and an appended field
overrides the one before it.
"""

from functools import lru_cache
from typing import Final, NamedTuple

# Field numbers of inference.ModelInferRequest; in ModelInferResponse the first two are the same.
MODEL_NAME: Final = 1
MODEL_VERSION: Final = 2

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_VARINT_BYTES: Final = 10
# Of tags and sizes. C++ parsers drop the bits of a tag beyond 32, and would see another field.
_NUMBER_BYTES: Final = 5
_MAX_TAG: Final = 2**32 - 1


class Malformed(ValueError):
    """The bytes are no protobuf message."""


class Head(NamedTuple):
    model: str
    version: str
    id: str


def head(message: bytes) -> Head:
    """Model, version and id of a serialized ModelInferRequest. Raises Malformed."""
    found = [b"", b"", b"", b""]
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
        return Head(found[1].decode(), found[2].decode(), found[3].decode())
    except UnicodeDecodeError as error:
        raise Malformed(f"a name is not UTF-8: {error.reason}") from error


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
