"""The errors that a call can end with: one class for each gRPC status."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

ERROR_DOMAIN: Final = "shoal"
_DETAILS_KEY: Final = "grpc-status-details-bin"


class CallFailed(Exception):
    """A call that a service refused, or that nobody answered. Each status has its own subclass.

    Attributes:
        code: The gRPC status code.
        message: What went wrong and what to do, for people.
        reason: A value of `shoal.errors.v1.ErrorReason` without its prefix; "" where the error is
            not Shoal's own but Triton's, or gRPC's because nobody answered.
        metadata: The variables in `message`.
        retry_after: Seconds after which the same call may succeed; None where the service named
            none.
        address: The address that was called, as it was given to `connect`.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        *,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        retry_after: float | None = None,
        address: str = "",
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.reason = reason
        self.metadata = dict(metadata or {})
        self.retry_after = retry_after
        self.address = address

    def __str__(self) -> str:
        return f"{self.reason or self.code.name}: {self.message}"

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions are pickled by their positional arguments, which are not enough here.
        return _restored, (type(self), self.code, self.message, self.__dict__)

    @property
    def unreachable(self) -> bool:
        """True if nobody answers at the address, False if a service refused the call."""
        return self.code is grpc.StatusCode.UNAVAILABLE and not self.reason

    @classmethod
    def of(cls, error: grpc.RpcError, address: str = "") -> "CallFailed":
        """Return the error for one that grpc raised, with the details that the service sent.

        Args:
            error: The error of a call, with `google.rpc.Status` in its trailing metadata if a
                service sent one.
            address: The address that was called.
        """
        status = _status(error.trailing_metadata() or ())
        info = error_details_pb2.ErrorInfo()
        delay = error_details_pb2.RetryInfo()
        for detail in status.details:
            if not detail.Unpack(info):
                detail.Unpack(delay)
        ours = info.domain == ERROR_DOMAIN
        return _BY_CODE.get(error.code(), cls)(
            error.code(),
            error.details() or status.message,
            reason=info.reason if ours else "",
            metadata=dict(info.metadata),
            retry_after=(
                delay.retry_delay.ToNanoseconds() / 1e9 if delay.HasField("retry_delay") else None
            ),
            address=address,
        )


class InvalidArgument(CallFailed):
    """A name, a version, a tensor or another field of the request is not valid."""


class DeadlineExceeded(CallFailed):
    """The timeout of the call passed before it was answered."""


class NotFound(CallFailed):
    """There is no such model, version, alias or server."""


class AlreadyExists(CallFailed):
    """The resource that the call would create exists already."""


class PermissionDenied(CallFailed):
    """The caller is not allowed to do this."""


class ResourceExhausted(CallFailed):
    """A limit is reached: of requests, of memory, or of the size of a message or a model."""


class FailedPrecondition(CallFailed):
    """The current state does not allow it: a load failed, or a pin holds the model in memory."""


class Aborted(CallFailed):
    """Somebody else made a change in between: read again, then repeat the change."""


class Unimplemented(CallFailed):
    """The service does not support this call."""


class Internal(CallFailed):
    """The service or the model failed, or its answer cannot be read."""


class Unavailable(CallFailed):
    """Nobody answers, or something that the call needs is not available now."""


class Cancelled(CallFailed):
    """The caller or the service cancelled the call."""


_BY_CODE: Final[Mapping[grpc.StatusCode, type[CallFailed]]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.ABORTED: Aborted,
    grpc.StatusCode.UNIMPLEMENTED: Unimplemented,
    grpc.StatusCode.INTERNAL: Internal,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.CANCELLED: Cancelled,
}


def _restored(
    kind: type[CallFailed], code: grpc.StatusCode, message: str, known: Mapping[str, Any]
) -> CallFailed:
    error = kind(code, message)
    error.__dict__.update(known)
    return error


def _status(trailing: Iterable[Any]) -> status_pb2.Status:
    for key, value in trailing:
        if key == _DETAILS_KEY and isinstance(value, bytes):
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                break
    return status_pb2.Status()
