"""Messages of Triton's protocol, with tensors put in and taken out without needless copies.

The message classes come from third_party/triton and live in a descriptor pool of their own.
tritonclient, KServe and others register the same names in protobuf's default pool, and two messages
of one name in one pool are an error.
"""

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

# Made by: buf build third_party/triton --as-file-descriptor-set --exclude-source-info -o …
DESCRIPTORS: Final = Path(__file__).with_name("triton.binpb")

_RAW_INPUT: Final = 7  # ModelInferRequest.raw_input_contents
_RAW_OUTPUT: Final = 6  # ModelInferResponse.raw_output_contents
_STREAM_RESPONSE: Final = 2  # ModelStreamInferResponse.infer_response

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types


@cache
def message(name: str) -> Any:
    """Return the class of the message `inference.{name}`."""
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(f"inference.{name}"))


@cache
def _pool() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(DESCRIPTORS.read_bytes()).file:
        pool.AddSerializedFile(file.SerializeToString())  # files come after those they import
    return pool


def request_bytes(request: Any, tensors: Iterable[Any]) -> bytes:
    """Serialize a ModelInferRequest with `tensors`, contiguous buffers, as its raw contents."""
    parts = [request.SerializeToString()]
    for tensor in tensors:
        size = tensor.nbytes if hasattr(tensor, "nbytes") else len(tensor)
        parts += (bytes((_RAW_INPUT << 3 | _BYTES,)), _encoded_varint(size), tensor)
    return b"".join(parts)


def response_parts(response: bytes | memoryview) -> tuple[Any, list[memoryview]]:
    """Return a ModelInferResponse without its raw contents, and those as views into `response`.

    Raises DecodeError.
    """
    rest, tensors = _split(memoryview(response), _RAW_OUTPUT)
    return message("ModelInferResponse").FromString(rest), tensors


def stream_parts(response: bytes) -> tuple[str, memoryview]:
    """Return the error and the serialized ModelInferResponse of a ModelStreamInferResponse.

    Either is empty where the response has none. Raises DecodeError.
    """
    rest, found = _split(memoryview(response), _STREAM_RESPONSE)
    error = message("ModelStreamInferResponse").FromString(rest).error_message
    if len(found) > 1:  # protobuf would merge them; no server sends that
        raise DecodeError("a response of the stream holds more than one answer")
    return error, found[0] if found else memoryview(b"")


def _split(message_: memoryview, number: int) -> tuple[bytes, list[memoryview]]:
    """Return the message without its length-delimited field `number`, and that field's values."""
    wanted = number << 3 | _BYTES
    rest: list[memoryview] = []
    found: list[memoryview] = []
    position, end = 0, len(message_)
    while position < end:
        start = position
        tag, position = _varint(message_, position)
        kind = tag & 7
        if kind == _BYTES:
            size, position = _varint(message_, position)
            position += size
            if tag == wanted and position <= end:
                found.append(message_[position - size : position])
                continue
        elif kind == _VARINT:
            _, position = _varint(message_, position)
        elif kind == _FIXED64:
            position += 8
        elif kind == _FIXED32:
            position += 4
        else:
            raise DecodeError(f"wire type {kind} at byte {start}")
        if position > end:
            raise DecodeError("the message ends in the middle of a field")
        rest.append(message_[start:position])
    return b"".join(rest), found


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    """Return the number at `position`, and the position after it. Raises DecodeError."""
    number = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise DecodeError("the message ends in the middle of a number")
        byte = data[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position
    raise DecodeError("a number has more than 10 bytes")


def _encoded_varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
