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

from shoal.protobuf import Malformed, split_field, with_fields

# Made by: buf build third_party/triton --as-file-descriptor-set --exclude-source-info -o …
DESCRIPTORS: Final = Path(__file__).with_name("triton.binpb")

_RAW_INPUT: Final = 7  # ModelInferRequest.raw_input_contents
_RAW_OUTPUT: Final = 6  # ModelInferResponse.raw_output_contents
_STREAM_RESPONSE: Final = 2  # ModelStreamInferResponse.infer_response


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
    return with_fields(request.SerializeToString(), _RAW_INPUT, tensors)


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
    """Split a message as `split_field` does. Raises DecodeError."""
    try:
        return split_field(message_, number)
    except Malformed as error:
        raise DecodeError(str(error)) from error
