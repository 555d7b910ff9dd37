"""Protobuf's own encoding, as far as the Router reads and writes it without a parser."""

from collections.abc import Iterator
from itertools import repeat
from typing import Final

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types
VARINT_BYTES: Final = 10
# Of tags and sizes. C++ parsers drop the bits of a tag beyond 32, and would see another field.
NUMBER_BYTES: Final = 5
MAX_TAG: Final = 2**32 - 1

_MAX_INT: Final = 2**64 - 1


class Malformed(ValueError):
    """The bytes are no protobuf message."""


def fields(
    message: bytes, part: slice, whole: str, most: int
) -> Iterator[tuple[int, int, int | slice]]:
    """Numbers, wire types and contents, which are 0 for the types of fixed size. `whole`: what
    has the fields, at `most` so many."""
    position, end = part.start, part.stop
    for _ in repeat(None, most):
        if position >= end:
            break
        tag, position = varint(message, position, NUMBER_BYTES)
        if not 8 <= tag <= MAX_TAG:
            raise Malformed(f"a field number that there is not, in {whole}")
        kind = tag & 7
        content: int | slice = 0
        if kind == BYTES:
            size, position = varint(message, position, NUMBER_BYTES)
            start, position = position, position + size
            content = slice(start, position)
        elif kind == VARINT:
            content, position = varint(message, position, VARINT_BYTES)
        elif kind in (FIXED64, FIXED32):
            position += 8 if kind == FIXED64 else 4
        else:
            raise Malformed(f"wire type {kind} in {whole}")
        if position > end:
            break
        yield tag >> 3, kind, content
    if position > end:
        raise Malformed(f"{whole} ends in the middle of a field")
    if position < end:
        raise Malformed(f"more than {most} fields in {whole}")


def signed(number: int) -> int:
    """An unsigned number of 64 bits as C++ casts it to a signed one."""
    return number - 2**64 if number >= 2**63 else number


def text_field(number: int, text: str) -> bytes:
    data = text.encode()
    return bytes((number << 3 | BYTES,)) + encoded(len(data)) + data


def encoded(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def varint(message: bytes, position: int, longest: int) -> tuple[int, int]:
    """The number at `position`, of at most `longest` bytes, and where it ends."""
    result = 0
    for index in range(longest):
        if position >= len(message):
            raise Malformed("it ends in the middle of a number")
        byte = message[position]
        position += 1
        result |= (byte & 0x7F) << (7 * index)
        if not byte & 0x80:
            return result & _MAX_INT, position
    raise Malformed(f"a number of more than {longest} bytes at byte {position}")
