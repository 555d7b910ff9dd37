"""A ShoalError as a google.rpc.Status, which a gRPC server sends and a client reads."""

from collections.abc import Sequence
from typing import Any, Final, NoReturn

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from services.common.errors import ShoalError
from services.common.trailers import MOST_ENCODED, ROOM, cut, encoded_size

DOMAIN: Final = "shoal"
DETAILS_KEY: Final = "grpc-status-details-bin"

# Bytes. The same text may come thrice: once by itself, and twice in the details.
_LONGEST: Final = 1800
_SHORTEST: Final = 64
_BASE64: Final = 4 / 3

#: gRPC's status codes by their number on the wire.
CODES: Final = {code.value[0]: code for code in grpc.StatusCode}


def grpc_code(error: ShoalError) -> grpc.StatusCode:
    return CODES[error.code.value]


def details(error: ShoalError, longest: int | None = None) -> bytes:
    """Return the serialized google.rpc.Status, with ErrorInfo, and RetryInfo if that may help.

    Texts are cut to `longest` bytes.
    """

    def kept(text: str) -> str:
        return text if longest is None else cut(text, longest)

    status = status_pb2.Status(code=error.code.value, message=kept(error.message))
    metadata = {key: kept(value) for key, value in error.metadata.items()}
    info = error_details_pb2.ErrorInfo(domain=DOMAIN, reason=error.reason, metadata=metadata)
    _pack(status, info)
    if error.retry_after is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(round(error.retry_after * 1e9))
        _pack(status, error_details_pb2.RetryInfo(retry_delay=delay))
    return bytes(status.SerializeToString())


async def abort(context: "grpc.aio.ServicerContext[Any, Any]", error: ShoalError) -> NoReturn:
    """End the call with the error's status, cut to what clients take. Always raises grpc's
    AbortError.
    """
    text, status = error.message, details(error)
    longest = _LONGEST
    while longest >= _SHORTEST and not _fits(text, status):
        text, status = cut(error.message, longest), details(error, longest)
        longest //= 2
    await context.abort(grpc_code(error), text, trailing_metadata=((DETAILS_KEY, status),))
    raise AssertionError("abort returned")


def _fits(text: str, status: bytes) -> bool:
    room = ROOM - size_in_trailers(len(status))
    return MOST_ENCODED * len(text) <= room or encoded_size(text) <= room


def size_in_trailers(size: int) -> int:
    """Return the bytes that a binary trailer of `size` bytes takes."""
    return round(_BASE64 * size)


def error_info(
    trailing: Sequence[tuple[str, str | bytes]] | None,
) -> error_details_pb2.ErrorInfo | None:
    """Return the ErrorInfo in a failed call's trailing metadata, or None."""
    for key, value in trailing or ():
        if key != DETAILS_KEY:
            continue
        raw = value if isinstance(value, bytes) else value.encode()
        for detail in status_pb2.Status.FromString(raw).details:
            info = error_details_pb2.ErrorInfo()
            if detail.Unpack(info):
                return info
    return None


def _pack(status: status_pb2.Status, message: Any) -> None:
    packed = any_pb2.Any()
    packed.Pack(message)
    status.details.append(packed)
