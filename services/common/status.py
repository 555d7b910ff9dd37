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

#: The metadata of a call whose caller takes errors of any length (see `channels.control`).
WHOLE_ERRORS: Final = ("x-shoal-whole-errors", "1")

# Bytes. The same text may come thrice: once by itself, and twice in the details.
_LONGEST: Final = 1800
_SHORTEST: Final = 64
_BASE64: Final = 4 / 3

#: gRPC's status codes by their number on the wire.
CODES: Final = {code.value[0]: code for code in grpc.StatusCode}


def grpc_code(error: ShoalError) -> grpc.StatusCode:
    return CODES[error.code.value]


def details(error: ShoalError) -> bytes:
    """Return the serialized google.rpc.Status, with ErrorInfo, and RetryInfo if that may help."""
    status = status_pb2.Status(code=error.code.value, message=error.message)
    info = error_details_pb2.ErrorInfo(domain=DOMAIN, reason=error.reason, metadata=error.metadata)
    _pack(status, info)
    if error.retry_after is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(round(error.retry_after * 1e9))
        _pack(status, error_details_pb2.RetryInfo(retry_delay=delay))
    return bytes(status.SerializeToString())


async def abort(context: "grpc.aio.ServicerContext[Any, Any]", error: ShoalError) -> NoReturn:
    """End the call with the error's status, cut to what clients take unless they want it whole.

    Always raises grpc's AbortError.
    """
    text, status = error.message, details(error)
    if WHOLE_ERRORS not in map(tuple, context.invocation_metadata() or ()):
        text, status = fitting(text, status)
    await context.abort(grpc_code(error), text, trailing_metadata=((DETAILS_KEY, status),))
    raise AssertionError("abort returned")


def fitting(text: str, status: bytes) -> tuple[str, bytes]:
    """Return an error's text and its google.rpc.Status, cut to what clients take."""
    kept, shown, longest = text, status, _LONGEST
    while longest >= _SHORTEST and not _fits(kept, shown):
        kept, shown = cut(text, longest), _shortened(status, longest)
        longest //= 2
    return kept, shown


def _shortened(raw: bytes, longest: int) -> bytes:
    """Return a google.rpc.Status with each of its texts cut to `longest` bytes."""
    status = status_pb2.Status.FromString(raw)
    status.message = cut(status.message, longest)
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            for key, value in info.metadata.items():
                info.metadata[key] = cut(value, longest)
            detail.Pack(info)
    return bytes(status.SerializeToString())


def _fits(text: str, status: bytes) -> bool:
    room = ROOM - _size_in_trailers(len(status))
    return MOST_ENCODED * len(text) <= room or encoded_size(text) <= room


def _size_in_trailers(size: int) -> int:
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
