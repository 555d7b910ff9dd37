"""Takes raw tensors out of a message, or puts them into one, without decoding them."""

from collections.abc import Iterable
from typing import Final

from shoal.protobuf import (
    BYTES,
    FIXED32,
    FIXED64,
    VARINT,
    VARINT_BYTES,
    encoded,
    varint,
)

# Tags of raw_input_contents in inference.ModelInferRequest, and of raw_output_contents in
# ModelInferResponse.
_RAW_INPUT: Final = bytes((7 << 3 | 2,))
_RAW_OUTPUT: Final = 6 << 3 | 2

Raw = bytes | memoryview


def with_raw_inputs(head: bytes, contents: Iterable[Raw]) -> bytes:
    """Return a ModelInferRequest with `contents` as its raw_input_contents. `head` is the
    serialized rest of it."""
    parts: list[Raw] = [head]
    for content in contents:
        parts += (_RAW_INPUT + encoded(len(content)), content)
    return b"".join(parts)


def split_raw_outputs(message: bytes) -> tuple[bytes, list[memoryview]]:
    """Split a serialized ModelInferResponse into itself without raw_output_contents, and those.

    Raises ValueError (Malformed) if it is not a message."""
    view = memoryview(message)
    kept: list[memoryview] = []
    contents: list[memoryview] = []
    position, end = 0, len(message)
    while position < end:
        began = position
        tag, position = varint(message, position, VARINT_BYTES)
        kind = tag & 7
        if kind == BYTES:
            size, position = varint(message, position, VARINT_BYTES)
            start, position = position, position + size
            if tag == _RAW_OUTPUT:
                contents.append(view[start:position])
                continue
        elif kind == VARINT:
            _, position = varint(message, position, VARINT_BYTES)
        elif kind in (FIXED64, FIXED32):
            position += 8 if kind == FIXED64 else 4
        else:
            raise ValueError(f"wire type {kind} at byte {began}")
        kept.append(view[began:position])
    if position != end:
        raise ValueError("it ends in the middle of a field")
    return b"".join(kept), contents
