"""One HTTP/1 connection: what comes in pieces, what is broken, and clients of HTTP/1.0."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack

import pytest
import pytest_asyncio
from starlette.types import Receive, Scope, Send

from services.common import web
from services.common.http1 import HttpLimits
from services.common.ports import listen

pytestmark = pytest.mark.asyncio(loop_scope="module")

HEAD_BYTES = 4096
CHUNKED = b"POST /len HTTP/1.1\r\nhost: here\r\ntransfer-encoding: chunked\r\n\r\n"


class Server:
    """Answers with the number of a request's body bytes, or in two parts of unknown length."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.requests: list[tuple[str, bytes]] = []
        self.begun = asyncio.Event()
        self.gate: asyncio.Event | None = None

    async def exchange(self, sent: bytes) -> bytes:
        """Send bytes, and return all that comes back until the server closes the connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(sent)
            return await asyncio.wait_for(reader.read(), 10)
        finally:
            writer.close()
            await writer.wait_closed()


SERVERS: list[Server] = []


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    server = SERVERS[-1]
    body = b""
    more = True
    server.begun.set()
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message["body"]
        more = message.get("more_body", False)
    server.requests.append((scope["path"], body))
    if server.gate is not None:
        await server.gate.wait()
    text = b"%d" % len(body)
    size = [(b"content-length", b"%d" % len(text))] if scope["path"] == "/len" else []
    await send({"type": "http.response.start", "status": 200, "headers": size})
    await send({"type": "http.response.body", "body": text, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


@pytest_asyncio.fixture(loop_scope="module")
async def server() -> AsyncIterator[Server]:
    with ExitStack() as stack:
        listener = stack.enter_context(listen("127.0.0.1", 0))
        SERVERS.append(Server(listener.getsockname()[1]))
        async with web.serving(app, listener, HttpLimits(HEAD_BYTES, head_seconds=5)):
            yield SERVERS[-1]


def post(body: bytes, length: int | None = None, more: bytes = b"") -> bytes:
    size = len(body) if length is None else length
    return b"POST /len HTTP/1.1\r\nhost: here\r\ncontent-length: %d\r\n%b\r\n%b" % (
        size,
        more,
        body,
    )


def statuses(answer: bytes) -> list[int]:
    return [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]]


# --- broken requests behind whole ones ------------------------------------------------------------


@pytest.mark.parametrize("behind", [b"}", b"\0", b"no HTTP\r\n\r\n", b"\x16\x03\x01"])
async def test_a_whole_request_is_answered_before_what_is_broken_behind_it(
    server: Server, behind: bytes
) -> None:
    answer = await server.exchange(post(b"abc") + behind + b"\r\n\r\n")
    assert statuses(answer) == [200, 400]
    assert b"\r\n\r\n3HTTP/1.1 400" in answer
    assert server.requests == [("/len", b"abc")]


async def test_all_whole_requests_are_answered_first(server: Server) -> None:
    server.gate = asyncio.Event()
    asked = asyncio.create_task(
        server.exchange(post(b"a") + post(b"bc") + b"?\r\n\r\n" + post(b"d"))
    )
    await asyncio.wait_for(server.begun.wait(), 5)
    server.gate.set()
    assert statuses(await asked) == [200, 200, 400]
    assert server.requests == [("/len", b"a"), ("/len", b"bc")]


async def test_a_request_that_breaks_in_its_body_is_refused_after_those_before_it(
    server: Server,
) -> None:
    broken = CHUNKED + b"2\r\nab\r\nzz\r\n"
    assert statuses(await server.exchange(broken)) == [400]
    assert statuses(await server.exchange(post(b"a") + broken)) == [200, 400]
    assert server.requests == [("/len", b"a")]


async def test_a_head_too_large_is_refused_after_the_answers_before_it(server: Server) -> None:
    flood = b"GET / HTTP/1.1\r\nx-flood: " + b"a" * 10 * HEAD_BYTES
    assert statuses(await server.exchange(post(b"a") + flood)) == [200, 431]


async def test_line_feeds_between_requests_are_ignored(server: Server) -> None:
    last = post(b"ab", more=b"connection: close\r\n")
    assert statuses(await server.exchange(post(b"a") + b"\r\n\n" + last)) == [200, 200]


async def test_nothing_is_sent_behind_an_answer_that_closes(server: Server) -> None:
    answer = await server.exchange(post(b"a", more=b"connection: close\r\n") + b"}\r\n\r\n")
    assert statuses(answer) == [200]


async def test_an_upgrade_to_a_protocol_that_is_not_there_is_ignored(server: Server) -> None:
    more = b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    for body in (b"a", b"bc"):
        writer.write(post(body, more=more))
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        assert head.startswith(b"HTTP/1.1 200")
        assert await reader.readexactly(1) == b"%d" % len(body)
    writer.close()


# --- chunks and trailers --------------------------------------------------------------------------


async def test_a_body_in_tiny_chunks_keeps_nobody_waiting(server: Server) -> None:
    many = 200_000
    chunks = asyncio.create_task(
        server.exchange(
            CHUNKED.replace(b"here\r\n", b"here\r\nconnection: close\r\n")
            + b"1\r\nx\r\n" * many
            + b"0\r\n\r\n"
        )
    )
    await asyncio.wait_for(server.begun.wait(), 5)
    answers = 0
    while not chunks.done():
        answer = await server.exchange(post(b"a", more=b"connection: close\r\n"))
        answers += answer.endswith(b"\r\n\r\n1")
    assert (await chunks).endswith(b"\r\n\r\n%d" % many)
    assert answers > 10
    assert server.requests[-1] in (("/len", b"x" * many), ("/len", b"a"))


async def test_small_trailers_are_read_and_dropped(server: Server) -> None:
    head = CHUNKED.replace(b"here\r\n", b"here\r\nconnection: close\r\n")
    answer = await server.exchange(head + b"2\r\nab\r\n0\r\nx-sum: 7\r\n\r\n")
    assert statuses(answer) == [200]
    assert answer.endswith(b"\r\n\r\n2")


@pytest.mark.parametrize("flood", [b"x-t: " + b"a" * 100 + b"\r\n", b"x-t: ", b"0" * 100])
async def test_trailers_without_an_end_are_refused(server: Server, flood: bytes) -> None:
    rest = flood * 1000 if flood.endswith(b"\r\n") else flood + b"a" * 100_000
    end = b"0\r\n" if flood[0] != ord("0") else b""
    answer = await server.exchange(CHUNKED + b"1\r\nx\r\n" + end + rest)
    assert statuses(answer) in ([431], [400])


# --- HTTP/1.0, and HEAD ---------------------------------------------------------------------------


async def test_http_1_0_is_kept_alive_if_it_asks(server: Server) -> None:
    one = post(b"abc", more=b"connection: keep-alive\r\n").replace(b"HTTP/1.1", b"HTTP/1.0")
    answer = await server.exchange(one + post(b"ab").replace(b"HTTP/1.1", b"HTTP/1.0"))
    first, second = answer.split(b"HTTP/1.1 200 OK\r\n")[1:]
    assert b"connection: keep-alive\r\n" in first
    assert first.endswith(b"\r\n\r\n3")
    assert b"connection: close\r\n" in second
    assert second.endswith(b"\r\n\r\n2")


async def test_http_1_0_gets_no_chunks(server: Server) -> None:
    asked = b"GET /parts HTTP/1.0\r\nconnection: keep-alive\r\n\r\n"
    answer = await server.exchange(asked)
    assert b"chunked" not in answer
    assert b"connection: close\r\n" in answer
    assert answer.endswith(b"\r\n\r\n0")
    new = await server.exchange(b"GET /parts HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    assert new.endswith(b"\r\n\r\n1\r\n0\r\n0\r\n\r\n")


async def test_head_has_no_body(server: Server) -> None:
    answer = await server.exchange(b"HEAD /len HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    assert b"content-length: 1\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")
