"""The encoding of BYTES tensors in Triton's protocol. Needs no numpy.

The elements of a BYTES tensor stand one after another, in row-major order, each behind its length
in bytes as a little-endian 32-bit number.
"""

import struct
from collections.abc import Iterable, Iterator
from typing import Final

_LENGTH: Final = struct.Struct("<I")


def pack_elements(elements: Iterable[bytes | bytearray | memoryview]) -> bytes:
    """Return the raw contents of a BYTES tensor with these elements."""
    parts: list[bytes | bytearray | memoryview] = []
    for element in elements:
        parts += (_LENGTH.pack(len(element)), element)
    return b"".join(parts)


def unpack_elements(contents: memoryview) -> Iterator[bytes]:
    """Yield the elements of a BYTES tensor. Raises ValueError where its contents are cut short."""
    position, end = 0, contents.nbytes
    while position < end:
        start = position + _LENGTH.size
        if start > end:
            raise ValueError("a BYTES tensor ends in the middle of a length")
        (size,) = _LENGTH.unpack_from(contents, position)
        position = start + size
        if position > end:
            raise ValueError("a BYTES tensor ends in the middle of an element")
        yield bytes(contents[start:position])
