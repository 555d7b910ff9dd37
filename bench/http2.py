"""Just enough HTTP/2 to send gRPC requests for next to nothing.

A load generator shares the cores with what it measures. grpc's own Python client takes as much CPU
as the proxies do; this one sends frames that were built beforehand and of the answers reads only
the frame headers.
"""

import socket
import struct
from collections import deque
from collections.abc import Iterator
from typing import Final

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS = 0x1, 0x1, 0x4

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEADER_TABLE_SIZE, _ENABLE_PUSH, _INITIAL_WINDOW_SIZE, _MAX_FRAME_SIZE = 1, 2, 4, 5
_DEFAULT_WINDOW: Final = 65_535  # bytes
_LARGEST_WINDOW: Final = 2**31 - 1
_REFILL: Final = 2**29  # bytes of answers after which the connection's window is opened again
_RECEIVE: Final = 1 << 20

_HEADER: Final = struct.Struct(">HBBBI")  # length in 16 + 8 bits, type, flags, stream


class Broken(Exception):
    """The server ended a stream or the connection, or closed it."""


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    size = len(payload)
    return _HEADER.pack(size >> 8, size & 0xFF, kind, flags, stream) + payload


def grpc_headers(authority: str, path: str) -> bytes:
    """The HPACK block of a gRPC request; it uses and changes no dynamic table."""
    return (
        b"\x83\x86"  # :method POST, :scheme http
        + b"".join((b"\x04", _text(path), b"\x01", _text(authority)))
        + b"".join(
            (b"\x0f\x10", _text("application/grpc"), b"\x00", _text("te"), _text("trailers"))
        )
    )


def _text(value: str) -> bytes:
    data = value.encode()
    if len(data) < 0x7F:
        return bytes((len(data),)) + data
    rest, more = len(data) - 0x7F, bytearray(b"\x7f")
    while rest > 0x7F:
        more.append(rest & 0x7F | 0x80)
        rest >>= 7
    return bytes((*more, rest)) + data


class Connection:
    """One connection over which the same call is made again and again.

    `address`: host:port, `path`: /package.Service/Method, `body`: gRPC messages as they are framed.
    `turns`: how often a call sends it, each time when it has one more answer. Non-blocking once it
    stands.
    """

    def __init__(self, address: str, path: str, body: bytes, turns: int = 1) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._headers = grpc_headers(address, path)
        self._body = body
        self._turns = turns
        self._turn: dict[int, int] = {}  # how often it was sent, by stream
        self._stream = -1
        self._received = bytearray()
        self._answer = 0  # bytes of one
        self._answered: dict[int, int] = {}  # bytes of data so far, by stream
        self._unacknowledged = 0
        self._window = _DEFAULT_WINDOW
        self._stream_window = _DEFAULT_WINDOW
        self._frame_size = 16_384
        self._windows: dict[int, int] = {}  # of streams whose body isn't all sent
        self._unsent: deque[tuple[int, int]] = deque()  # stream, and where its body goes on
        self._out: deque[memoryview] = deque()
        settings = {
            _HEADER_TABLE_SIZE: 0,
            _ENABLE_PUSH: 0,
            _INITIAL_WINDOW_SIZE: _LARGEST_WINDOW,
            _MAX_FRAME_SIZE: 1 << 20,
        }
        payload = b"".join(struct.pack(">HI", *setting) for setting in settings.items())
        more = struct.pack(">I", _LARGEST_WINDOW - _DEFAULT_WINDOW)
        self.socket.sendall(_PREFACE + frame(SETTINGS, 0, 0, payload))
        self.socket.sendall(frame(WINDOW_UPDATE, 0, 0, more))
        self.socket.setblocking(False)

    @property
    def stuck(self) -> bool:
        """Whether there are bytes that the socket did not take yet."""
        return bool(self._out)

    def request(self) -> int:
        """Queue one more call. Returns its stream; `flush` sends what is queued."""
        self._stream += 2
        stream = self._stream
        self._answered[stream] = 0
        self._windows[stream] = self._stream_window
        self._turn[stream] = 1
        self._out.append(memoryview(frame(HEADERS, END_HEADERS, stream, self._headers)))
        self._unsent.append((stream, 0))
        self._fill()
        return stream

    def flush(self) -> None:
        while self._out:
            # One system call for small frames; large ones go by themselves, uncopied.
            if len(self._out) > 1 and len(self._out[0]) < 4096:
                joined = bytearray()
                while self._out and len(self._out[0]) < 4096:
                    joined += self._out.popleft()
                self._out.appendleft(memoryview(joined))
            try:
                sent = self.socket.send(self._out[0])
            except BlockingIOError:
                return
            if sent == len(self._out[0]):
                self._out.popleft()
            else:
                self._out[0] = self._out[0][sent:]

    def answers(self) -> Iterator[tuple[int, int]]:
        """Read what is there: (stream, bytes of its answer) of each that has ended.

        An answer is its gRPC messages, each with five bytes in front; 0 bytes mean an error.
        """
        try:
            data = self.socket.recv(_RECEIVE)
        except BlockingIOError:
            return
        if not data:
            raise Broken("the server closed the connection")
        received = self._received
        received += data
        at, end = 0, len(received)
        while end - at >= 9:
            high, low, kind, flags, stream = _HEADER.unpack_from(received, at)
            size = high << 8 | low
            if end - at - 9 < size:
                break
            if kind == DATA:
                self._answered[stream] += size
                self._unacknowledged += size
                if self._turn[stream] < self._turns:
                    self._next_turn(stream, received[at + 10 : at + 14])
            elif kind != HEADERS:
                self._control(kind, flags, stream, bytes(received[at + 9 : at + 9 + size]))
            at += 9 + size
            if flags & END_STREAM and kind in (DATA, HEADERS):
                del self._turn[stream]
                yield stream, self._answered.pop(stream)
        del received[:at]
        if self._unacknowledged > _REFILL:
            more = frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", self._unacknowledged))
            self._out.append(memoryview(more))
            self._unacknowledged = 0

    def close(self) -> None:
        self.socket.close()

    def _next_turn(self, stream: int, length: bytearray) -> None:
        """Once all of an answer is there. `length`: of its message, where this is its first frame;
        all of them are equally long."""
        if not self._answer:
            self._answer = 5 + int.from_bytes(length, "big")
        if self._answered[stream] >= self._turn[stream] * self._answer:
            self._turn[stream] += 1
            self._unsent.append((stream, 0))
            self._fill()

    def _control(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == WINDOW_UPDATE:
            more = int.from_bytes(payload, "big")
            if stream == 0:
                self._window += more
            elif stream in self._windows:
                self._windows[stream] += more
            self._fill()
        elif kind == SETTINGS and not flags & ACK:
            for at in range(0, len(payload), 6):
                self._setting(*struct.unpack_from(">HI", payload, at))
            self._out.append(memoryview(frame(SETTINGS, ACK, 0)))
            self._fill()
        elif kind == PING and not flags & ACK:
            self._out.append(memoryview(frame(PING, ACK, 0, payload)))
        elif kind in (RST_STREAM, GOAWAY):
            raise Broken(f"the server ended a stream or the connection: {payload[:80]!r}")

    def _setting(self, name: int, value: int) -> None:
        if name == _INITIAL_WINDOW_SIZE:
            for stream in self._windows:
                self._windows[stream] += value - self._stream_window
            self._stream_window = value
        elif name == _MAX_FRAME_SIZE:
            self._frame_size = value

    def _fill(self) -> None:
        """Queue as much of the unsent bodies as the windows allow, in turns."""
        body, total = memoryview(self._body), len(self._body)
        for _ in range(len(self._unsent)):
            stream, at = self._unsent.popleft()
            while size := min(
                total - at, self._frame_size, self._window, max(self._windows[stream], 0)
            ):
                last = at + size == total and self._turn[stream] == self._turns
                header = _HEADER.pack(size >> 8, size & 0xFF, DATA, END_STREAM * last, stream)
                if size < 4096:
                    self._out.append(memoryview(header + body[at : at + size]))
                else:
                    self._out.append(memoryview(header))
                    self._out.append(body[at : at + size])
                at += size
                self._window -= size
                self._windows[stream] -= size
            if at == total:
                if self._turn[stream] == self._turns:
                    del self._windows[stream]
            else:
                self._unsent.append((stream, at))
