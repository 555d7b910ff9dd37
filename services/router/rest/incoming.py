"""An HTTP request: its caller, its deadline, and its body, read within bounds."""

import time
import zlib
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from starlette.types import Receive, Scope

from services.common.caller import Caller, CallerPolicy
from services.router.admission.memory import Reservation
from services.router.core.errors import MessageTooLarge
from services.router.core.rest import headers
from services.router.core.rest.values import INTERNAL, UNSUPPORTED, WrongRequest
from services.router.core.routing.metadata import Pairs
from services.router.unary.decompression import decompressed


class ClientGone(Exception):
    """The client has closed the connection."""


class HttpRequest:
    """An HTTP request. Raises WrongRequest for a timeout that cannot be read."""

    def __init__(
        self, scope: Scope, receive: Receive, callers: CallerPolicy, reservation: Reservation
    ) -> None:
        self.method: str = scope["method"]
        #: Parameters of the path.
        self.path: Mapping[str, str] = {
            name: unquote(value) for name, value in scope["path_params"].items()
        }
        self.headers: dict[bytes, bytes] = dict(
            reversed(scope["headers"])
        )  # the first of several counts
        #: What a gRPC call would carry as metadata.
        self.metadata: Pairs = headers.metadata(scope["headers"])
        self.peer = callers.peer(headers.peer(scope["client"]), self.metadata)
        self.caller: Caller = callers.caller(self.peer, self.metadata)
        self.body = b""
        #: The memory reserved for the body.
        self.reservation = reservation
        seconds = headers.timeout(self.headers)
        #: Seconds of the monotonic clock, or None.
        self.deadline = None if seconds is None else time.monotonic() + seconds
        self._receive = receive

    def left(self) -> float | None:
        """Return the seconds until the deadline, or None."""
        return None if self.deadline is None else self.deadline - time.monotonic()

    async def read(self, limit: int) -> None:
        """Read the whole body, of at most `limit` bytes. Raises MessageTooLarge, MemoryTaken,
        ClientGone."""
        declared = self.headers.get(b"content-length", b"")
        if declared.isdigit() and int(declared) > limit:
            raise MessageTooLarge(size=int(declared), limit=limit)
        chunks: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > limit:
                raise MessageTooLarge(size=f"more than {limit}", limit=limit)
            self.reservation.grow(len(chunk))
            chunks.append(chunk)
            if not message.get("more_body", False):
                break
        self.body = chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def until_gone(self) -> None:
        """Return when the client has closed the connection. Call it only after the body was
        read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def discard_rest(self) -> None:
        """Read and drop the rest of a body that is too large."""
        message: Any = {"more_body": True}
        while message.get("more_body", False):
            message = await self._receive()

    async def decompress(self, limit: int) -> None:
        """Undo the body's Content-Encoding. Raises WrongRequest, MessageTooLarge, MemoryTaken."""
        coding = self.headers.get(b"content-encoding", b"")
        if coding in (b"", b"identity"):
            return
        if coding not in (b"gzip", b"deflate"):
            raise WrongRequest(UNSUPPORTED, "Unsupported compression type")
        if not self.body:
            raise WrongRequest("INVALID_ARGUMENT", "nothing to be decompressed")
        try:
            self.body = await decompressed(self.body, limit, self.reservation)
        except zlib.error as error:
            raise WrongRequest(INTERNAL, f"failed to decompress the request: {error}") from error
        self.reservation.grow(len(self.body) - self.reservation.size)
