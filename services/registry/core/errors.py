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


# --- sources --------------------------------------------------------------------------------------


class InvalidSource(ShoalError):
    code, reason = Code.INVALID_ARGUMENT, "INVALID_SOURCE"
    template = "{source!r} is not a source: {problem}."


class SourceNotFound(ShoalError):
    code, reason = Code.NOT_FOUND, "SOURCE_NOT_FOUND"
    template = "there is nothing at {source}: {problem}."


class SourceDenied(ShoalError):
    code, reason = Code.FAILED_PRECONDITION, "SOURCE_DENIED"
    template = "{source} may not be read with the Registry's credentials: {problem}."


class SourceForbidden(ShoalError):
    code, reason = Code.FAILED_PRECONDITION, "SOURCE_FORBIDDEN"
    template = "{source} is not fetched: {problem}."


class SourceUnavailable(ShoalError):
    code, reason = Code.UNAVAILABLE, "SOURCE_UNAVAILABLE"
    template = "{source} cannot be read: {problem}. Repeat when it answers."


class SourceChanged(ShoalError):
    code, reason = Code.FAILED_PRECONDITION, "SOURCE_CHANGED"
    template = (
        "{source} is no longer what it was: {problem}. Register it again to have what is there now."
    )


class SourceTooLarge(ShoalError):
    code, reason = Code.RESOURCE_EXHAUSTED, "SOURCE_TOO_LARGE"
    template = "{path} is too large: {problem}."


class UnsafeContent(ShoalError):
    code, reason = Code.INVALID_ARGUMENT, "UNSAFE_CONTENT"
    template = "{path} is refused: {problem}."


class ContentMismatch(ShoalError):
    code, reason = Code.DATA_LOSS, "CONTENT_MISMATCH"
    template = "{path} is not what was announced: {problem}."


class ExtraMissing(ShoalError):
    code, reason = Code.FAILED_PRECONDITION, "EXTRA_MISSING"
    template = (
        "sources that begin with {scheme}:// need a package that the Registry's environment does "
        "not have: pip install 'shoal[{extra}]', then start the Registry again."
    )


# --- the store ------------------------------------------------------------------------------------


class StoreFull(ShoalError):
    code, reason = Code.RESOURCE_EXHAUSTED, "STORE_FULL"
    template = (
        "the Registry's store has no room for {wanted_for}: {needed} are needed, and {cause}. "
        "Evict, unpin or delete versions, or raise SHOAL_REGISTRY_STORE_BUDGET; `shoal disk` shows "
        "who takes what."
    )


class ImportNotFound(ShoalError):
    code, reason = Code.NOT_FOUND, "IMPORT_NOT_FOUND"
    template = "there is no import {name!r}: imports that have ended are kept for a day"


class SignatureRefused(ShoalError):
    code, reason = Code.FAILED_PRECONDITION, "SIGNATURE_REFUSED"
    template = "{path} is refused: {problem}."


class SourceWatchNotFound(ShoalError):
    code, reason = Code.NOT_FOUND, "SOURCE_WATCH_NOT_FOUND"
    template = "there is no watch {name!r} of a source: `shoal imports` lists those that there are"


class UploadIncomplete(ShoalError):
    code, reason = Code.FAILED_PRECONDITION, "UPLOAD_INCOMPLETE"
    template = "upload {upload} cannot be used: {problem}. Begin it again to see what is missing."
