"""Takes raw tensors out of a message, or puts them into one, without decoding them."""

from collections.abc import Iterable
from typing import Final

from shoal.protobuf import split_field, with_fields

_RAW_INPUT: Final = 7  # ModelInferRequest.raw_input_contents
_RAW_OUTPUT: Final = 6  # ModelInferResponse.raw_output_contents


def with_raw_inputs(head: bytes, contents: Iterable[bytes | memoryview]) -> bytes:
    """Return a ModelInferRequest with `contents` as its raw_input_contents. `head` is the
    serialized rest of it."""
    return with_fields(head, _RAW_INPUT, contents)


def split_raw_outputs(message: bytes) -> tuple[bytes, list[memoryview]]:
    """Split a serialized ModelInferResponse into itself without raw_output_contents, and those.

    Raises Malformed."""
    return split_field(memoryview(message), _RAW_OUTPUT)
