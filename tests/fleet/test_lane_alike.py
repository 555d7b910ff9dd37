"""Whatever a client sends, the lane and the Router behind it answer alike, and no process ends."""

import json
import re
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from typing import Any

import grpc
import psutil
import pytest
import urllib3
from h2.exceptions import ProtocolError

from bench.residency.models import Model, request, write_repository
from services.embedded.background import BackgroundStack
from tests.support.odd_requests import FLOATS, NUMBERS, Body, Message
from tests.support.raw_http2 import INFER, Connection, framed
from tests.support.stack import Fleet
from tests.support.waiting import wait_until

pytestmark = pytest.mark.triton

MODELS = tuple(Model(f"alike_{number}", 100 * number + 1) for number in range(3))
MODEL = MODELS[0]
DRAWN = 400
MIB = 1 << 20
LIMIT = 4 * MIB  # bytes of a message
HELD = 64 * MIB  # bytes of all
PROXY = 512 * MIB  # bytes that the proxy may take then, in all
PLAIN = framed(request(MODEL))
PATH = f"/v2/models/{MODEL.name}/infer"
BODY = json.dumps(
    {
        "inputs": [
            {
                "name": "INPUT",
                "shape": [1, FLOATS],
                "datatype": "FP32",
                "data": NUMBERS.tolist(),
            }
        ]
    }
).encode()

# Triton looks at parameters in no fixed order, and names the first that is wrong.
ANY_PARAMETER = re.compile(r"invalid value type for '.*' parameter, expected .*")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("models")
    write_repository(folder, MODELS)
    with BackgroundStack(
        f"--repository={folder}",
        *("--lane=on", "--trace-ratio=0", "--no-otlp"),
        environment={
            "SHOAL_ROUTER_MAX_MESSAGE_BYTES": str(LIMIT),
            "SHOAL_ROUTER_MAX_HELD_BYTES": str(HELD),
        },
        start_within=120,
    ) as up:
        fleet = Fleet(up)
        with grpc.insecure_channel(fleet.router_grpc) as channel:
            infer = infer_at(channel)
            for model in MODELS:
                infer(request(model))

            def laned() -> bool:
                before = through_lane(fleet)
                for model in MODELS:
                    infer(request(model))
                time.sleep(0.1)  # the journal is flushed every 10 ms
                return through_lane(fleet) == before + len(MODELS)

            wait_until(laned, 20, "all models in the lane")
        yield fleet
        running = up.announced()
        assert all(running.starts(part) == 1 for part in running.parts), "something ended"


def through_lane(stack: Fleet) -> int:
    lines = urllib3.request("GET", f"http://{stack.router_http}/metrics").data.decode().splitlines()
    name = "shoal_router_lane_requests_total{"
    return int(sum(float(line.split()[-1]) for line in lines if line.startswith(name)))


def own(stack: Fleet, kind: str) -> str:
    return str(stack.stack.announced().endpoints[f"router_own_{kind}"])


# --- gRPC -----------------------------------------------------------------------------------------


def infer_at(channel: grpc.Channel) -> Any:
    return channel.unary_unary(INFER)


def outcome(infer: Any, message: bytes) -> tuple[Any, ...]:
    try:
        answer, call = infer.with_call(message)
    except grpc.RpcError as error:
        text = ANY_PARAMETER.sub("a parameter's type", error.details() or "")
        call = error
        found: tuple[Any, ...] = (error.code().name, text)
    else:
        found = ("OK", answer)
    metadata = (*(call.initial_metadata() or ()), *(call.trailing_metadata() or ()))
    if "a parameter's type" in found:
        return found
    return (*found, [pair for pair in metadata if pair[0] not in ("date", "grpc-accept-encoding")])


def test_requests_of_every_kind_are_answered_alike(stack: Fleet) -> None:
    before = through_lane(stack)
    with ExitStack() as around:
        lane, router = [
            infer_at(around.enter_context(grpc.insecure_channel(address)))
            for address in (stack.router_grpc, own(stack, "grpc"))
        ]
        names = [model.name for model in MODELS]
        messages = [Message(seed, names).serialized() for seed in range(DRAWN)]
        outcomes = [(outcome(lane, message), outcome(router, message)) for message in messages]
    codes = {ours[0] for ours, _ in outcomes}
    assert {"OK", "INVALID_ARGUMENT"} <= codes
    differing = [
        (seed, ours, theirs) for seed, (ours, theirs) in enumerate(outcomes) if ours != theirs
    ]
    assert differing == []
    wait_until(lambda: through_lane(stack) - before > DRAWN // 4, 5, "many went through the lane")


def asked(address: str, content: bytes, headers: Iterable[tuple[str, str]], **more: Any) -> Any:
    """Return what comes back of one call on a connection of its own."""
    with closing(Connection(address)) as connection:
        stream = connection.call(headers, **more)
        connection.data(stream, content)
        ended = connection.ended(stream, 5)
    # A Triton leaves an empty message out.
    trailers = {key: text for key, text in ended.trailers.items() if text and key != "date"}
    return ended.message, ended.reset is not None, trailers


@pytest.mark.parametrize(
    ("content", "headers", "more"),
    [
        pytest.param(PLAIN * 2, [], {}, id="two messages"),
        pytest.param(framed(request(MODEL), size=80), [], {}, id="a prefix that says less"),
        pytest.param(framed(request(MODEL), compressed=1), [], {}, id="wrongly compressed"),
        pytest.param(framed(b""), [], {}, id="an empty message"),
        pytest.param(PLAIN, [("grpc-encoding", "unknown")], {}, id="an unknown compression"),
        pytest.param(PLAIN, [("grpc-encoding", "gzip")], {}, id="not compressed after all"),
        pytest.param(PLAIN, [("grpc-timeout", "never")], {}, id="no deadline"),
        pytest.param(PLAIN, [("grpc-timeout", "0S")], {}, id="a deadline of now"),
        pytest.param(PLAIN, [("grpc-timeout", "10S")], {}, id="a deadline"),
        pytest.param(PLAIN, [("x-a-bin", "!")], {}, id="not base64"),
        pytest.param(PLAIN, [("x-shoal-unknown", "1")], {}, id="one of Shoal's headers"),
        pytest.param(PLAIN, [("triton-grpc-protocol-admin-key", "1")], {}, id="Triton's key"),
        pytest.param(PLAIN, [("x-forwarded-for", "10.1.1.1")], {}, id="forwarded for another"),
        pytest.param(PLAIN, [("x-shoal-peer", "10.1.1.1:1")], {}, id="from another"),
        pytest.param(PLAIN, [("x-shoal-lane", f"/{MODELS[1].name}")], {}, id="a forged mark"),
        pytest.param(PLAIN, [(f"x-{n}", "1") for n in range(150)], {}, id="150 headers"),
        pytest.param(PLAIN, [], {"content_type": "text/plain"}, id="a type of no kind"),
        pytest.param(PLAIN, [], {"path": f"{INFER}/"}, id="another path"),
        pytest.param(PLAIN, [], {"path": f"{INFER}?a=b"}, id="a query"),
        *(
            pytest.param(PLAIN, [(f"x-envoy-{name}", value)], {}, id=f"Envoy's {name}")
            for name, value in (
                ("upstream-rq-timeout-ms", "1"),
                ("upstream-rq-per-try-timeout-ms", "1"),
                ("expected-rq-timeout-ms", "1"),
                ("retry-on", "5xx"),
                ("max-retries", "1000"),
                ("original-path", "/"),
                ("decorator-operation", "a"),
                ("force-trace", "1"),
            )
        ),
    ],
)
def test_calls_are_alike(
    stack: Fleet, content: bytes, headers: list[tuple[str, str]], more: dict[str, Any]
) -> None:
    ours = asked(stack.router_grpc, content, headers, **more)
    assert ours == asked(own(stack, "grpc"), content, headers, **more)


@pytest.mark.parametrize(
    ("name", "wrong", "right"),
    [
        ("grpc-timeout", "never", "10S"),
        ("grpc-encoding", "unknown", "identity"),
        ("grpc-trace-bin", "!", "YWJj"),
        ("x-of-all-bin", "!", "YWJj"),
        ("grpc-previous-rpc-attempts", "many", "1"),
    ],
)
@pytest.mark.parametrize("model", [MODEL.name, "nobody"])
def test_a_wrong_header_is_its_callers_own_trouble(
    stack: Fleet, name: str, wrong: str, right: str, model: str
) -> None:
    """All callers share the proxy's connections, on which a server remembers headers."""
    content = framed(request(Model(model, 0)))
    fine = asked(stack.router_grpc, content, [(name, right)])
    refused = asked(stack.router_grpc, content, [(name, wrong)])
    assert refused[2]["grpc-status"] == "13"
    assert [asked(stack.router_grpc, content, [(name, right)]) for _ in range(3)] == [fine] * 3


def test_what_is_too_large_is_refused_as_the_router_does(stack: Fleet) -> None:
    message = request(MODEL)
    rest = LIMIT + 1 - len(message)
    larger = message + b":" + varint(rest - 5) + bytes(rest - 5)
    assert LIMIT < len(larger) <= LIMIT + 2
    for content in (framed(larger), framed(larger + b"\x42\x01a")):
        ours = asked(stack.router_grpc, content, [])
        assert ours == asked(own(stack, "grpc"), content, [])
        assert ours[2]["grpc-status"] == "8"
        assert "SHOAL_ROUTER_MAX_MESSAGE_BYTES" in ours[2]["grpc-message"]
    for size in (9_000, 20_000):
        headers = [("x-large", "a" * size)]
        assert asked(stack.router_grpc, PLAIN, headers)[2]["grpc-status"] == "8"
    assert asked(stack.router_grpc, PLAIN, [])[2]["grpc-status"] == "0"


def varint(number: int) -> bytes:
    return bytes([*(number >> shift & 127 | 128 for shift in (0, 7, 14)), number >> 21])


def test_a_request_far_too_large_is_refused_by_the_proxy_in_the_same_form(stack: Fleet) -> None:
    content = bytes(LIMIT + 65 * MIB)
    _, _, trailers = asked(stack.router_grpc, framed(content), [])
    assert (trailers[":status"], trailers["grpc-status"]) == ("200", "8")
    assert "SHOAL_ROUTER_MAX_MESSAGE_BYTES" in trailers["grpc-message"]
    answer = urllib3.request("POST", f"http://{stack.router_http}{PATH}", body=content)
    assert answer.status == 413
    assert "SHOAL_ROUTER_MAX_MESSAGE_BYTES" in answer.json()["error"]


def test_bodies_that_never_end_fill_no_memory(stack: Fleet) -> None:
    """Those that hold most are reset, and nobody else notices."""
    proxy = psutil.Process(stack.stack.announced().pid_of("lane"))
    most, answered, stop = 0, 0, threading.Event()

    def ask() -> None:
        nonlocal most, answered
        with grpc.insecure_channel(stack.router_grpc) as channel:
            infer = infer_at(channel)
            while not stop.wait(0.01):
                infer(request(MODEL), timeout=30)
                answered += 1
                most = max(most, proxy.memory_info().rss)

    def hold(connection: Connection) -> int | None:
        call = connection.call()
        with suppress(OSError, ProtocolError):
            connection.data(call, framed(b"", size=LIMIT) + bytes(60 * MIB), end=False)
            connection.read(1.0)
        return connection.ended(call).reset if call in connection.done else None

    with ExitStack() as around, ThreadPoolExecutor(13) as pool:
        asking = pool.submit(ask)
        connections = [Connection(stack.router_grpc) for _ in range(12)]
        for connection in connections:
            around.callback(connection.close)
        held = list(pool.map(hold, connections))
        before = answered
        wait_until(lambda: answered > before + 50 or asking.done(), 30, "more answers")
        stop.set()
        asking.result()
    assert sum(code is not None for code in held) >= 4
    assert most < PROXY


# --- HTTP -----------------------------------------------------------------------------------------


def test_bodies_of_every_kind_are_answered_alike(stack: Fleet) -> None:
    before = through_lane(stack)
    with urllib3.PoolManager() as pool:

        def ask(address: str, body: bytes, headers: dict[str, str]) -> Any:
            url = f"http://{address}{PATH}"
            answer = pool.request("POST", url, body=body, headers=headers, retries=False)
            kept = {key.lower(): text for key, text in answer.headers.items()}
            kept.pop("date")
            return answer.status, answer.data, kept

        differing = []
        for seed in range(DRAWN):
            body, size = Body(seed).drawn()
            headers = {} if size is None else {"inference-header-content-length": str(size)}
            ours = ask(stack.router_http, body, headers)
            theirs = ask(own(stack, "http"), body, headers)
            if ours != theirs:
                differing.append((seed, body, ours, theirs))
    assert differing == []
    wait_until(lambda: through_lane(stack) - before > DRAWN // 4, 5, "many went through the lane")


def head(
    *more: str, method: str = "POST", path: str = PATH, version: str = "1.1", host: str = "Host: a"
) -> bytes:
    lines = [f"{method} {path} HTTP/{version}", host, *more]
    return "\r\n".join([line for line in lines if line]).encode() + b"\r\n\r\n"


def told(body: bytes = BODY, *more: str, **other: str) -> bytes:
    return head(f"Content-Length: {len(body)}", *more, **other) + body


def chunked(body: bytes, size: int) -> bytes:
    chunks = (body[at : at + size] for at in range(0, len(body), size))
    return b"".join(b"%x\r\n%s\r\n" % (len(one), one) for one in chunks) + b"0\r\n\r\n"


CHUNKED = "Transfer-Encoding: chunked"
REQUESTS = {
    "plain": told(),
    "a version": told(path=f"/v2/models/{MODEL.name}/versions/1/infer"),
    "a version of another spelling": told(path=f"/v2/models/{MODEL.name}/versions/01/infer"),
    "another version": told(path=f"/v2/models/{MODEL.name}/versions/2/infer"),
    "another model": told(path="/v2/models/nobody/infer"),
    "an encoded name": told(path=PATH.replace("_", "%5F")),
    "an encoded slash": told(path=PATH.replace("/infer", "%2Finfer")),
    "two slashes": told(path=PATH.replace("/models", "//models")),
    "a slash at the end": told(path=f"{PATH}/"),
    "a query": told(path=f"{PATH}?a=b"),
    "a way up": told(path=PATH.replace(MODEL.name, f"a/../{MODEL.name}")),
    "an absolute URL": told(path=f"http://a{PATH}"),
    **{f"method {name}": told(method=name) for name in ("GET", "HEAD", "PUT", "OPTIONS")},
    "a host of strangers": told(host="Host: a.example"),
    "an empty host": told(host="Host:"),
    "an address as host": told(host="Host: [::1]:80"),
    "not kept alive": told(BODY, "Connection: close"),
    "two in one": told() * 2,
    "one-byte chunks": head(CHUNKED) + chunked(BODY, 1),
    "chunks": head(CHUNKED) + chunked(BODY, 7),
    "expecting a word": told(BODY, "Expect: 100-continue"),
    "no body": told(b""),
    "an upgrade": told(BODY, "Connection: upgrade", "Upgrade: websocket"),
    "an upgrade to HTTP/2": told(BODY, "Connection: upgrade", "Upgrade: h2c"),
    "a compression": told(BODY, "Content-Encoding: unknown"),
    "a page's": told(BODY, "Origin: http://a.example"),
    "a timeout": told(BODY, "X-Request-Timeout: 10000000"),
    "Envoy's timeout": told(BODY, "X-Envoy-Upstream-Rq-Timeout-Ms: 1"),
    "the server's load": told(BODY, "Endpoint-Load-Metrics-Format: text"),
    "130 headers": told(BODY, *(f"x-{number}: a" for number in range(130))),
    "a header in Latin": told(BODY, "x-a: \u00ff"),
    "nothing but health": head(method="GET", path="/v2/health/live"),
    "nothing there": head(method="GET", path="/nothing"),
}
# Of these, the last answer is the proxy's own; in the same words.
BROKEN = {
    "garbage": b"garbage\r\n\r\n",
    "garbage behind a request": told() + b"garbage\r\n\r\n",
    "a wrong length behind a request": told() + head("Content-Length: one"),
    "two lengths": told(BODY, "Content-Length: 1"),
    "a length and chunks": told(BODY, CHUNKED),
    "a wrong chunk": head(CHUNKED) + b"one\r\n",
    "an unknown coding": told(BODY, "Transfer-Encoding: unknown"),
    "an unknown method": told(method="UNKNOWN"),
    "a header with a zero": told(BODY, "x-a: a\0b"),
}


def said(address: str, content: bytes) -> list[tuple[str, dict[str, str], bytes]]:
    """Return all answers on a connection: first lines, headers and bodies."""
    host, _, port = address.rpartition(":")
    found = []
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(content)
        connection.settimeout(0.5)
        received = b""
        try:
            while part := connection.recv(1 << 20):
                received += part
        except (TimeoutError, ConnectionResetError):
            pass
    while received:
        lines, _, received = received.partition(b"\r\n\r\n")
        status, *headers = lines.decode("latin-1").split("\r\n")
        kept = {key.lower(): text for key, _, text in (line.partition(": ") for line in headers)}
        size = 0 if content.startswith((b"HEAD", b"head")) else int(kept.get("content-length", 0))
        kept.pop("date", None)
        found.append((status, kept, received[:size]))
        received = received[size:]
    return found


Said = list[tuple[str, dict[str, str], bytes]]


@pytest.fixture(scope="module")
def answers(stack: Fleet) -> dict[str, tuple[Said, Said]]:
    """What the lane and the Router say to each of the requests."""
    contents = {**REQUESTS, **BROKEN}
    router = own(stack, "http")
    with ThreadPoolExecutor(16) as pool:
        ours = pool.map(lambda content: said(stack.router_http, content), contents.values())
        theirs = pool.map(lambda content: said(router, content), contents.values())
        return dict(zip(contents, zip(ours, theirs, strict=True), strict=True))


@pytest.mark.parametrize("name", REQUESTS)
def test_http_requests_are_alike(answers: dict[str, tuple[Said, Said]], name: str) -> None:
    ours, theirs = answers[name]
    assert ours
    assert ours == theirs


@pytest.mark.parametrize("name", BROKEN)
def test_broken_http_is_refused_in_the_same_words(
    answers: dict[str, tuple[Said, Said]], name: str
) -> None:
    (*ours, (status, headers, body)), (*theirs, (status_there, headers_there, body_there)) = (
        answers[name]
    )
    assert ours == theirs
    assert (status, json.loads(body)) == (status_there, json.loads(body_there))
    assert headers["content-type"] == headers_there["content-type"]


def test_json_cannot_be_nested_until_the_server_ends(stack: Fleet) -> None:
    deep = 200_000
    nested = (
        BODY.replace(b"15.0", b"[" * deep + b"15.0" + b"]" * deep),
        BODY[:-1] + b',"a":' + b'{"a":' * deep + b"1" + b"}" * (deep + 1),
    )
    for body in nested:
        answer = urllib3.request("POST", f"http://{stack.router_http}{PATH}", body=body)
        assert answer.status in (400, 500)
    assert said(stack.router_http, told())[0][0] == "HTTP/1.1 200 OK"


def test_heads_that_are_too_large_are_refused_in_the_same_words(stack: Fleet) -> None:
    for size in (9_000, 100_000, 300_000):
        (status, _, body), *_ = said(stack.router_http, told(BODY, f"x-a: {'a' * size}"))
        assert status == "HTTP/1.1 431 Request Header Fields Too Large"
        text = "the request's head has more than 8192 bytes"
        assert json.loads(body) == {"error": text}
