"""A ShoalError as a google.rpc.Status, which a gRPC server sends and a client reads."""

from collections.abc import Sequence
from typing import Any, Final, NoReturn

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from services.common.errors import ShoalError

DOMAIN: Final = "shoal"
DETAILS_KEY: Final = "grpc-status-details-bin"

_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}


def grpc_code(error: ShoalError) -> grpc.StatusCode:
    return _CODES[error.code.value]


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
    """End the call with the error's status. Always raises grpc's AbortError."""
    await context.abort(
        grpc_code(error), error.message, trailing_metadata=((DETAILS_KEY, details(error)),)
    )
    raise AssertionError("abort returned")


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
