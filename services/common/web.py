"""An HTTP server inside a service's process."""

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from email.utils import formatdate
from functools import lru_cache
from typing import Any, Final, NamedTuple

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

GRACE_SECONDS: Final = 2

_TOO_LARGE: Final = b'{"error":"the request\'s head has more than %d bytes"}'
_TOO_SLOW: Final = b'{"error":"the request\'s head did not arrive within %g s"}'
_REFUSAL: Final = (
    b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
    b"connection: close\r\n\r\n%s"
)


class HttpLimits(NamedTuple):
    """What clients may use of an HTTP server."""

    #: Bytes of a request's first line and headers.
    head_bytes: int = 1 << 16
    #: Seconds within which they have to arrive.
    head_seconds: float = 30.0
    #: Seconds for which a connection without a request is kept.
    idle_seconds: float = 75.0
    #: Connections, beyond which the answer is 503; None for any number.
    connections: int | None = None


@asynccontextmanager
async def serving(
    app: ASGIApp, listener: socket.socket, limits: HttpLimits | None = None
) -> AsyncIterator[None]:
    """Serve `app` on `listener` inside the `async with`, then let running requests finish."""
    limits = limits or HttpLimits()
    # Otherwise any sender could cause a log line with each bad or surplus request.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    server = _IdleServer(
        uvicorn.Config(
            app,
            http=_bounded(limits),
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            proxy_headers=False,  # who calls is what the connection says
            limit_concurrency=limits.connections,
            timeout_keep_alive=limits.idle_seconds,  # type: ignore[arg-type]
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
    )
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(server.serve(sockets=[listener]))
        try:
            yield
        finally:
            server.end.set()


class _IdleServer(uvicorn.Server):
    """A server that sleeps until it is to end.

    uvicorn's own wakes ten times a second to check for its end and to format the `date` header. In
    a busy process these wake-ups are expensive: they cost a Router 3 % of its requests per second.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.end = asyncio.Event()

    async def main_loop(self) -> None:
        await self.end.wait()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the process, which says when to stop."""
        yield


@lru_cache(maxsize=1)
def _dated(now: int) -> list[tuple[bytes, bytes]]:
    """Return the headers of every answer at `now`, in seconds since the epoch."""
    return [(b"date", formatdate(now, usegmt=True).encode())]


def _bounded(limits: HttpLimits) -> type[HttpToolsProtocol]:
    class Bounded(HttpToolsProtocol):
        """A protocol with bounds: the parser itself takes a head of any size, however slow."""

        _head = 0  # bytes received of an incomplete head
        _clock: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._await_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_clock()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self._clock is not None:
                self._head += len(data)
            super().data_received(data)
            if self._clock is not None and self._head > limits.head_bytes:
                self._too_large()

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._await_head()

        def on_headers_complete(self) -> None:
            self._stop_clock()
            size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
            if size > limits.head_bytes:
                self._too_large()
                raise ValueError("refused")  # ends the parser
            self.server_state.default_headers = _dated(int(time.time()))
            super().on_headers_complete()

        def send_400_response(self, msg: str) -> None:
            self._refuse(b"400 Bad Request", b'{"error":"%b"}' % msg.encode())

        def _await_head(self) -> None:
            if self._clock is None:
                self._head = 0
                self._clock = self.loop.call_later(limits.head_seconds, self._late)

        def _stop_clock(self) -> None:
            if self._clock is not None:
                self._clock.cancel()
                self._clock = None

        def _late(self) -> None:
            self._refuse(b"408 Request Timeout", _TOO_SLOW % limits.head_seconds)

        def _too_large(self) -> None:
            text = _TOO_LARGE % limits.head_bytes
            self._refuse(b"431 Request Header Fields Too Large", text)

        def _refuse(self, status: bytes, text: bytes) -> None:
            self._stop_clock()
            if self.transport.is_closing():
                return
            cycle: RequestResponseCycle | None = self.cycle  # its own type leaves out the None
            if cycle is None or cycle.response_complete:
                self.transport.write(_REFUSAL % (status, len(text), text))
            self.transport.close()

    return Bounded
