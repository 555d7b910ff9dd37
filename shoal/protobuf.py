"""Protobuf's wire encoding, for code that reads or writes a message without parsing all of it."""

from collections.abc import Iterable, Iterator
from itertools import repeat
from typing import Final, Protocol

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types
VARINT_BYTES: Final = 10  # the longest varint
# The longest tag or size. C++ parsers drop a tag's bits beyond 32 and would see another field.
NUMBER_BYTES: Final = 5
MAX_TAG: Final = 2**32 - 1

_MAX_INT: Final = 2**64 - 1


class Malformed(ValueError):
    """The bytes are not a protobuf message."""


class Octets(Protocol):
    """Bytes in memory or in a mapped file."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> int: ...


def fields(
    message: Octets, part: slice, whole: str, most: int = 2**63 - 1
) -> Iterator[tuple[int, int, int | slice]]:
    """Yield the number, wire type and content of each field in `part` of a message.

    The content is a number, a slice of `message`, or 0 for the types of fixed size. Raises
    Malformed, which names `whole`, also when there are more than `most` fields.
    """
    position, end = part.start, part.stop
    for _ in repeat(None, most):
        if position >= end:
            break
        tag, position = varint(message, position, NUMBER_BYTES)
        if not 8 <= tag <= MAX_TAG:
            raise Malformed(f"an impossible field number in {whole}")
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
    """Return an unsigned 64-bit number as C++ casts it to a signed one."""
    return number - 2**64 if number >= 2**63 else number


def text_field(number: int, text: str) -> bytes:
    """Return a whole string field. `number` is at most 15."""
    data = text.encode()
    return bytes((number << 3 | BYTES,)) + encoded(len(data)) + data


def encoded(number: int) -> bytes:
    """Return an unsigned number as a varint."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def varint(message: Octets, position: int, longest: int) -> tuple[int, int]:
    """Return the number at `position`, and the position after it.

    Raises Malformed for a number that is cut off, or takes more than `longest` bytes.
    """
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


def split_field(message: memoryview, number: int) -> tuple[bytes, list[memoryview]]:
    """Split a message into itself without its length-delimited field `number`, and that field's
    values as views into `message`. Raises Malformed.
    """
    wanted = number << 3 | BYTES
    kept: list[memoryview] = []
    values: list[memoryview] = []
    position, end = 0, len(message)
    while position < end:
        start = position
        tag, position = varint(message, position, VARINT_BYTES)
        kind = tag & 7
        if kind == BYTES:
            size, position = varint(message, position, VARINT_BYTES)
            position += size
            if tag == wanted and position <= end:
                values.append(message[position - size : position])
                continue
        elif kind == VARINT:
            _, position = varint(message, position, VARINT_BYTES)
        elif kind in (FIXED64, FIXED32):
            position += 8 if kind == FIXED64 else 4
        else:
            raise Malformed(f"wire type {kind} at byte {start}")
        if position > end:
            raise Malformed("it ends in the middle of a field")
        kept.append(message[start:position])
    return b"".join(kept), values


def with_fields(
    head: bytes, number: int, values: Iterable[bytes | bytearray | memoryview]
) -> bytes:
    """Return the message `head` with `values` as its length-delimited field `number`, which is at
    most 15."""
    tag = bytes((number << 3 | BYTES,))
    parts: list[bytes | bytearray | memoryview] = [head]
    for value in values:
        parts += (tag + encoded(memoryview(value).nbytes), value)
    return b"".join(parts)
