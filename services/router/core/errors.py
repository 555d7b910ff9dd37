"""What the Router refuses of Triton's administrative calls, and of memory and classes in requests.

Each text of these begins as Triton's own does, which clients may match on. And where large JSON is
not converted, which Triton has no words for.
"""

from services.common.codes import Code
from services.common.errors import ShoalError


class NotInRepository(ShoalError):
    code, reason = Code.INTERNAL, "NOT_IN_REPOSITORY"
    template = "failed to load '{model}', failed to poll from model repository: {problem}"


class LoadRefused(ShoalError):
    code, reason = Code.INVALID_ARGUMENT, "LOAD_REFUSED"
    template = "{cause}"


class LoadParameter(ShoalError):
    code, reason = Code.INVALID_ARGUMENT, "LOAD_PARAMETER"
    template = (
        "unrecognized load parameter '{parameter}'. What is loaded is what is registered: "
        "`shoal register PATH --name {model}` makes a version of other files or another config; "
        "then load it without parameters."
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


class NoController(ShoalError):
    code, reason = Code.UNAVAILABLE, "NO_CONTROLLER"
    template = (
        "the Controller at {controller} cannot be reached: {cause}. Resident models go on "
        "answering; start the Controller and repeat {call}."
    )


class ServersDisagree(ShoalError):
    code, reason = Code.UNAVAILABLE, "SERVERS_DISAGREE"
    template = (
        "{call} failed on server {server}: {cause}. Done on: {done}. Repeat it when the server is "
        "well; `shoal status` says how it is."
    )


class NoServerAnswers(ShoalError):
    code, reason = Code.UNAVAILABLE, "NO_SERVER_ANSWERS"
    template = "no server answers {call}: {causes}. `shoal status` says what is wrong with each."


class NoClasses(ShoalError):
    code, reason = Code.INVALID_ARGUMENT, "NO_CLASSES"
    template = "class result not available for output due to unsupported type '{datatype}'"


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
        "request that came before it was unregistered. Register it when RetryInfo says."
    )


class RegionUnopened(ShoalError):
    code, reason = Code.INTERNAL, "REGION_UNOPENED"
    template = "Unable to open shared memory region: '{key}'"


class ConverterLost(ShoalError):
    code, reason = Code.UNAVAILABLE, "CONVERTER_LOST"
    template = (
        "the process that was to convert {size} bytes from or to JSON {what}. Repeat the request, "
        "or send less at once, or tensors in binary."
    )
