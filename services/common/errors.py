"""The errors that several services raise, or tell apart; base of the tree of all errors.

An error that one service alone raises stands in that service's `core/errors.py`. Each has a gRPC
code, a documented reason (`shoal.errors.v1.ErrorReason`), and a text that says what to do. The text
is a template, and each of its variables is also in `metadata`. Nothing here depends on gRPC:
`status.py` turns an error into a google.rpc.Status.
"""

from typing import ClassVar

from services.common.codes import Code
from shoal.names import MODEL_NAME_RULE


class ShoalError(Exception):
    """Base of the tree. Keyword arguments fill in the template's variables.

    `retry_after` is the number of seconds after which the same call may succeed. It is sent as
    google.rpc.RetryInfo.
    """

    code: ClassVar[Code]
    reason: ClassVar[str]
    template: ClassVar[str]

    def __init__(self, *, retry_after: float | None = None, **metadata: object) -> None:
        self.metadata = {key: str(value) for key, value in metadata.items()}
        self.retry_after = retry_after
        super().__init__(self.template.format_map(self.metadata))

    @property
    def message(self) -> str:
        return str(self.args[0])


# --- the request ----------------------------------------------------------------------------------


class MalformedMessage(ShoalError):
    code, reason = Code.INVALID_ARGUMENT, "MALFORMED_MESSAGE"
    template = "the message is not a valid {message_type}: {problem}"


class InvalidName(ShoalError):
    code, reason = Code.INVALID_ARGUMENT, "INVALID_NAME"
    template = f"{{field}} {{value!r}} is not allowed: {MODEL_NAME_RULE}."

    def __init__(self, field: str, value: str) -> None:
        super().__init__(field=field, value=value[:256])


class InvalidVersion(ShoalError):
    code, reason = Code.INVALID_ARGUMENT, "INVALID_VERSION"
    template = (
        "version {version!r} of model '{model}' is not allowed: give a whole number from 1 up, an "
        "alias, or nothing for the default version."
    )


class InvalidField(ShoalError):
    code, reason = Code.INVALID_ARGUMENT, "INVALID_FIELD"
    template = "{field} cannot be used: {problem}"


# --- models and versions --------------------------------------------------------------------------


class ModelNotFound(ShoalError):
    # The first sentence is Triton's own, which clients match on.
    code, reason = Code.NOT_FOUND, "MODEL_NOT_FOUND"
    template = (
        "Request for unknown model: '{model}' is not found. No model of that name is registered: "
        "`shoal models` lists those that are, `shoal register PATH --name {model}` adds it."
    )


class VersionNotFound(ShoalError):
    # The first sentence is Triton's own, which clients match on.
    code, reason = Code.NOT_FOUND, "VERSION_NOT_FOUND"
    template = (
        "Request for unknown model: '{model}' version {version} is not found. "
        "Registered versions: {versions}."
    )


class NotServable(ShoalError):
    # The first sentence is Triton's own, which clients match on.
    code, reason = Code.NOT_FOUND, "NOT_SERVABLE"
    template = (
        "Request for unknown model: '{model}' version {version} is not found. It is registered, "
        "but cannot be served: {problem}. Fix that, then register or import it again."
    )

    def __init__(self, *, model: str, version: object, problem: str) -> None:
        super().__init__(model=model, version=version, problem=problem.removesuffix("."))


class NoApprovedVersion(ShoalError):
    code, reason = Code.FAILED_PRECONDITION, "NO_APPROVED_VERSION"
    template = (
        "no version of model '{model}' is approved, so it has no default version: approve one, or "
        "name a version in the request. Registered versions: {versions}."
    )


# --- residency ------------------------------------------------------------------------------------


class LoadFailed(ShoalError):
    code, reason = Code.FAILED_PRECONDITION, "LOAD_FAILED"
    template = (
        "model '{model}' version {version} could not be loaded on server {server}: {cause} It will "
        "be tried again in {backoff_seconds} s. Fix its files and register a new version."
    )


class DeadlineBeforeResident(ShoalError):
    code, reason = Code.DEADLINE_EXCEEDED, "DEADLINE_BEFORE_RESIDENT"
    template = (
        "the deadline passed after {waited_seconds} s, before model '{model}' version {version} "
        "was resident ({stage}). Repeat with a longer deadline, or load it beforehand: "
        "`shoal load {model}:{version}`."
    )


# --- callers and services -------------------------------------------------------------------------


class AdminRequired(ShoalError):
    code, reason = Code.PERMISSION_DENIED, "ADMIN_REQUIRED"
    template = (
        "{method} is an administrative call, and {subject} may not make it: call from the "
        "service's own host, or through a proxy that sets the identity headers and is named in "
        "the service's settings."
    )


class NotReady(ShoalError):
    code, reason = Code.UNAVAILABLE, "NOT_READY"
    template = "{service} is not ready: {cause}. Repeat in a moment."


class StandsBy(ShoalError):
    code, reason = Code.UNAVAILABLE, "STANDS_BY"
    template = (
        "Controller {controller} is on standby and answers no calls: {cause}. Call the active "
        "Controller: {holder}."
    )
