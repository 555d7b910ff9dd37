"""What a call may end with: a class for each gRPC status, and what the service said beside it."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

ERROR_DOMAIN: Final = "shoal"
_DETAILS_KEY: Final = "grpc-status-details-bin"


class CallFailed(Exception):
    """A call that a service refused, or that nobody answered; the classes below say which status.

    `reason`: a value of shoal.errors.v1.ErrorReason without its prefix; "" where the error is not
    Shoal's own (Triton's, or gRPC's when nobody answered). `metadata`: the variables of `message`.
    `retry_after`: seconds after which the same call may succeed, None where the service named
    none. `address`: what was called, as it was given to `connect`.
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
        # Exceptions cross to another process by their positional arguments, which are not enough.
        return _restored, (type(self), self.code, self.message, self.__dict__)

    @property
    def unreachable(self) -> bool:
        """Whether nobody answers at the address, rather than a service that refused."""
        return self.code is grpc.StatusCode.UNAVAILABLE and not self.reason

    @classmethod
    def of(cls, error: grpc.RpcError, address: str = "") -> "CallFailed":
        """From what grpc raises, google.rpc.Status in the trailing metadata included."""
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
    """Names, versions or tensors that cannot be used as they are."""


class DeadlineExceeded(CallFailed):
    """The call's time was over before it was answered."""


class NotFound(CallFailed):
    """No such model, version, alias or server."""


class AlreadyExists(CallFailed):
    """What was to be made is there."""


class PermissionDenied(CallFailed):
    """The caller may not do this."""


class ResourceExhausted(CallFailed):
    """Too much at once, or too large for what there is."""


class FailedPrecondition(CallFailed):
    """The state of things does not allow it: a load that fails, a pin that holds."""


class Aborted(CallFailed):
    """Somebody else was faster: read again, then repeat the change."""


class Unimplemented(CallFailed):
    """The service does not answer this call."""


class Internal(CallFailed):
    """The service, or the model, failed at its work."""


class Unavailable(CallFailed):
    """Nobody answers, or something that it takes is away just now."""


class Cancelled(CallFailed):
    """The call was given up by one of the two sides."""


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
