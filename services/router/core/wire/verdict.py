"""What a failed call to a Triton means: for the client, or for another try."""

import enum
import re
from typing import Final


class Verdict(enum.Enum):
    """ANSWER      the server's own answer: the client's to see.
    MISS        the version is not resident there: ask the Controller, then try again.
    UNREACHED   the server never got the request: as a miss.
    BROKEN      the server broke off while it had the request: one more try at most.
    UNHEALTHY   the model's process there is dead, and was when or after it got the request: as
                BROKEN, and nothing more can come of that replica."""

    ANSWER = enum.auto()
    MISS = enum.auto()
    UNREACHED = enum.auto()
    BROKEN = enum.auto()
    UNHEALTHY = enum.auto()


# Triton's own texts under code UNAVAILABLE (release 24.10), of its queues.
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
# What gRPC says (releases 1.78 to 1.85) when a connection is lost speaks of one of these.
_CONNECTION: Final = re.compile(
    r"connect|socket|transport|stream|goaway|tcp|endpoint|recvmsg|sendmsg|\bpipe\b|\bping\b|"
    r"keepalive|http|channel|network|handshake|dns|resol|address|shutdown|shutting down"
)
# And when a single call is cut off, on a connection that stays.
_CUT_OFF: Final = re.compile(
    r"(stream removed \()?(rst_stream|received rst_stream|received http2 header with status)"
)
# Of a Python model, alone or in ensembles. What a model itself raises comes behind other words.
_DEAD_PROCESS: Final = re.compile(r"(in ensemble '[^']*', )*stub process '[^']*' is not healthy")


class Speaker(enum.Enum):
    """Whose word a call's status may be: gRPC marks its own by nothing, and models choose theirs.

    SERVER      the server's.
    CONNECTION  gRPC's, if the connection is lost: then it is when the call ends, or within moments.
    GRPC        gRPC's, although the connection may be there."""

    SERVER = enum.auto()
    CONNECTION = enum.auto()
    GRPC = enum.auto()


def speaker(code: str, text: str) -> Speaker:
    """`code`, `text`: as for `verdict`."""
    low = text.lower()
    if code != "UNAVAILABLE" or _NOT_READY.match(low) or _STOPPING.match(low):
        return Speaker.SERVER
    if _CUT_OFF.match(low):
        return Speaker.GRPC
    return Speaker.CONNECTION if not low or _CONNECTION.search(low) else Speaker.SERVER


def verdict(code: str, text: str, *, answered: bool) -> Verdict:
    """`code`: the gRPC code's name. `text`: the status's message, as Triton or gRPC wrote it.
    `answered`: whether it is the server's own word, and not gRPC's about the connection to it."""
    low = text.lower()
    if code == "NOT_FOUND":
        resident = not (
            low.startswith("request for unknown model") or "has no available versions" in low
        )
        return Verdict.ANSWER if resident else Verdict.MISS
    if code == "INTERNAL" and _DEAD_PROCESS.match(low):
        return Verdict.UNHEALTHY
    if code != "UNAVAILABLE":
        return Verdict.ANSWER
    if _NOT_READY.match(low):
        return Verdict.MISS
    if _STOPPING.match(low):
        return Verdict.UNREACHED
    if answered:
        return Verdict.ANSWER
    return Verdict.UNREACHED if any(sign in low for sign in _NEVER_SENT) else Verdict.BROKEN


# Of a request that a Triton refused before it began: it is not resident, or the server is ending.
_NOT_RESIDENT: Final = re.compile(r"request for unknown model: .*(is not|has no)", re.DOTALL)
_ENDING: Final = ("has stopped accepting new", "server exiting", "server not ready")


def in_band(text: str, *, begun: bool) -> Verdict:
    """What an error message within a stream means; there is no code. `begun`: whether Triton says
    when the request has ended, which it does of all that it did not refuse at once."""
    low = text.lower()
    if begun:
        return Verdict.UNHEALTHY if _DEAD_PROCESS.match(low) else Verdict.ANSWER
    if _NOT_RESIDENT.match(low):
        return Verdict.MISS
    return Verdict.UNREACHED if any(sign in low for sign in _ENDING) else Verdict.ANSWER


def broken_off(code: str, text: str) -> Verdict:
    """What the end of a stream means for the requests that a Triton had by it."""
    meaning = verdict(code, text, answered=False)
    return Verdict.BROKEN if meaning is Verdict.ANSWER else meaning


def cut_off(code: str, text: str) -> tuple[str, str]:
    """The end of a stream as code and text of one request that a Triton had by it. It is no answer
    to that, whatever it says."""
    if broken_off(code, text) is not Verdict.BROKEN:
        return code, text
    return "UNAVAILABLE", f"RST_STREAM: {text if code == 'UNAVAILABLE' else code}"


_OF_REQUEST: Final = "[request id: "  # begins what Triton's core says of a request that it refuses
_DECOUPLED: Final = "support models with decoupled transaction policy"
DECOUPLED: Final = f"ModelInfer RPC doesn't {_DECOUPLED}"  # as Triton refuses such a request alone


def begun(text: str) -> bool:
    """Whether a Triton that answered a request with this error had begun it."""
    low = text.lower()
    return not (low.startswith(_OF_REQUEST) or _NOT_RESIDENT.match(low))


def is_decoupled(code: str, text: str) -> bool:
    """Whether a Triton refused a request alone because its model gives any number of replies."""
    return code == "UNIMPLEMENTED" and _DECOUPLED in text


def code_in_band(text: str, *, begun: bool) -> str:
    """The name of the code that Triton most likely has for what it says in a stream without one."""
    low = text.lower()
    if any(own in low for own in _OWN_UNAVAILABLE):
        return "UNAVAILABLE"
    if begun:
        return "INTERNAL"
    if _STOPPING.match(low):
        return "UNAVAILABLE"
    return "NOT_FOUND" if _NOT_RESIDENT.match(low) else "INVALID_ARGUMENT"
