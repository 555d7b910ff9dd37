"""The errors that only the Router raises; `services/common/errors.py` has the base and more.

Where a comment says that a text, or its beginning, is Triton's own, clients may match on it.
"""

from services.common.codes import Code
from services.common.errors import ShoalError

# --- the request ----------------------------------------------------------------------------------


class MessageTooLarge(ShoalError):
    code, reason = Code.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE"
    template = (
        "the request has {size} bytes, and this Router accepts at most {limit}: send less at once, "
        "or raise SHOAL_ROUTER_MAX_MESSAGE_BYTES."
    )


class MetadataTooLarge(ShoalError):
    code, reason = Code.RESOURCE_EXHAUSTED, "METADATA_TOO_LARGE"
    template = "the call's metadata has {size} bytes, and at most {limit} are allowed: send less."


class JsonTooLarge(ShoalError):
    code, reason = Code.RESOURCE_EXHAUSTED, "JSON_TOO_LARGE"
    template = "the request has {size} bytes of JSON, and this Router reads at most {limit}: {hint}"


class ConverterLost(ShoalError):
    code, reason = Code.UNAVAILABLE, "CONVERTER_LOST"
    template = (
        "the process that was to convert {size} bytes from or to JSON {what}. Repeat the request, "
        "send less at once, or send tensors in binary."
    )


class NotProxied(ShoalError):
    code, reason = Code.UNIMPLEMENTED, "NOT_PROXIED"
    template = "this Router does not answer {method}: {hint}"


class NoClasses(ShoalError):
    # Triton's own text.
    code, reason = Code.INVALID_ARGUMENT, "NO_CLASSES"
    template = "class result not available for output due to unsupported type '{datatype}'"


class VersionNotANumber(ShoalError):
    # The first sentence is Triton's own.
    code, reason = Code.INVALID_ARGUMENT, "VERSION_NOT_A_NUMBER"
    template = (
        "failed to get model version from specified version string '{version}' (details: stol), "
        "version should be an integral value > 0. It is no alias of model '{model}' either: give a "
        "whole number from 1 up, an alias, or nothing for the default version."
    )


class TextSequenceId(ShoalError):
    code, reason = Code.INVALID_ARGUMENT, "TEXT_SEQUENCE_ID"
    template = (
        "the sequence_id of a request for model '{model}' is a text, and the model takes numbers: "
        "send a whole number, or give its control CONTROL_SEQUENCE_CORRID the data_type "
        "TYPE_STRING."
    )


# --- servers and the Controller -------------------------------------------------------------------


class ServerLost(ShoalError):
    code, reason = Code.UNAVAILABLE, "SERVER_LOST"
    template = (
        "server {server} broke off while it worked on a request for model '{model}' version "
        "{version}: {cause}. The request may have been carried out; repeat it only if that does "
        "no harm."
    )


class ControllerUnavailable(ShoalError):
    """No Controller can be reached, and only a Controller can do what the request needs."""

    code, reason = Code.UNAVAILABLE, "CONTROLLER_UNAVAILABLE"
    template = (
        "model '{model}' is not resident, and the Controller at {controller} cannot be reached: "
        "{cause}. Resident models keep answering. Start the Controller and repeat the request."
    )


class NoController(ControllerUnavailable):
    """The same, for a call that the Controller itself answers."""

    reason = "NO_CONTROLLER"
    template = (
        "the Controller at {controller} cannot be reached: {cause}. Resident models keep "
        "answering. Start the Controller and repeat {call}."
    )


class NoLease(ShoalError):
    code, reason = Code.UNAVAILABLE, "NO_LEASE"
    template = (
        "a sequence of model '{model}' cannot begin at the moment: the Controller at {controller} "
        "does not answer, and might unload the model before the sequence ends. Requests outside "
        "sequences are still answered. Repeat once the Controller is back."
    )


class ServersDisagree(ShoalError):
    code, reason = Code.UNAVAILABLE, "SERVERS_DISAGREE"
    template = (
        "{call} failed on server {server}: {cause}. Done on: {done}. Repeat it once the server is "
        "well again; `shoal status` shows how it is."
    )


class NoServerAnswers(ShoalError):
    code, reason = Code.UNAVAILABLE, "NO_SERVER_ANSWERS"
    template = "no server answers {call}: {causes}. `shoal status` shows what is wrong with each."


# --- overload -------------------------------------------------------------------------------------


class Overloaded(ShoalError):
    code, reason = Code.RESOURCE_EXHAUSTED, "OVERLOADED"
    template = (
        "model '{model}' version {version} gets more requests than it can answer, and this one, of "
        "priority {priority}, was refused: {problem}. Repeat it after the delay in RetryInfo, with "
        "a longer deadline, or with a higher priority in x-shoal-priority."
    )


class RateLimited(ShoalError):
    code, reason = Code.RESOURCE_EXHAUSTED, "RATE_LIMITED"
    template = (
        "tenant '{tenant}' exceeds its rate of {rate} requests/s (with bursts of up to {burst}): "
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
        "this request of {size} bytes finds no room: the Router holds {held} bytes of requests and "
        "may hold {limit}, part of which is reserved for requests of up to {small} bytes. Repeat "
        "it after the delay in RetryInfo, send less at once, or raise "
        "SHOAL_ROUTER_MAX_HELD_BYTES."
    )


# --- Triton's administrative calls: each text begins as Triton's own ------------------------------


class NotInRepository(ShoalError):
    code, reason = Code.INTERNAL, "NOT_IN_REPOSITORY"
    template = "failed to load '{model}', failed to poll from model repository: {problem}"


class LoadRefused(ShoalError):
    code, reason = Code.INVALID_ARGUMENT, "LOAD_REFUSED"
    template = "{cause}"


class LoadParameter(ShoalError):
    code, reason = Code.INVALID_ARGUMENT, "LOAD_PARAMETER"
    template = (
        "unrecognized load parameter '{parameter}'. Only registered files are loaded: "
        "`shoal register PATH --name {model}` registers a version with other files or another "
        "config; then load it without parameters."
    )


class RepositoryNamed(ShoalError):
    code, reason = Code.UNIMPLEMENTED, "REPOSITORY_NAMED"
    template = "'repository_name' specification is not supported: leave {repository!r} out."


class ModelNotAvailable(ShoalError):
    code, reason = Code.INVALID_ARGUMENT, "MODEL_NOT_AVAILABLE"
    template = "requested model '{model}' is not available: no version of it is registered."


class VersionNotAvailable(ShoalError):
    code, reason = Code.INVALID_ARGUMENT, "VERSION_NOT_AVAILABLE"
    template = (
        "requested model version is not available for model '{model}': {version} is not among its "
        "versions {versions}."
    )


# --- shared memory: each text begins as Triton's own ----------------------------------------------


class RegionExists(ShoalError):
    code, reason = Code.ALREADY_EXISTS, "REGION_EXISTS"
    template = "shared memory region '{region}' already in manager"


class RegionNotFound(ShoalError):
    code, reason = Code.NOT_FOUND, "REGION_NOT_FOUND"
    template = "Unable to find {kind}shared memory region: '{region}'"


class RegionBounds(ShoalError):
    code, reason = Code.INVALID_ARGUMENT, "REGION_BOUNDS"
    template = "Invalid {part} for shared memory region: '{region}'"


class RegionRefused(ShoalError):
    code, reason = Code.INVALID_ARGUMENT, "REGION_REFUSED"
    template = "failed to register shared memory region '{region}': {problem}"


class RegionInUse(ShoalError):
    code, reason = Code.UNAVAILABLE, "REGION_IN_USE"
    template = (
        "failed to register shared memory region '{region}': a server still uses that memory for a "
        "request that was sent before it was unregistered. Register it after the delay in "
        "RetryInfo."
    )


class RegionUnopened(ShoalError):
    code, reason = Code.INTERNAL, "REGION_UNOPENED"
    template = "Unable to open shared memory region: '{key}'"


# --- web pages ------------------------------------------------------------------------------------


class UnknownHost(ShoalError):
    code, reason = Code.PERMISSION_DENIED, "UNKNOWN_HOST"
    template = (
        "this Router is not known as {host!r}: ask for localhost or an address, or add the name to "
        "SHOAL_ROUTER_HTTP_HOSTS"
    )


class ForeignPage(ShoalError):
    code, reason = Code.PERMISSION_DENIED, "FOREIGN_PAGE"
    template = (
        "pages of {origin} may not send requests that change something: add the page's origin to "
        "SHOAL_ROUTER_CORS_ORIGINS"
    )
