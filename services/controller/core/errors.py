"""The errors that only the Controller raises; `services/common/errors.py` has the base and more."""

from services.common.codes import Code
from services.common.errors import ShoalError


class NotCompleted(ShoalError):
    code, reason = Code.UNAVAILABLE, "NOT_COMPLETED"
    template = (
        "model '{model}' version {version} waits for a Triton that runs with auto-completion to "
        "complete its config: {problem}. Repeat in a moment, or write what is left out into its "
        "config.pbtxt; `shoal models` shows what waits."
    )


class NeverFits(ShoalError):
    code, reason = Code.RESOURCE_EXHAUSTED, "NEVER_FITS"
    template = (
        "model '{model}' version {version} does not fit on any server, not even an empty one: "
        "{shortage}. Raise the budget (`shoal up --memory-budget`, `--max-models`), or declare "
        "less memory if it takes less."
    )


class NoRoom(ShoalError):
    code, reason = Code.UNAVAILABLE, "NO_ROOM"
    template = (
        "there is no room for model '{model}' version {version} at the moment: {shortage}. Unpin "
        "a model, add a server, or repeat later."
    )


class NoServer(ShoalError):
    code, reason = Code.UNAVAILABLE, "NO_SERVER"
    template = (
        "no healthy server can hold model '{model}' version {version}: {servers}. `shoal status` "
        "shows what is wrong with each."
    )


class DeadlineTooShort(ShoalError):
    code, reason = Code.UNAVAILABLE, "DEADLINE_TOO_SHORT"
    template = (
        "model '{model}' version {version} is not resident. Loading it takes about {load_seconds} "
        "s, and only {left_seconds} s are left until the deadline. It is being loaded now: repeat "
        "the request once it is resident, or with a longer deadline."
    )


class SetAside(ShoalError):
    code, reason = Code.UNAVAILABLE, "SET_ASIDE"
    template = (
        "model '{model}' version {version} is set aside for {backoff_seconds} s: {cause}. Find the "
        "request that crashes it; `shoal events {model}:{version}` shows what happened."
    )


class Held(ShoalError):
    code, reason = Code.FAILED_PRECONDITION, "HELD"
    template = "model '{model}' version {version} cannot be evicted: {holder}"


class ServerNotFound(ShoalError):
    code, reason = Code.NOT_FOUND, "SERVER_NOT_FOUND"
    template = "no server named '{server}' is configured. Configured servers: {servers}."


class RegistryUnavailable(ShoalError):
    code, reason = Code.UNAVAILABLE, "REGISTRY_UNAVAILABLE"
    template = (
        "the Registry at {registry} cannot be reached: {cause}. Models that the Controller knows "
        "keep answering. Start the Registry and repeat."
    )
