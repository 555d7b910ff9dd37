"""An HTTP/2 connection that says whatever it is told to, also what no client should."""

import socket
import struct
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions
from h2.settings import SettingCodes, Settings

Headers = Iterable[tuple[str, str]]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS, PING, CONTINUATION = 4, 6, 9  # frame types
INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"


def frame(
    kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"", size: int = -1
) -> bytes:
    """`size`: what the frame says of itself, where that is not the truth."""
    length = len(payload) if size < 0 else size
    return struct.pack(">I", length)[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def framed(message: bytes, size: int = -1, compressed: int = 0) -> bytes:
    """A message as gRPC sends it. `size`: as in `frame`."""
    return struct.pack(">BI", compressed, len(message) if size < 0 else size) + message


@dataclass
class Ended:
    """How a call ended: its trailers, or the code of a reset, or neither: the connection ended."""

    trailers: dict[str, str] = field(default_factory=dict)
    http_status: str = ""
    reset: int | None = None
    message: bytes = b""

    @property
    def grpc_status(self) -> str:
        return self.trailers.get("grpc-status", "")


class Connection:
    """`window`: bytes that the server may send on each stream before it is allowed more, which it
    never is with `reading` False."""

    def __init__(self, address: str, window: int = 1 << 20) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=10)
        configuration = h2.config.H2Configuration(
            client_side=True,
            header_encoding="utf-8",
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
            validate_inbound_headers=False,
        )
        self.state = h2.connection.H2Connection(configuration)
        # Set afterwards, it would be what is to come, and this is what is said at the beginning.
        self.state.local_settings = Settings(
            client=True, initial_values={SettingCodes.INITIAL_WINDOW_SIZE: window}
        )
        self.state.initiate_connection()
        self.flush()
        self._ended: dict[int, Ended] = {}
        self.done: set[int] = set()
        self.closed = False

    def settled(self) -> "Connection":
        """With the server's settings known, from which on its limits hold."""
        while not self.closed and self.state.remote_settings.max_header_list_size is None:
            self.read(1.0)
        return self

    def flush(self) -> None:
        self.socket.sendall(self.state.data_to_send())

    def send(self, content: bytes) -> None:
        """Past the protocol's own state."""
        self.socket.sendall(content)

    def call(
        self,
        more: Headers = (),
        *,
        path: str = INFER,
        method: str = "POST",
        content_type: str = "application/grpc",
        end: bool = False,
    ) -> int:
        """Begin a call; returns its stream's number."""
        stream = self.state.get_next_available_stream_id()
        headers = [
            (":method", method),
            (":scheme", "http"),
            (":path", path),
            (":authority", "shoal"),
            ("te", "trailers"),
            ("content-type", content_type),
            *more,
        ]
        self.state.send_headers(stream, headers, end_stream=end)
        self.flush()
        return stream

    def data(
        self,
        stream: int,
        content: bytes | Iterable[bytes],
        *,
        end: bool = True,
        seconds: float = 60.0,
    ) -> None:
        """Waits for room where the server gives none, and gives up after so many seconds."""
        until = time.monotonic() + seconds
        for part in [content] if isinstance(content, bytes) else content:
            view = memoryview(part)
            while view:
                if self.closed or stream in self.done or time.monotonic() > until:
                    return
                window = self.state.local_flow_control_window(stream)
                size = min(window, self.state.max_outbound_frame_size, len(view))
                if size <= 0:
                    self.read(min(1.0, seconds))
                    continue
                self.state.send_data(stream, bytes(view[:size]))
                self.flush()
                view = view[size:]
        if end:
            self.state.end_stream(stream)
            self.flush()

    def reset(self, stream: int) -> None:
        self.state.reset_stream(stream, error_code=8)  # CANCEL
        self.flush()

    def read(self, seconds: float) -> None:
        """Take in what comes next, within so many seconds."""
        self.socket.settimeout(seconds)
        try:
            content = self.socket.recv(1 << 20)
        except TimeoutError:
            return
        except OSError:
            content = b""
        if not content:
            self.closed = True
            return
        try:
            for event in self.state.receive_data(content):
                self._take(event)
            self.flush()
        except (h2.exceptions.ProtocolError, OSError):  # an answer to what was said past the state
            self.closed = True

    def _take(self, event: Any) -> None:
        if isinstance(event, h2.events.ConnectionTerminated):
            self.closed = True
            return
        stream = getattr(event, "stream_id", None)
        if not stream:
            return
        ended = self._ended.setdefault(stream, Ended())
        if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
            ended.trailers.update((str(name), str(value)) for name, value in event.headers)
            ended.http_status = ended.trailers.get(":status", "")
        elif isinstance(event, h2.events.DataReceived):
            ended.message += event.data
            self.state.acknowledge_received_data(event.flow_controlled_length, stream)
        elif isinstance(event, h2.events.StreamReset):
            ended.reset = int(event.error_code)
            self.done.add(stream)
        elif isinstance(event, h2.events.StreamEnded):
            self.done.add(stream)

    def ended(self, stream: int, seconds: float = 10.0) -> Ended:
        """How the call ends; raises TimeoutError if it doesn't."""
        until = time.monotonic() + seconds
        while stream not in self.done and not self.closed:
            if time.monotonic() > until:
                raise TimeoutError(f"stream {stream} goes on after {seconds} s")
            self.read(0.5)
        return self._ended.get(stream, Ended())

    def ends(self, seconds: float) -> bool:
        """Whether the server closes the connection in that time."""
        until = time.monotonic() + seconds
        while not self.closed and time.monotonic() < until:
            self.read(0.2)
        return self.closed

    def close(self, *, abruptly: bool = False) -> None:
        if abruptly:  # a TCP reset instead of an end
            linger = struct.pack("ii", 1, 0)
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.socket.close()


@contextmanager
def connected(address: str, count: int = 1, **more: Any) -> Iterator[list[Connection]]:
    opened: list[Connection] = []
    try:
        opened.extend(Connection(address, **more) for _ in range(count))
        yield opened
    finally:
        for connection in opened:
            connection.close()
