"""What a failed call to a Triton means: for the client, or for another attempt."""

import enum
import re
from typing import Final


class Verdict(enum.Enum):
    """What a failed call means.

    ANSWER      It is the server's own answer, for the client to see.
    MISS        The version is not resident there: ask the Controller, then try again.
    UNREACHED   The server never got the request: treat it like a miss.
    BROKEN      The server broke off while it had the request: try once more at most.
    UNHEALTHY   The model's process there is dead, and was so when the server got the request or
                died after that: treat it like BROKEN. That replica cannot answer any more.
    NEEDS_PART  The model called another one that is not resident there: have the Controller make it
                so, then try once more at most. The answer stands if that is not allowed."""

    ANSWER = enum.auto()
    MISS = enum.auto()
    UNREACHED = enum.auto()
    BROKEN = enum.auto()
    UNHEALTHY = enum.auto()
    NEEDS_PART = enum.auto()


# Triton's own texts about its queues under code UNAVAILABLE (release 24.10).
_OWN_UNAVAILABLE: Final = ("exceeds maximum queue size", "request timeout expired")
_NOT_READY: Final = re.compile(r"request for unknown model: .* is not at ready state", re.DOTALL)
_STOPPING: Final = re.compile(
    r"server exiting$|server not ready$|(\[request id: [^]]*\] )?server is stopping, scheduler for "
)
_NEVER_SENT: Final = (
    "failed to connect",
    "connection refused",
    "no route to host",
    "transport closed",
    "dns resolution failed",
)
# Words of which gRPC uses one (releases 1.78 to 1.85) when a connection is lost.
_CONNECTION: Final = re.compile(
    r"connect|socket|transport|stream|goaway|tcp|endpoint|recvmsg|sendmsg|\bpipe\b|\bping\b|"
    r"keepalive|http|channel|network|handshake|dns|resol|address|shutdown|shutting down"
)
# How gRPC begins when a single call is cut off on a connection that stays.
_CUT_OFF: Final = re.compile(
    r"(stream removed \()?(rst_stream|received rst_stream|received http2 header with status)"
)
# A Python model's process, alone or in ensembles. What a model raises comes after other words.
_DEAD_PROCESS: Final = re.compile(r"(in ensemble '[^']*', )*stub process '[^']*' is not healthy")


# Triton's words to a Python model whose request to another one failed (release 24.10).
_NOT_BESIDE: Final = re.compile(
    r"Model (\S+) - Error when running inference: Failed for execute the inference request\. "
    r"Model '\1' is not ready"
)


def called_model(text: str) -> str:
    """Return the name of the model that the answering one called and that was not resident beside
    it, or ""."""
    found = _NOT_BESIDE.search(text)
    return found[1] if found is not None else ""


class Speaker(enum.Enum):
    """Who may have set a call's status. gRPC does not mark its own, and models are free to imitate
    them.

    SERVER      The server.
    CONNECTION  gRPC, if the connection is lost when the call ends or within moments.
    GRPC        gRPC, although the connection may still be there."""

    SERVER = enum.auto()
    CONNECTION = enum.auto()
    GRPC = enum.auto()


def speaker(code: str, text: str) -> Speaker:
    """Return who may have set a status. The arguments are those of `verdict`."""
    low = text.lower()
    if code != "UNAVAILABLE" or _NOT_READY.match(low) or _STOPPING.match(low):
        return Speaker.SERVER
    if _CUT_OFF.match(low):
        return Speaker.GRPC
    return Speaker.CONNECTION if not low or _CONNECTION.search(low) else Speaker.SERVER


def verdict(code: str, text: str, *, from_server: bool) -> Verdict:
    """Return what a call's status means.

    `code` is the name of the gRPC code, and `text` the status message as Triton or gRPC wrote it.
    `from_server` says that the status is the server's own, rather than gRPC's about the connection
    to it."""
    low = text.lower()
    if code == "NOT_FOUND":
        resident = not (
            low.startswith("request for unknown model") or "has no available versions" in low
        )
        return Verdict.ANSWER if resident else Verdict.MISS
    if code == "INTERNAL" and _DEAD_PROCESS.match(low):
        return Verdict.UNHEALTHY
    if code == "INTERNAL" and called_model(text):
        return Verdict.NEEDS_PART
    if code != "UNAVAILABLE":
        return Verdict.ANSWER
    if _NOT_READY.match(low):
        return Verdict.MISS
    if _STOPPING.match(low):
        return Verdict.UNREACHED
    if from_server:
        return Verdict.ANSWER
    return Verdict.UNREACHED if any(sign in low for sign in _NEVER_SENT) else Verdict.BROKEN


# Refusals of requests that a Triton did not start: no such model is resident, or the server stops.
_NOT_RESIDENT: Final = re.compile(r"request for unknown model: .*(is not|has no)", re.DOTALL)
_ENDING: Final = ("has stopped accepting new", "server exiting", "server not ready")


def verdict_in_stream(text: str, *, begun: bool) -> Verdict:
    """Return what an error message within a stream means; it has no code.

    `begun` says that Triton marks when the request has ended, as it does for all requests that it
    did not refuse at once."""
    low = text.lower()
    if begun:
        if called_model(text):
            return Verdict.NEEDS_PART
        return Verdict.UNHEALTHY if _DEAD_PROCESS.match(low) else Verdict.ANSWER
    if _NOT_RESIDENT.match(low):
        return Verdict.MISS
    return Verdict.UNREACHED if any(sign in low for sign in _ENDING) else Verdict.ANSWER


def verdict_of_lost_stream(code: str, text: str) -> Verdict:
    """Return what the end of a stream means for the requests that were under way on it."""
    meaning = verdict(code, text, from_server=False)
    return Verdict.BROKEN if meaning is Verdict.ANSWER else meaning


def status_of_lost_stream(code: str, text: str) -> tuple[str, str]:
    """Return the end of a stream as code and text for one request that was under way on it.
    Whatever the status says, it is not an answer to that request."""
    if verdict_of_lost_stream(code, text) is not Verdict.BROKEN:
        return code, text
    return "UNAVAILABLE", f"RST_STREAM: {text if code == 'UNAVAILABLE' else code}"


_OF_REQUEST: Final = "[request id: "  # begins a refusal by Triton's core
_DECOUPLED: Final = "support models with decoupled transaction policy"
DECOUPLED: Final = f"ModelInfer RPC doesn't {_DECOUPLED}"  # Triton's refusal outside a stream


def was_begun(text: str) -> bool:
    """Return whether a Triton that answered a request with this error had started on it."""
    low = text.lower()
    return not (low.startswith(_OF_REQUEST) or _NOT_RESIDENT.match(low))


def is_decoupled(code: str, text: str) -> bool:
    """Return whether a Triton refused a request outside a stream because its model is decoupled."""
    return code == "UNIMPLEMENTED" and _DECOUPLED in text


def code_in_stream(text: str, *, begun: bool) -> str:
    """Return the name of the code that Triton most likely has for an error that it gives in a
    stream without one."""
    low = text.lower()
    if any(own in low for own in _OWN_UNAVAILABLE):
        return "UNAVAILABLE"
    if begun:
        return "INTERNAL"
    if _STOPPING.match(low):
        return "UNAVAILABLE"
    return "NOT_FOUND" if _NOT_RESIDENT.match(low) else "INVALID_ARGUMENT"
