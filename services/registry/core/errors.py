"""The errors that only the Registry raises; `services/common/errors.py` has the base and more."""

from services.common.codes import Code
from services.common.errors import ShoalError


class AlreadyExists(ShoalError):
    code, reason = Code.ALREADY_EXISTS, "ALREADY_EXISTS"
    template = "{name} is already registered: {hint}"


class IllegalState(ShoalError):
    code, reason = Code.FAILED_PRECONDITION, "ILLEGAL_STATE"
    template = "{name} is {state}, so it cannot be {move}: {hint}"


class InvalidArtifact(ShoalError):
    code, reason = Code.INVALID_ARGUMENT, "INVALID_ARTIFACT"
    template = "{path} cannot be served: {problem}"


class EtagMismatch(ShoalError):
    code, reason = Code.ABORTED, "ETAG_MISMATCH"
    template = (
        "{name} has changed since it was read: the etag given is {given}, the current one is "
        "{current}. Read it again, then repeat the change."
    )


class LeaseHeld(ShoalError):
    code, reason = Code.ABORTED, "LEASE_HELD"
    template = (
        "{holder} holds the controller lease for another {remaining_seconds} s. Only one "
        "Controller acts at a time: ask again after that."
    )
