"""What Shoal's services refuse, in one tree; the Router's `core/errors.py` has more of it.

Each error has the gRPC code and the documented reason (`shoal.errors.v1.ErrorReason`) that the edge
answers with, and a text that says what to do. Every variable of the text also stands in
`metadata`, because the text is made from it. Nothing here knows of gRPC: `status.py` maps.
"""

from typing import ClassVar

from services.common.codes import Code


class ShoalError(Exception):
    """Base of the tree. Keyword arguments are the template's variables.

    `retry_after`: seconds after which the same call may succeed; becomes google.rpc.RetryInfo.
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


# --- what was asked for ---------------------------------------------------------------------------


class ModelNotFound(ShoalError):
    # The first sentence is Triton's own, which clients match on.
    code, reason = Code.NOT_FOUND, "MODEL_NOT_FOUND"
    template = (
        "Request for unknown model: '{model}' is not found. No model of that name is registered: "
        "`shoal models` lists those that are, `shoal register PATH --name {model}` adds it."
    )


class VersionNotFound(ShoalError):
    code, reason = Code.NOT_FOUND, "VERSION_NOT_FOUND"
    template = (
        "Request for unknown model: '{model}' version {version} is not found. "
        "Registered versions: {versions}."
    )


class InvalidName(ShoalError):
    code, reason = Code.INVALID_ARGUMENT, "INVALID_NAME"
    template = (
        "{field} {value!r} is not allowed: names start with a letter or digit, go on with letters, "
        "digits, '_', '.', '-', have no '..' and at most 128 characters."
    )

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


class MalformedMessage(ShoalError):
    code, reason = Code.INVALID_ARGUMENT, "MALFORMED_MESSAGE"
    template = "the message is not a valid {message_type}: {problem}"


class MessageTooLarge(ShoalError):
    code, reason = Code.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE"
    template = (
        "the request has {size} bytes, more than the {limit} that this Router accepts: send less "
        "at once, or raise SHOAL_ROUTER_MAX_MESSAGE_BYTES."
    )


class MetadataTooLarge(ShoalError):
    code, reason = Code.RESOURCE_EXHAUSTED, "METADATA_TOO_LARGE"
    template = "the call's metadata has {size} bytes, more than the {limit} that may be: send less."


class JsonTooLarge(ShoalError):
    code, reason = Code.RESOURCE_EXHAUSTED, "JSON_TOO_LARGE"
    template = (
        "the request has {size} bytes of JSON, more than the {limit} that this Router reads: {hint}"
    )


class AlreadyExists(ShoalError):
    code, reason = Code.ALREADY_EXISTS, "ALREADY_EXISTS"
    template = "{name} is registered already: {hint}"


class IllegalState(ShoalError):
    code, reason = Code.FAILED_PRECONDITION, "ILLEGAL_STATE"
    template = "{name} is {state}, so it cannot be {move}: {hint}"


class EtagMismatch(ShoalError):
    code, reason = Code.ABORTED, "ETAG_MISMATCH"
    template = (
        "{name} was changed by somebody else: the etag given is {given}, the current one is "
        "{current}. Read it again, then repeat the change."
    )


class InvalidArtifact(ShoalError):
    code, reason = Code.INVALID_ARGUMENT, "INVALID_ARTIFACT"
    template = "{path} cannot be served: {problem}"


class NoApprovedVersion(ShoalError):
    code, reason = Code.FAILED_PRECONDITION, "NO_APPROVED_VERSION"
    template = (
        "no version of model '{model}' is approved, so it has no default: approve one, or name a "
        "version. Registered versions: {versions}."
    )


# --- residency ------------------------------------------------------------------------------------


class LoadFailed(ShoalError):
    code, reason = Code.FAILED_PRECONDITION, "LOAD_FAILED"
    template = (
        "model '{model}' version {version} could not be loaded on server {server}: {cause} It is "
        "tried again after {backoff_seconds} s; mend its files and register a new version."
    )


class NeverFits(ShoalError):
    code, reason = Code.RESOURCE_EXHAUSTED, "NEVER_FITS"
    template = (
        "model '{model}' version {version} fits no server even when empty: {shortage}. Raise the "
        "budget (`shoal up --memory-budget`, `--max-models`), or declare a smaller memory if it "
        "takes less."
    )


class DeadlineBeforeResident(ShoalError):
    code, reason = Code.DEADLINE_EXCEEDED, "DEADLINE_BEFORE_RESIDENT"
    template = (
        "the deadline passed after {waited_seconds} s while model '{model}' version {version} was "
        "made resident ({stage}). Repeat with a longer deadline, or load it beforehand: "
        "`shoal load {model}:{version}`."
    )


class ServerNotFound(ShoalError):
    code, reason = Code.NOT_FOUND, "SERVER_NOT_FOUND"
    template = "no server '{server}' is configured; these are: {servers}."


class DeadlineTooShort(ShoalError):
    code, reason = Code.UNAVAILABLE, "DEADLINE_TOO_SHORT"
    template = (
        "model '{model}' version {version} is not resident, loading it takes about {load_seconds} "
        "s, and only {left_seconds} s are left until the deadline. It is being loaded now: repeat "
        "the request after that, or with a longer deadline."
    )


class SetAside(ShoalError):
    code, reason = Code.UNAVAILABLE, "SET_ASIDE"
    template = (
        "model '{model}' version {version} is set aside for {backoff_seconds} s: {cause}. Find the "
        "request that crashes it; `shoal events {model}:{version}` shows what happened."
    )


class NoServer(ShoalError):
    code, reason = Code.UNAVAILABLE, "NO_SERVER"
    template = (
        "no healthy server can hold model '{model}' version {version}: {servers}. `shoal status` "
        "says what is wrong with each."
    )


class ServerLost(ShoalError):
    code, reason = Code.UNAVAILABLE, "SERVER_LOST"
    template = (
        "server {server} broke off while it worked on a request for model '{model}' version "
        "{version}: {cause}. The request may have been carried out; repeat it if that does no harm."
    )


class ControllerUnavailable(ShoalError):
    code, reason = Code.UNAVAILABLE, "CONTROLLER_UNAVAILABLE"
    template = (
        "model '{model}' is not resident and the Controller at {controller} cannot be reached: "
        "{cause}. Resident models go on answering; start the Controller and repeat."
    )


class NoLease(ShoalError):
    code, reason = Code.UNAVAILABLE, "NO_LEASE"
    template = (
        "no sequence of model '{model}' begins now: the Controller at {controller} is not heard "
        "from, and could unload the model under it. Single requests go on; repeat."
    )


class RegistryUnavailable(ShoalError):
    code, reason = Code.UNAVAILABLE, "REGISTRY_UNAVAILABLE"
    template = (
        "the Registry at {registry} cannot be reached: {cause}. Models that are registered go on "
        "answering; start the Registry and repeat."
    )


class Held(ShoalError):
    code, reason = Code.FAILED_PRECONDITION, "HELD"
    template = "model '{model}' version {version} cannot be evicted: {holder}"


class NoRoom(ShoalError):
    code, reason = Code.UNAVAILABLE, "NO_ROOM"
    template = (
        "there is no room for model '{model}' version {version} now: {shortage}. Unpin something, "
        "add a server, or repeat later."
    )


# --- overload -------------------------------------------------------------------------------------


class Overloaded(ShoalError):
    code, reason = Code.RESOURCE_EXHAUSTED, "OVERLOADED"
    template = (
        "model '{model}' version {version} gets more requests than it can answer, and this one of "
        "priority {priority} was refused: {problem}. Repeat it when RetryInfo says, with a longer "
        "deadline, or with a higher priority in x-shoal-priority."
    )


class RateLimited(ShoalError):
    code, reason = Code.RESOURCE_EXHAUSTED, "RATE_LIMITED"
    template = (
        "tenant '{tenant}' sends more than its {rate} requests/s (after a pause {burst} at once): "
        "send less, or have SHOAL_ROUTER_TENANT_LIMITS raised."
    )


class TenantLimited(ShoalError):
    code, reason = Code.RESOURCE_EXHAUSTED, "TENANT_LIMITED"
    template = (
        "tenant '{tenant}' has {number} requests {what}, and may have {limit}: wait for answers "
        "before sending more, or have SHOAL_ROUTER_TENANT_LIMITS raised."
    )


class MemoryTaken(ShoalError):
    code, reason = Code.RESOURCE_EXHAUSTED, "MEMORY_TAKEN"
    template = (
        "the Router holds {held} bytes of requests and may hold {limit}, a part of them for "
        "requests of up to {small} bytes alone, so there is no room for one of {size}. Repeat it "
        "when RetryInfo says, send less at once, or raise SHOAL_ROUTER_MAX_HELD_BYTES."
    )


# --- who and what is served -----------------------------------------------------------------------


class AdminRequired(ShoalError):
    code, reason = Code.PERMISSION_DENIED, "ADMIN_REQUIRED"
    template = (
        "{method} is an administrative call and {subject} may not make it: call from the "
        "service's own host, or through a proxy named in its settings that sets the identity "
        "headers."
    )


class NotProxied(ShoalError):
    code, reason = Code.UNIMPLEMENTED, "NOT_PROXIED"
    template = "this Router does not answer {method}: {hint}"


class NotReady(ShoalError):
    code, reason = Code.UNAVAILABLE, "NOT_READY"
    template = "{service} is not ready: {cause}. Repeat in a moment."


class StandsBy(ShoalError):
    code, reason = Code.UNAVAILABLE, "STANDS_BY"
    template = "Controller {controller} refuses this: {cause}. Call the one that acts: {holder}."


class LeaseHeld(ShoalError):
    code, reason = Code.ABORTED, "LEASE_HELD"
    template = (
        "{holder} holds the controller lease for another {remaining_seconds} s: one Controller "
        "acts at a time, ask again then."
    )
