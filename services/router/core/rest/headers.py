"""HTTP headers of requests, and HTTP statuses for gRPC codes."""

import re
from collections.abc import Iterable, Mapping
from typing import Final

from services.router.core.rest.values import INVALID, WrongRequest

# As Triton's HTTP server has it for the codes that it knows, and google.rpc's mapping for the rest.
_STATUS: Final = {
    "OK": 200,
    "CANCELLED": 400,
    "UNKNOWN": 400,
    "INVALID_ARGUMENT": 400,
    "DEADLINE_EXCEEDED": 504,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 400,
    "PERMISSION_DENIED": 403,
    "RESOURCE_EXHAUSTED": 429,
    "FAILED_PRECONDITION": 409,
    "ABORTED": 409,
    "OUT_OF_RANGE": 400,
    "UNIMPLEMENTED": 501,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "DATA_LOSS": 500,
    "UNAUTHENTICATED": 401,
}
# Exceptions, where the code alone would mislead a client that only knows HTTP.
_STATUS_OF_REASON: Final = {
    "MESSAGE_TOO_LARGE": 413,
    "JSON_TOO_LARGE": 413,
    "METADATA_TOO_LARGE": 431,
    "NEVER_FITS": 507,
    "LOAD_FAILED": 503,
}

_GRPC_UNITS: Final = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_GRPC_TIMEOUT: Final = re.compile(r"(\d{1,8})([HMSmun])")
_DECIMAL: Final = re.compile(r"\d{1,9}(\.\d{1,9})?")
_ATOI: Final = re.compile(r"\s*([+-]?\d+)")

# Names of headers that a gRPC call would carry as metadata.
_METADATA: Final = re.compile(
    rb"(x-[0-9a-z_.-]+|traceparent|tracestate|baggage|authorization)(?<!-bin)"
)
_PRINTABLE: Final = re.compile(rb"[\x20-\x7e]*")


def status(code: str, reason: str = "") -> int:
    """Return the HTTP status for the name of a gRPC code, and for the reason of a ShoalError if
    there is one."""
    return _STATUS_OF_REASON.get(reason) or _STATUS.get(code, 500)


def metadata(headers: Iterable[tuple[bytes, bytes]]) -> tuple[tuple[str, str], ...]:
    """Return those headers that a gRPC call would carry as metadata. Names must be in lower
    case."""
    return tuple(
        [
            (name.decode("ascii"), value.decode("ascii"))
            for name, value in headers
            if _METADATA.fullmatch(name) and _PRINTABLE.fullmatch(value)
        ]
    )


def peer(client: tuple[str, int] | None) -> str:
    """Return a client's address as gRPC writes it. A client whose address could not be determined
    is not trusted."""
    if client is None or not client[0]:
        return "unknown:"
    host, port = client
    return f"ipv6:%5B{host}%5D:{port}" if ":" in host else f"ipv4:{host}:{port}"


def timeout(headers: Mapping[bytes, bytes]) -> float | None:
    """Return the seconds that the caller waits: the least that it names, or None.

    `x-request-timeout` is in seconds and `grpc-timeout` as in gRPC (`5S`, `250m`). Envoy gives its
    own timeout in `x-envoy-expected-rq-timeout-ms`, where 0 stands for none. Raises
    WrongRequest."""
    found = [
        seconds
        for name, read in _TIMEOUTS
        if name in headers and (seconds := read(name, headers[name].decode("latin-1").strip()))
    ]
    return min(found, default=None)


def _seconds(name: bytes, text: str) -> float:
    if not _DECIMAL.fullmatch(text) or not float(text):
        raise _bad(name, text, "seconds, as in 2.5")
    return float(text)


def _grpc(name: bytes, text: str) -> float:
    match = _GRPC_TIMEOUT.fullmatch(text)
    if match is None or not int(match[1]):
        raise _bad(name, text, "up to 8 digits and a unit (H M S m u n), as in 500m")
    return int(match[1]) * _GRPC_UNITS[match[2]]


def _milliseconds(name: bytes, text: str) -> float:
    if not _DECIMAL.fullmatch(text):
        raise _bad(name, text, "milliseconds, as in 2500")
    return float(text) / 1000


def _bad(name: bytes, text: str, expected: str) -> WrongRequest:
    return WrongRequest(INVALID, f"header {name.decode()!r} is {text[:64]!r}: give {expected}")


_TIMEOUTS: Final = (
    (b"x-request-timeout", _seconds),
    (b"grpc-timeout", _grpc),
    (b"x-envoy-expected-rq-timeout-ms", _milliseconds),
)


def json_size(header: bytes | None, size: int) -> int:
    """Return the bytes of JSON at the beginning of a body of `size` bytes, as
    Inference-Header-Content-Length says; without that header, all of it. Raises WrongRequest."""
    if header is None:
        return size
    text = header.decode("latin-1")
    match = _ATOI.match(text)
    found = int(match[1]) if match is not None else 0
    if not 0 <= found <= size:
        raise WrongRequest(
            INVALID, f"inference header size should be in range (0, {size}), got: {text[:64]}"
        )
    return found


def encoding(accepted: bytes | None) -> str:
    """Return `gzip`, `deflate` or `identity`: what Accept-Encoding prefers, the first among
    equals."""
    best, most = "identity", 0.0
    for entry in (accepted or b"").decode("latin-1").split(","):
        name, _, rest = entry.strip().partition(";q=")
        try:
            weight = float(rest) if rest else 1.0
        except ValueError:
            continue
        if name in ("identity", "deflate", "gzip") and weight > most:
            best, most = name, weight
    return best
