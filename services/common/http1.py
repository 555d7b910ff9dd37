"""One HTTP/1 connection of a server inside a service's process, with bounds.

What a client sends costs by its bytes: a body in tiny chunks is taken in slices, between which
others have their turn."""

import asyncio
import time
from email.utils import formatdate
from functools import lru_cache
from typing import Any, Final, NamedTuple
from urllib.parse import unquote

import httptools
from uvicorn._types import ASGI3Application, ASGISendEvent
from uvicorn.protocols.http.flow_control import (
    HIGH_WATER_LIMIT,
    FlowControl,
    service_unavailable,
)
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

_SLICE: Final = 1 << 14  # bytes that are parsed at a time
_CHEAP: Final = 64  # chunks and requests of a slice after which the next one follows at once
_REST: Final = 4.0  # times the cost of a slice with more of them; others have their turn meanwhile

_BROKEN: Final = b'{"error":"Invalid HTTP request received."}'
_TOO_LARGE: Final = b'{"error":"the request\'s head has more than %d bytes"}'
_TOO_MUCH: Final = b'{"error":"the request\'s trailers have more than %d bytes"}'
_TOO_SLOW: Final = b'{"error":"the request\'s head did not arrive within %g s"}'
_BAD_REQUEST: Final = b"400 Bad Request"
_TIMEOUT: Final = b"408 Request Timeout"
_FIELDS_TOO_LARGE: Final = b"431 Request Header Fields Too Large"
_REFUSAL: Final = (
    b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
    b"connection: close\r\n\r\n%s"
)


class HttpLimits(NamedTuple):
    """What clients may use of an HTTP server."""

    #: Bytes of a request's first line and headers, and of its trailers.
    head_bytes: int = 1 << 16
    #: Seconds within which the head has to arrive.
    head_seconds: float = 30.0
    #: Seconds for which a connection without a request is kept.
    idle_seconds: float = 75.0
    #: Connections, beyond which the answer is 503; None for any number.
    connections: int | None = None


def protocol(limits: HttpLimits) -> type[HttpToolsProtocol]:
    """Return the protocol of connections with these limits."""
    return type("LimitedConnection", (_Connection,), {"limits": limits})


@lru_cache(maxsize=1)
def _dated(now: int) -> list[tuple[bytes, bytes]]:
    """Return the headers of every answer at `now`, in seconds since the epoch."""
    return [(b"date", formatdate(now, usegmt=True).encode())]


class _Refused(Exception):
    """Ends the parser, after the connection has refused what it read."""


class _Flow(FlowControl):
    """Reads from a client only while nothing that was read waits to be parsed."""

    backlog = False

    def resume_reading(self) -> None:
        if not self.backlog:
            super().resume_reading()


class _Connection(HttpToolsProtocol):
    limits: HttpLimits
    flow: _Flow

    _head = 0  # bytes received of an incomplete head
    _headed = False  # whether the head of the newest request is complete
    _idle = 0  # bytes received after a head that were no body
    _steps = 0  # chunks and requests in the current slice
    _clock: asyncio.TimerHandle | None = None  # runs while a head is incomplete
    _turn: asyncio.TimerHandle | None = None  # parses the backlog
    _refusal: bytes | None = None  # sent after the answers to the requests before it

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.flow = _Flow(transport)
        self._pieces: list[bytes] = []
        self._backlog = bytearray()
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_clock()
        if self._turn is not None:
            self._turn.cancel()
        super().connection_lost(exc)

    # --- what is read ---------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self._refusal is not None:
            return
        if self._turn is None:
            self._parse(data)
        else:
            self._backlog += data

    def _parse_backlog(self) -> None:
        self._turn = None
        data = bytes(self._backlog)
        self._backlog.clear()
        self._parse(data)

    def _parse(self, data: bytes) -> None:
        """Parse what was read, up to a slice that is expensive for its size."""
        began = time.perf_counter()
        unread = memoryview(data)
        self._steps = 0
        while unread and self._steps <= _CHEAP:
            self._feed(unread[:_SLICE])
            unread = unread[_SLICE:]
            if self._refusal is not None or self.transport.is_closing():
                return
        was_behind, self.flow.backlog = self.flow.backlog, self._steps > _CHEAP
        if self.flow.backlog:
            self._backlog += unread
            self.flow.pause_reading()
            pause = _REST * (time.perf_counter() - began)
            self._turn = self.loop.call_later(pause, self._parse_backlog)
        elif was_behind and not self.pipeline and not self._is_full():
            self.flow.resume_reading()

    def _feed(self, data: bytes | memoryview) -> None:
        self._steps = 0
        if self._clock is not None:
            self._head += len(data)
        elif self._headed:
            self._idle += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._feed(self._without_upgrade() + data[upgrade.args[0] :])
            return
        except httptools.HttpParserError:
            self._refuse(_BAD_REQUEST, _BROKEN)
            return
        self._hand_on()
        if self._clock is not None and self._head > self.limits.head_bytes:
            self._refuse(_FIELDS_TOO_LARGE, _TOO_LARGE % self.limits.head_bytes)
        elif self._headed and self._idle > self.limits.head_bytes:
            self._refuse(_FIELDS_TOO_LARGE, _TOO_MUCH % self.limits.head_bytes)

    def _without_upgrade(self) -> bytes:
        """Return the newest head without its wish for another protocol, for a new parser.

        There is no other protocol, and the parser takes the body for the beginning of one. Java's
        client asks for HTTP/2 with its first request, whether that has a body or not."""
        self._begin_parser()
        lines = [b"%b %b HTTP/1.1" % (self.scope["method"].encode(), self.url)]
        lines += [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
        return b"\r\n".join((*lines, b"", b""))

    def _begin_parser(self) -> None:
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)

    def _hand_on(self) -> None:
        """Hand the body's new pieces to the application, all at once."""
        if self._pieces:
            self.cycle.body += b"".join(self._pieces)
            self._pieces.clear()
            if self._is_full():
                self.flow.pause_reading()
            self.cycle.message_event.set()

    def _is_full(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle  # its own type leaves out the None
        return cycle is not None and len(cycle.body) > HIGH_WATER_LIMIT

    # --- what the parser finds ------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._steps += 1
        self._headed = False
        super().on_message_begin()
        self._await_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._headed:  # else it is a trailer, which nobody reads
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            self.scope["method"] = self.parser.get_method().decode("ascii")
            if self.scope["method"] == "CONNECT":
                raise _Refused
            return
        self._stop_clock()
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > self.limits.head_bytes:
            self._refuse(_FIELDS_TOO_LARGE, _TOO_LARGE % self.limits.head_bytes)
            raise _Refused
        self._complete_scope()
        self._headed = True
        self._idle = 0
        before: RequestResponseCycle | None = self.cycle
        self.server_state.default_headers = _dated(int(time.time()))
        self.cycle = _Exchange(
            scope=self.scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=self.parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )
        app: ASGI3Application = service_unavailable if self._is_crowded() else self.app
        if before is None or before.response_complete:
            self._start_asgi_task(self.cycle, app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, app))

    def _complete_scope(self) -> None:
        url = httptools.parse_url(self.url)
        path = url.path.decode("ascii")
        version = self.parser.get_http_version()
        self.scope["method"] = self.parser.get_method().decode("ascii")
        self.scope["http_version"] = version
        self.scope["path"] = unquote(path)
        self.scope["raw_path"] = url.path
        self.scope["query_string"] = url.query or b""

    def _is_crowded(self) -> bool:
        limit = self.limits.connections
        return limit is not None and max(len(self.connections), len(self.tasks)) >= limit

    def on_body(self, body: bytes) -> None:
        self._steps += 1
        self._idle = 0
        if not self.cycle.response_complete:
            self._pieces.append(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._hand_on()
        self._headed = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        if self._refusal is not None and not self.pipeline:
            self._send_refusal(self._refusal)
        else:
            super().on_response_complete()

    # --- refusals -------------------------------------------------------------------------------

    def _await_head(self) -> None:
        if self._clock is None:
            self._head = 0
            self._clock = self.loop.call_later(self.limits.head_seconds, self._late)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _late(self) -> None:
        self._refuse(_TIMEOUT, _TOO_SLOW % self.limits.head_seconds)

    def _refuse(self, status: bytes, text: bytes) -> None:
        """Refuse what was read last, and close the connection. Requests that arrived whole before
        it are answered first."""
        self._stop_clock()
        self._pieces.clear()
        if self._refusal is not None or self.transport.is_closing():
            return
        refusal = _REFUSAL % (status, len(text), text)
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is None or cycle.response_complete:
            self._send_refusal(refusal)
        elif not cycle.more_body:
            self._refusal = refusal
        elif self.pipeline:
            self.pipeline.popleft()
            self._refusal = refusal
        else:
            cycle.disconnected = True
            cycle.message_event.set()
            self._send_refusal(b"" if cycle.response_started else refusal)

    def _send_refusal(self, refusal: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(refusal)
            self.transport.close()


class _Exchange(RequestResponseCycle):
    """A request and its response. A response of unknown length to HTTP/1.0, which has no chunks,
    ends with the connection."""

    _until_close = False

    async def send(self, message: ASGISendEvent) -> None:
        if self.scope["http_version"] == "1.0":
            if message["type"] == "http.response.start":
                self._begin_old(message)
            elif self._until_close:
                self.expected_content_length = len(message["body"])  # type: ignore[typeddict-item]
        await super().send(message)

    def _begin_old(self, message: Any) -> None:
        names = {name for name, _ in message["headers"]}
        if b"content-length" not in names:
            self._until_close = True
            self.chunked_encoding = False
            self.keep_alive = False
        elif self.keep_alive and b"connection" not in names:
            message["headers"] = [*message["headers"], (b"connection", b"keep-alive")]
