"""HTTP replies, and the form of errors in them."""

import asyncio
import math
import zlib
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final, NamedTuple

import grpc
from google.rpc import error_details_pb2, status_pb2
from starlette.types import Send

from services.common.errors import ShoalError
from services.common.status import DETAILS_KEY, error_info, grpc_code
from services.router.core.rest import headers
from services.router.core.rest.values import WrongRequest
from services.router.core.routing.metadata import Pairs
from services.router.rest.documents import dumps

Headers = tuple[tuple[bytes, bytes], ...]

JSON: Final = (b"content-type", b"application/json")
_OCTETS: Final = (b"content-type", b"application/octet-stream")
_SIZE_HEADER: Final = b"inference-header-content-length"

_THREADED_BYTES: Final = 1 << 16  # beyond that, a thread compresses
_LEVEL: Final = 1  # of zlib; higher ones gain next to nothing for tensors
_WINDOW: Final = {"gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}

# Triton words this differently for each protocol.
_DECOUPLED: Final = (
    "ModelInfer RPC doesn't support models with decoupled transaction policy",
    "HTTP end point doesn't support models with decoupled transaction policy",
)


class HttpReply(NamedTuple):
    """An HTTP reply. `events`, if there are any, are sent as they come instead of a body."""

    status: int = 200
    body: bytes = b""
    headers: Headers = (JSON,)
    events: AsyncGenerator[bytes, None] | None = None

    async def send(self, send: Send, *, more: bool = False) -> None:
        """Send the reply. `more` leaves it open until `end_body`."""
        if self.events is None:
            size = (b"content-length", b"%d" % len(self.body))
            await _start(send, self.status, (*self.headers, size))
            await send({"type": "http.response.body", "body": self.body, "more_body": more})
            return
        await _start(send, self.status, self.headers)
        async with aclosing(self.events):
            async for event in self.events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
        await end_body(send)


async def _start(send: Send, status: int, headers: Headers) -> None:
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})


async def end_body(send: Send) -> None:
    """End a reply that was left open."""
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def json_reply(document: Any, status: int = 200) -> HttpReply:
    """Return a document as a reply."""
    return HttpReply(status, dumps(document))


def error_reply(status: int, text: str) -> HttpReply:
    """Return an error text as a reply."""
    return HttpReply(status, dumps({"error": text}))


# --- tensors --------------------------------------------------------------------------------------


async def tensors_reply(
    text: bytes, binary: list[memoryview], accepted: bytes | None, more: Headers
) -> HttpReply:
    """Return JSON and the binary part that follows it, compressed as the client prefers."""
    kind: Headers = (JSON,)
    body = text
    if binary:
        body = b"".join((text, *binary))
        kind = (_OCTETS, (_SIZE_HEADER, b"%d" % len(text)))
    coding = headers.encoding(accepted)
    if coding != "identity":
        window = _WINDOW[coding]
        if len(body) > _THREADED_BYTES:
            body = await asyncio.to_thread(_compressed, body, window)
        else:
            body = _compressed(body, window)
        kind = (*kind, (b"content-encoding", coding.encode()))
    return HttpReply(200, body, (*kind, *more))


def _compressed(body: bytes, window: int) -> bytes:
    writer = zlib.compressobj(_LEVEL, wbits=window)
    return writer.compress(body) + writer.flush()


def visible_headers(metadata: Pairs) -> Headers:
    """Return those entries of a call's metadata that an HTTP client may see."""
    return tuple(
        (name.encode(), value.encode())
        for name, value in metadata
        if name.startswith("x-") and isinstance(value, str) and value.isprintable()
    )


# --- errors ---------------------------------------------------------------------------------------


def refused_reply(refused: WrongRequest) -> HttpReply:
    """Return a refusal in Triton's words as a reply."""
    return error_reply(headers.status(refused.code), refused.text)


def shoal_error_reply(error: ShoalError) -> HttpReply:
    """Return one of Shoal's errors as a reply."""
    status = headers.status(grpc_code(error).name, error.reason)
    body = dumps({"error": error.message, "reason": error.reason})
    return HttpReply(status, body, (JSON, *_retry(error.retry_after)))


def status_reply(error: grpc.aio.AioRpcError) -> HttpReply:
    """Return another service's status, which the client sees unchanged, as a reply."""
    trailing = tuple(error.trailing_metadata() or ())
    info = error_info(trailing)
    text = error.details() or error.code().name
    document = {"error": text.replace(*_DECOUPLED)}
    if info is not None:
        document["reason"] = info.reason
    status = headers.status(error.code().name, document.get("reason", ""))
    return HttpReply(status, dumps(document), (JSON, *_retry(_retry_after(trailing))))


TOO_LATE: Final = WrongRequest("DEADLINE_EXCEEDED", "Deadline Exceeded")  # gRPC's own text


def _retry(seconds: float | None) -> Headers:
    """Return the Retry-After header, which can only name whole seconds."""
    if seconds is None:
        return ()
    return ((b"retry-after", b"%d" % max(1, math.ceil(seconds))),)


def _retry_after(trailing: Pairs) -> float | None:
    for key, value in trailing:
        if key != DETAILS_KEY:
            continue
        raw = value if isinstance(value, bytes) else value.encode()
        for detail in status_pb2.Status.FromString(raw).details:
            info = error_details_pb2.RetryInfo()
            if detail.Unpack(info):
                return float(info.retry_delay.ToNanoseconds()) / 1e9
    return None
