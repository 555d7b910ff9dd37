"""Thousands of inference streams from one process: of HTTP/2 no more than they need.

The frames are those of bench/http2.py, whose connections send one and the same request each on a
stream of its own; here a stream stays, and every answer is read.
"""

import selectors
import socket
import struct
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import hpack
from tritonclient.grpc import service_pb2

from bench import http2
from bench.http2 import frame
from tests.support.raw_http2 import PREFACE, STREAM, framed

AT_ONCE = 500  # requests without an answer; the Router lets 1,000 wait for a model
CONNECTING = 200  # connections that are begun before their server has said anything
WINDOW = 1 << 30  # bytes that a server may send

_SETTINGS = frame(
    http2.SETTINGS, 0, 0, struct.pack(">HIHIHI", 1, 0, 2, 0, 4, WINDOW)
)  # no header table, no push, a stream's window
_MORE = frame(http2.WINDOW_UPDATE, 0, 0, struct.pack(">I", WINDOW - 65_535))


class Model(NamedTuple):
    """`signs`: of the numbers in each of its replies, in order. A decoupled one has several."""

    name: str
    signs: tuple[int, ...]

    @property
    def decoupled(self) -> bool:
        return len(self.signs) > 1


class Stream:
    """`replies`: to the request that was sent last. `number`: what tells its requests from those of
    all others."""

    __slots__ = ("buffer", "connection", "ended", "id", "model", "number", "replies", "sent")

    def __init__(self, connection: "Connection", id_: int, model: Model, number: int) -> None:
        self.connection = connection
        self.id = id_
        self.model = model
        self.number = number
        self.sent = 0
        self.replies = 0
        self.buffer = b""
        self.ended = False

    def send(self) -> None:
        self.sent += 1
        self.replies = 0
        request = service_pb2.ModelInferRequest(model_name=self.model.name)
        request.inputs.add(name="INPUT", datatype="FP32", shape=[2])
        request.raw_input_contents.append(struct.pack("<2f", self.number, self.sent))
        self.connection.send(self.id, framed(request.SerializeToString()))

    def received(self, data: bytes) -> bool:
        """Whether its request has all its replies now; raises AssertionError at a wrong one."""
        buffer = self.buffer + data
        while len(buffer) >= 5 and len(buffer) >= (end := 5 + int.from_bytes(buffer[1:5], "big")):
            self._check(service_pb2.ModelStreamInferResponse.FromString(buffer[5:end]))
            buffer = buffer[end:]
        self.buffer = buffer
        return self.answered

    @property
    def answered(self) -> bool:
        return self.replies == len(self.model.signs)

    def _check(self, reply: service_pb2.ModelStreamInferResponse) -> None:
        assert not reply.error_message, f"{self.model.name}: {reply.error_message}"
        assert not self.answered, f"{self.model.name}: one reply too many"
        sign = self.model.signs[self.replies]
        found = struct.unpack("<2f", reply.infer_response.raw_output_contents[0])
        assert found == (sign * self.number, sign * self.sent), "an answer to something else"
        self.replies += 1


class Connection:
    """Waits for its socket to take what it writes, and reads when there is something."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(PREFACE + _SETTINGS + _MORE)
        self.streams: dict[int, Stream] = {}
        self.settled = self.ending = False
        self.pings = 0
        self._headers = http2.grpc_headers(address, STREAM)
        self._window = 65_535  # bytes; a stream's own is never used up
        self._unsent: deque[bytes] = deque()
        self._received = b""

    def open(self, model: Model, number: int) -> Stream:
        id_ = 2 * len(self.streams) + 1
        self.streams[id_] = Stream(self, id_, model, number)
        self.socket.sendall(frame(http2.HEADERS, http2.END_HEADERS, id_, self._headers))
        return self.streams[id_]

    def send(self, stream: int, message: bytes) -> None:
        self._unsent.append(frame(http2.DATA, 0, stream, message))
        self._fill()

    def end(self) -> None:
        """No more requests on any of its streams."""
        self.ending = True
        ends = (frame(http2.DATA, http2.END_STREAM, id_) for id_ in self.streams)
        self.socket.sendall(b"".join(ends))

    def close(self, *, abruptly: bool) -> None:
        if abruptly:  # a TCP reset instead of an end
            linger = struct.pack("ii", 1, 0)
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        else:
            self.socket.sendall(frame(http2.GOAWAY, 0, 0, bytes(8)))
        self.socket.close()

    def read(self) -> list[Stream]:
        """Those of which the last request got its last reply, or which ended."""
        data = self.socket.recv(1 << 18)
        assert data, "the server closed the connection"
        data = self._received + data
        at, done = 0, []
        while len(data) - at >= 9:
            size = int.from_bytes(data[at : at + 3], "big")
            kind, flags, id_ = struct.unpack_from(">BBI", data, at + 3)
            if len(data) - at - 9 < size:
                break
            payload = data[at + 9 : at + 9 + size]
            at += 9 + size
            if kind in (http2.DATA, http2.HEADERS):
                stream = self.streams[id_]
                stream.ended = bool(flags & http2.END_STREAM)
                if stream.ended:
                    assert self.ending, f"the server ended a stream: {_decoded(payload)}"
                if stream.ended or (kind == http2.DATA and stream.received(payload)):
                    done.append(stream)
            else:
                self._control(kind, flags, id_, payload)
        self._received = data[at:]
        return done

    def _control(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == http2.SETTINGS and not flags & http2.ACK:
            self.settled = True
            self.socket.sendall(frame(http2.SETTINGS, http2.ACK, 0))
        elif kind == http2.PING and not flags & http2.ACK:
            self.pings += 1
            self.socket.sendall(frame(http2.PING, http2.ACK, 0, payload))
        elif kind == http2.WINDOW_UPDATE and stream == 0:
            self._window += int.from_bytes(payload, "big")
            self._fill()
        elif kind in (http2.RST_STREAM, http2.GOAWAY):
            raise AssertionError(f"the server ended stream {stream}: {payload!r}")

    def _fill(self) -> None:
        while self._unsent and len(self._unsent[0]) <= self._window:
            data = self._unsent.popleft()
            self._window -= len(data)
            self.socket.sendall(data)


def _decoded(headers: bytes) -> dict[str, str]:
    return {str(name): str(value) for name, value in hpack.Decoder().decode(headers)}


class Crowd:
    """Streams to each of `models` in turn. Whatever takes longer than `seconds` raises
    TimeoutError."""

    def __init__(self, address: str, models: Sequence[Model], seconds: float) -> None:
        self._address = address
        self._models = models
        self._seconds = seconds
        self._selector = selectors.DefaultSelector()
        self.connections: list[Connection] = []
        self.streams: list[Stream] = []

    def __enter__(self) -> "Crowd":
        return self

    def __exit__(self, *_: object) -> None:
        self.reset(self.connections)
        self._selector.close()

    def connect(self, count: int) -> None:
        for begun in range(0, count, CONNECTING):
            fresh = [Connection(self._address) for _ in range(min(CONNECTING, count - begun))]
            self.connections += fresh
            for connection in fresh:
                self._selector.register(connection.socket, selectors.EVENT_READ, connection)
            next(turn for turn in self._turns() if all(one.settled for one in fresh))

    def open(self, each: int) -> None:
        for connection in self.connections:
            for _ in range(each):
                number = len(self.streams)
                model = self._models[number % len(self._models)]
                self.streams.append(connection.open(model, number))

    def ask(self) -> float:
        """One request on every stream, each answered; returns the seconds that it took."""
        began = time.monotonic()
        unasked, waiting = iter(self.streams), 0
        for answered in self._turns():
            waiting -= len(answered)
            while waiting < AT_ONCE and (stream := next(unasked, None)) is not None:
                stream.send()
                waiting += 1
            if not waiting:
                break
        return time.monotonic() - began

    def hold(self, seconds: float) -> int:
        """Answer pings alone; returns how many."""
        until, before = time.monotonic() + seconds, self._pings()
        while (left := until - time.monotonic()) > 0:
            assert not self._read(left), "a stream without a request ended or was answered"
        return self._pings() - before

    def end(self, connections: Sequence[Connection]) -> None:
        """As their client: all streams, and when the server has ended them too, the connections."""
        for connection in connections:
            connection.end()
        streams = [stream for one in connections for stream in one.streams.values()]
        next(turn for turn in self._turns() if all(stream.ended for stream in streams))
        self._close(connections, abruptly=False)

    def reset(self, connections: Sequence[Connection]) -> None:
        """Whatever is under way."""
        self._close(connections, abruptly=True)

    def _close(self, connections: Sequence[Connection], *, abruptly: bool) -> None:
        closed = set(connections)
        self.connections = [one for one in self.connections if one not in closed]
        for connection in closed:
            self._selector.unregister(connection.socket)
            connection.close(abruptly=abruptly)

    def _pings(self) -> int:
        return sum(one.pings for one in self.connections)

    def _turns(self) -> Iterator[list[Stream]]:
        """What was read in each turn, in the first one nothing."""
        until = time.monotonic() + self._seconds
        done: list[Stream] = []
        while time.monotonic() < until:
            yield done
            done = self._read(1.0)
        missing = sum(not one.answered for one in self.streams)
        raise TimeoutError(f"not within {self._seconds} s; {missing} streams are not answered")

    def _read(self, seconds: float) -> list[Stream]:
        """Within so many seconds, what is there."""
        ready = self._selector.select(seconds)
        return [stream for key, _ in ready for stream in key.data.read()]
