"""Clients that break every rule, and a well-behaved one beside each, which must not notice."""

import gzip
import json
import random
import socket
import struct
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from tritonclient.grpc import service_pb2

from services.embedded.background import BackgroundStack
from services.router.settings import EXCESS, MAX_MESSAGE, Settings
from shoal.controller.v1 import controller_service_pb2 as controller
from shoal.router.v1 import router_service_pb2 as router_wire
from tests.support.bystander import MODEL, Experience, beside
from tests.support.raw_http2 import (
    CONTINUATION,
    PING,
    PREFACE,
    SETTINGS,
    STREAM,
    Connection,
    connected,
    frame,
    framed,
)
from tests.support.stack import Fleet
from tests.support.triton_models import write
from tests.support.waiting import wait_until

pytestmark = pytest.mark.triton

MIB = 1 << 20
LIMIT = 8 * MIB  # bytes of a message
HEADERS = 16 * 1024
STREAMS = 100
HOLD = 0.3  # seconds that an attack goes on
SLOWER = 10.0  # times; the machine may have other things to do as well
SLACK = 0.25  # seconds
PATIENCE = 10.0  # seconds, of the client beside
ENOUGH = 10  # requests beside an attack; it goes on until then
TRIES = 3
ANOTHER = "another"
# Of memory, over a second round of all attacks: what malloc keeps varies by as much.
GROWTH = 128 * MIB


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    repository = tmp_path_factory.mktemp("models")
    write(repository, MODEL)
    with BackgroundStack(
        f"--repository={repository}",
        "--trace-ratio=0",
        environment={
            "SHOAL_ROUTER_MAX_MESSAGE_BYTES": str(LIMIT),
            "SHOAL_ROUTER_MAX_HEADER_BYTES": str(HEADERS),
            "SHOAL_ROUTER_MAX_STREAMS": str(STREAMS),
        },
    ) as running:
        fleet = Fleet(running)
        fleet.inference.ModelInfer(request(4), timeout=30)
        yield fleet


def request(size: int) -> service_pb2.ModelInferRequest:
    """`size`: bytes of its tensor, and of the answer's."""
    made = service_pb2.ModelInferRequest(model_name=MODEL)
    made.inputs.add(name="INPUT", datatype="FP32", shape=[size // 4])
    made.raw_input_contents.append(np.zeros(size // 4, np.float32).tobytes())
    return made


def message(size: int) -> bytes:
    return framed(request(size).SerializeToString())


@pytest.fixture(scope="module")
def alone(stack: Fleet) -> Experience:
    """What it experiences with nobody else there."""
    with beside(stack.router_grpc, patience=PATIENCE) as experience:
        time.sleep(HOLD)
    return experience


# --- attacks --------------------------------------------------------------------------------------

Attack = Callable[[str], None]
ATTACKS: dict[str, Attack] = {}


def attack(function: Attack) -> Attack:
    ATTACKS[function.__name__] = function
    return function


def until_held(began: float) -> None:
    time.sleep(max(0.0, began + HOLD - time.monotonic()))


@attack
def reads_nothing(address: str) -> None:
    """Large answers that nobody takes, on streams without a window."""
    began = time.monotonic()
    with connected(address, 4, window=0) as connections:
        for connection in connections:
            for _ in range(4):
                connection.data(connection.call(), message(MIB))
        until_held(began)


@attack
def reads_drop_by_drop(address: str) -> None:
    began = time.monotonic()
    with connected(address, 4, window=16) as connections:
        streams = [connection.call() for connection in connections]
        for connection, stream in zip(connections, streams, strict=True):
            connection.data(stream, message(MIB))
        while time.monotonic() < began + HOLD:
            for connection in connections:
                connection.read(0.02)


@attack
def reads_nothing_of_a_stream(address: str) -> None:
    """And goes on asking, until the Router takes no more."""
    began = time.monotonic()
    with connected(address, 2, window=0) as connections:
        for connection in connections:
            asked = [message(MIB // 4) for _ in range(40)]
            connection.data(connection.call(path=STREAM), asked, end=False, seconds=HOLD / 2)
        until_held(began)


@attack
def opens_streams_and_says_nothing(address: str) -> None:
    began = time.monotonic()
    with connected(address, 2) as connections:
        for connection in connections:
            for number in range(STREAMS // 2):
                stream = connection.call(path=STREAM)
                connection.data(stream, message(64)[: number % 70], end=False)
        until_held(began)


@attack
def resets_streams_during_their_answers(address: str) -> None:
    began = time.monotonic()
    while time.monotonic() < began + HOLD:
        with connected(address, 1, window=1024) as (connection,):
            for _ in range(5):
                stream = connection.call(path=STREAM)
                connection.data(stream, [message(MIB // 8)] * 4, end=False, seconds=HOLD / 4)
                connection.read(0.02)
                connection.reset(stream)


@attack
def closes_its_half(address: str) -> None:
    began = time.monotonic()
    with connected(address, 8) as connections:
        for connection in connections:
            connection.data(connection.call(), message(MIB // 8))
            connection.socket.shutdown(socket.SHUT_WR)
        until_held(began)


@attack
def never_ends_its_message(address: str) -> None:
    began = time.monotonic()
    with connected(address, 4) as connections:
        for connection in connections:
            for _ in range(20):
                connection.data(connection.call(), message(4096)[:-100], end=False)
        until_held(began)


@attack
def resets_during_the_answer(address: str) -> None:
    began = time.monotonic()
    while time.monotonic() < began + HOLD:
        with connected(address, 1, window=1024) as (connection,):
            for _ in range(10):
                stream = connection.call()
                connection.data(stream, message(MIB // 4))
                connection.read(0.02)
                connection.reset(stream)


@attack
def breaks_off_during_the_answer(address: str) -> None:
    began = time.monotonic()
    while time.monotonic() < began + HOLD:
        connection = Connection(address, window=1024)
        connection.data(connection.call(), message(MIB // 4))
        connection.read(0.02)
        connection.close(abruptly=True)


@attack
def begins_and_resets(address: str) -> None:
    """As in CVE-2023-44487."""
    began = time.monotonic()
    while time.monotonic() < began + HOLD:
        with connected(address) as (connection,):
            try:
                for _ in range(300):
                    connection.reset(connection.call())
            except OSError:
                continue


@attack
def claims_four_gigabytes(address: str) -> None:
    for size in (2**32 - 1, 2**31, LIMIT + EXCESS + 1):
        with connected(address) as (connection,):
            stream = connection.call()
            connection.data(stream, framed(b"\x0a", size), end=False)
            # A proxy in front refuses it once as much as the Router would take is there.
            connection.data(stream, (bytes(MIB) for _ in range((LIMIT + EXCESS) // MIB)), end=False)
            ended = connection.ended(stream)
            assert ended.grpc_status == "8", ended  # RESOURCE_EXHAUSTED


@attack
def sends_beyond_the_limit(address: str) -> None:
    with connected(address) as (connection,):
        stream = connection.call()
        connection.data(stream, message(LIMIT))
        ended = connection.ended(stream)
        assert ended.grpc_status == "8", ended
        assert "SHOAL_ROUTER_MAX_MESSAGE_BYTES" in ended.trailers["grpc-message"]


def endpoint(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


@attack
def speaks_of_something_else(address: str) -> None:
    """Wrong content types, methods and paths."""
    with connected(address) as (connection,):
        odd: tuple[dict[str, Any], ...] = (
            {"content_type": "text/html"},
            {"content_type": ""},
            {"content_type": "application/grpc+unknown"},
            {"method": "GET"},
            {"path": "/nothing/Here"},
            {"path": "nothing"},
            {"path": "*"},
        )
        for more in odd:
            stream = connection.call(**more)
            connection.data(stream, message(64))
            connection.ended(stream)
    with socket.create_connection(endpoint(address)) as plain:
        plain.settimeout(10)
        plain.sendall(b"GET / HTTP/1.1\r\nHost: shoal\r\n\r\n")
        while plain.recv(4096):
            pass


@attack
def lies_about_compression(address: str) -> None:
    for encoding in ("gzip", "identity", "nonsense"):
        with connected(address) as (connection,):
            stream = connection.call([("grpc-encoding", encoding)])
            connection.data(stream, framed(b"no such thing", compressed=1))
            assert connection.ended(stream).grpc_status not in ("", "0")
            stream = connection.call([("grpc-encoding", encoding)])
            connection.data(stream, framed(b"no such thing", compressed=7))
            connection.read(0.05)


@attack
def sends_garbage(address: str) -> None:
    """From the first byte on, or after a proper beginning."""
    noise = random.Random(1)
    for _ in range(20):
        with socket.create_connection(endpoint(address)) as plain:
            plain.sendall(noise.choice([b"", PREFACE, PREFACE + frame(SETTINGS)]))
            plain.sendall(noise.randbytes(noise.randrange(1, 4096)))
    for bad in (
        frame(SETTINGS, payload=b"123"),
        frame(SETTINGS, payload=struct.pack(">HI", 4, 2**32 - 1)),  # a window beyond the largest
        frame(PING, payload=b"short"),
        frame(0, stream=0, payload=b"data on no stream"),
        frame(0, stream=2, payload=b"data on the server's stream"),
        frame(1, flags=4, stream=1, payload=b"\xff" * 40),  # headers that are not HPACK
        frame(1, flags=4, stream=0, payload=b"\x82"),
        frame(3, stream=1, payload=b"\0\0\0\0"),  # a reset of nothing
        frame(5, flags=4, stream=1, payload=b"\0\0\0\2\x82"),  # a push
        frame(8, stream=0, payload=b"\0\0\0\0"),  # no more window
        frame(8, stream=0, payload=b"\x7f\xff\xff\xff"),  # too much of it
        frame(CONTINUATION, stream=1, payload=b"\x82"),
        frame(99, flags=255, stream=7, payload=b"unknown"),
        frame(0, stream=1, payload=b"x", size=2**24 - 1),
    ):
        with connected(address) as (connection,):
            connection.send(bad)
            connection.read(0.02)


@attack
def floods_with_control_frames(address: str) -> None:
    for flood in (
        frame(PING, payload=bytes(8)) * 2000,
        frame(SETTINGS) * 2000,
        frame(2, stream=1, payload=bytes(5)) * 2000,  # priorities
        frame(0, stream=1) * 2000,  # empty data
    ):
        with connected(address) as (connection,):
            try:
                connection.send(flood)
                connection.read(0.1)
            except OSError:
                continue


@attack
def floods_with_headers(address: str) -> None:
    for flood in ([("x-large", "x" * (HEADERS + 1))], [(f"x-{n}", "y") for n in range(2000)]):
        with connected(address) as (connection,):
            ended = connection.settled().ended(connection.call(flood))
            assert ended.grpc_status == "8", ended
        with connected(address) as (connection,):  # before it is told of a limit
            stream = connection.call(flood)
            connection.data(stream, message(64))
            assert connection.ended(stream).grpc_status == "8"


@attack
def never_ends_its_headers(address: str) -> None:
    for part in (b"\x00\x01a\x01b" * 800, b"\x40\x01a\x01b" * 800, b"\xbe" * 4000):
        for settled in (False, True):
            with connected(address) as (connection,):
                if settled:
                    connection.settled()
                try:
                    connection.send(frame(1, stream=1, payload=b"\x83"))
                    for _ in range(500):
                        connection.send(frame(CONTINUATION, stream=1, payload=part))
                except OSError:
                    continue
                connection.read(0.05)


@attack
def wants_more_streams_than_there_are(address: str) -> None:
    with connected(address) as (connection,):
        assert connection.settled().state.remote_settings.max_concurrent_streams == STREAMS
        connection.state.remote_settings.max_concurrent_streams = 10 * STREAMS
        connection.state.remote_settings.acknowledge()
        try:
            for _ in range(3 * STREAMS):
                connection.data(connection.call(), message(64)[:-1], end=False)
        except OSError:
            return
        connection.read(0.1)


@attack
def keeps_idle_connections(address: str) -> None:
    began = time.monotonic()
    with ExitStack() as kept:
        for number in range(300):
            plain = kept.enter_context(socket.create_connection(endpoint(address)))
            plain.sendall((b"", PREFACE, PREFACE + frame(SETTINGS))[number % 3])
        until_held(began)


@attack
def speaks_slowly(address: str) -> None:
    """Slowloris: preface, settings and headers byte by byte."""
    words = PREFACE + frame(SETTINGS) + frame(1, stream=1, payload=b"\x83\x86" * 20)
    with ExitStack() as kept:
        slow = [kept.enter_context(socket.create_connection(endpoint(address))) for _ in range(50)]
        for number in range(20):
            for one in slow:
                one.sendall(words[number : number + 1])
            time.sleep(HOLD / 20)


# --- over HTTP ------------------------------------------------------------------------------------

HTTP_ATTACKS: dict[str, Attack] = {}


def http_attack(function: Attack) -> Attack:
    HTTP_ATTACKS[function.__name__] = function
    return function


POST = f"POST /v2/models/{MODEL}/infer HTTP/1.1\r\nHost: shoal\r\n".encode()


def said(address: str, *words: bytes) -> bytes:
    """What comes back at once, if anything does."""
    with socket.create_connection(endpoint(address)) as plain:
        plain.settimeout(0.2)
        try:
            for word in words:
                plain.sendall(word)
            return plain.recv(4096)
        except OSError:
            return b""


@http_attack
def sends_garbage_over_http(address: str) -> None:
    noise = random.Random(2)
    for _ in range(20):
        said(address, noise.randbytes(noise.randrange(1, 4096)))
    for words in (
        PREFACE,
        b"POST / HTTP/9.9\r\n\r\n",
        b"\r\n" * 1000,
        b"GET http://[ HTTP/1.1\r\n\r\n",
    ):
        said(address, words)


@http_attack
def claims_gigabytes_over_http(address: str) -> None:
    for length in (b"99999999999", b"-1", b"1e9", str(LIMIT + EXCESS + 1).encode()):
        said(address, POST, b"Content-Length: " + length + b"\r\n\r\n", b"{")
    endless = (b"%x\r\n" % MIB + bytes(MIB) + b"\r\n" for _ in range(2 * LIMIT // MIB))
    said(address, POST, b"Transfer-Encoding: chunked\r\n\r\n", *endless)


@http_attack
def floods_with_headers_over_http(address: str) -> None:
    said(address, POST, b"X-Large: " + b"x" * MIB + b"\r\n\r\n")
    said(address, POST, *(b"X-%d: y\r\n" % number for number in range(20_000)), b"\r\n")


@http_attack
def speaks_slowly_over_http(address: str) -> None:
    words = POST + b"Content-Length: 100\r\n\r\n{"
    with ExitStack() as kept:
        slow = [kept.enter_context(socket.create_connection(endpoint(address))) for _ in range(100)]
        for number in range(20):
            for one in slow:
                one.sendall(words[number : number + 1])
            time.sleep(HOLD / 20)


# --- what the others see --------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*ATTACKS, *HTTP_ATTACKS])
def test_nobody_else_notices(stack: Fleet, alone: Experience, name: str) -> None:
    with beside(stack.router_grpc, patience=PATIENCE) as experience:
        while len(experience.times) < ENOUGH:
            attacked(stack, name)
    assert experience.problems == []
    assert experience.median < SLOWER * alone.median + SLACK


def attacked(stack: Fleet, name: str) -> None:
    if name in ATTACKS:
        ATTACKS[name](stack.router_grpc)
    else:
        HTTP_ATTACKS[name](stack.router_http)


def router(stack: Fleet) -> psutil.Process:
    return psutil.Process(stack.stack.announced().pid_of("router"))


def test_nothing_of_them_stays(stack: Fleet, alone: Experience) -> None:
    """After a second round of all attacks the Router holds no more than after the first."""
    process = router(stack)
    idle = settled_files(process)
    memory = process.memory_info().rss
    for name in (*ATTACKS, *HTTP_ATTACKS):
        attacked(stack, name)
    wait_until(lambda: process.num_fds() <= idle, 30, f"no more than {idle} files are open")
    assert process.memory_info().rss - memory < GROWTH
    wait_until(lambda: in_flight(stack) == 0, 10, "nothing of theirs is in flight")
    gone = stack.controller.EvictModel(
        controller.EvictModelRequest(name=f"models/{MODEL}"), timeout=20
    )
    assert len(gone.evicted) == 1, "no request of theirs keeps the model"
    assert stack.inference.ModelInfer(request(4), timeout=30)
    starts = stack.stack.announced()
    assert (starts.starts("router"), starts.starts("triton-0")) == (1, 1)


def in_flight(stack: Fleet) -> int:
    reply = stack.router.GetStatistics(router_wire.GetStatisticsRequest(), timeout=5)
    return sum(row.in_flight for row in reply.models)


def settled_files(process: psutil.Process) -> int:
    """How many are open when those of the attacks before are closed."""
    began = time.monotonic()
    least = process.num_fds()
    while time.monotonic() < began + 1.0:
        time.sleep(0.05)
        least = min(least, process.num_fds())
    return least


@pytest.mark.soak
@pytest.mark.parametrize("seconds", [600])
def test_all_of_them_for_long(stack: Fleet, alone: Experience, seconds: int) -> None:
    process = router(stack)
    until = time.monotonic() + seconds
    sizes: list[int] = []
    with beside(stack.router_grpc, patience=PATIENCE) as experience:
        while time.monotonic() < until:
            for name in (*ATTACKS, *HTTP_ATTACKS):
                attacked(stack, name)
            sizes.append(process.memory_info().rss)
    assert experience.problems == []
    assert experience.median < SLOWER * alone.median + SLACK
    assert sizes[-1] - sizes[len(sizes) // 2] < GROWTH


def for_nobody(size: int) -> Iterator[bytes]:
    """A request of `size` bytes, for a model that there is not."""
    head = service_pb2.ModelInferRequest(model_name="nobody").SerializeToString()
    raw = size - len(head) - 6
    head += b"\x3a" + bytes(raw >> shift & 127 | 128 for shift in (0, 7, 14, 21))
    yield framed(head + bytes([raw >> 28]), size)
    for sent in range(0, raw, MIB):
        yield bytes(min(MIB, raw - sent))


@contextmanager
def serving(folder: Path, **environment: str) -> Iterator[Fleet]:
    write(folder, MODEL)
    with BackgroundStack(
        f"--repository={folder}", "--trace-ratio=0", environment=environment
    ) as running:
        fleet = Fleet(running)
        fleet.inference.ModelInfer(request(4), timeout=30)
        yield fleet


def sent_beside(fleet: Fleet, size: int, times: int, code: str) -> Experience:
    """What another client experiences while messages of `size` bytes come, whose calls end with
    `code`."""
    patience = 10.0 if size < MAX_MESSAGE or code != NOT_FOUND else STALL_SECONDS
    with (
        beside(fleet.router_grpc, patience=patience) as experience,
        connected(fleet.router_grpc) as (connection,),
    ):
        for _ in range(times):
            stream = connection.call()
            connection.data(stream, for_nobody(size), seconds=LARGEST_SECONDS)
            assert connection.ended(stream, 60).grpc_status == code
    assert experience.problems == []
    return experience


NOT_FOUND, RESOURCE_EXHAUSTED = "5", "8"
LARGEST_SECONDS = 600.0  # in which this slow client has sent two gigabytes
STALL_SECONDS = 60.0  # 7 s on a machine that is free


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """With all limits as they are by default, and two models."""
    folder = tmp_path_factory.mktemp("models")
    write(folder, ANOTHER)
    with serving(folder) as fleet:
        yield fleet


def test_two_gigabytes_where_fewer_are_allowed(usual: Fleet) -> None:
    """What is not taken in costs nobody anything."""
    process = router(usual)
    before = process.memory_info().rss
    experience = sent_beside(usual, MAX_MESSAGE, 4, RESOURCE_EXHAUSTED)
    assert experience.median < SLACK
    assert process.memory_info().rss - before < GROWTH


def test_little_that_grows_to_much(usual: Fleet) -> None:
    """Compressed, it has a thousandth of its size. Nobody waits until it is decompressed but who
    sent it."""
    bomb = gzip.compress(b"".join(for_nobody(200 * MIB))[5:])

    def over_grpc() -> None:
        with connected(usual.router_grpc) as (connection,):
            stream = connection.call([("grpc-encoding", "gzip")])
            connection.data(stream, framed(bomb, compressed=1))
            assert connection.ended(stream).grpc_status == NOT_FOUND

    def over_http() -> None:
        with pytest.raises(urllib.error.HTTPError, match="413"):
            asked_over_http(usual, bomb)

    waited_for_by_nobody_else(usual, over_grpc)
    waited_for_by_nobody_else(usual, over_http)


def test_much_json(usual: Fleet) -> None:
    """To a model of its own: one that is asked by others could not answer them meanwhile."""
    zeros = 6 * MIB
    one = {"name": "INPUT", "datatype": "FP32", "shape": [zeros], "data": []}
    text = json.dumps({"inputs": [one]}).replace("[]", f"[{'0,' * (zeros - 1)}0]")
    numbers, broken = (gzip.compress(body.encode()) for body in (text, text[:-4]))

    def good() -> None:
        assert asked_over_http(usual, numbers).count(b"0.0") == zeros

    def no_json() -> None:
        with pytest.raises(urllib.error.HTTPError, match="500"):
            asked_over_http(usual, broken)

    waited_for_by_nobody_else(usual, good)
    waited_for_by_nobody_else(usual, no_json)


def asked_over_http(fleet: Fleet, packed: bytes) -> bytes:
    url = f"http://{fleet.router_http}/v2/models/{ANOTHER}/infer"
    asked = urllib.request.Request(url, packed, {"Content-Encoding": "gzip"})
    with urllib.request.urlopen(asked, timeout=60) as reply:
        return bytes(reply.read())


def waited_for_by_nobody_else(fleet: Fleet, send: Callable[[], None]) -> None:
    """Once of a few times: the machine may be busy with other things."""
    for _ in range(TRIES):
        with beside(fleet.router_grpc, patience=PATIENCE) as experience:
            began = time.monotonic()
            send()
            took = time.monotonic() - began
        assert experience.problems == []
        if max(experience.times) < took / 4:
            return
    pytest.fail(f"a small request took {max(experience.times):.2f} s of {took:.2f}")


@pytest.mark.soak
def test_two_gigabytes_where_they_are_allowed(tmp_path: Path) -> None:
    """While the Router takes it in, nobody else is answered; afterwards all are."""
    with serving(tmp_path, SHOAL_ROUTER_MAX_MESSAGE_BYTES=str(MAX_MESSAGE)) as fleet:
        experience = sent_beside(fleet, MAX_MESSAGE, 1, NOT_FOUND)
        assert experience.median < SLACK


@pytest.mark.soak
def test_the_largest_message_that_is_allowed(tmp_path: Path) -> None:
    """By default, and for a model that there is not."""
    with serving(tmp_path) as fleet:
        experience = sent_beside(fleet, Settings().max_message_bytes, 8, NOT_FOUND)
        assert experience.median < SLACK
