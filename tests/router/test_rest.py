"""The HTTP port itself: bodies, heads, deadlines, clients that go away, and what it says of itself.

What answers behind it is scripted here; tests/fleet/test_rest.py asks real models.
"""

import asyncio
import gzip
import json
import re
import sys
import time
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.rpc import error_details_pb2, status_pb2
from tritonclient.grpc import service_pb2

from services.common import web
from services.common.caller import CallerPolicy
from services.common.errors import AdminRequired
from services.common.http1 import HttpLimits
from services.common.ports import listen
from services.common.status import DETAILS_KEY, details
from services.controller.core.errors import NeverFits, NoRoom
from services.router.call import RefusedByServers
from services.router.control.placement_watch import PlacementWatch
from services.router.core.rest.browsers import BrowserPolicy
from services.router.core.routing.routes import Route, VersionRoute
from services.router.core.routing.table import Table
from services.router.rest.app import app
from services.router.rest.converter import Converter
from services.router.rest.openapi import pages
from services.router.rest.schemas import SCHEMAS
from services.router.rest.service import Service
from services.router.rest.table import ROUTES
from services.router.servers.answers import TritonError
from tests.support.rest import Backend

pytestmark = pytest.mark.asyncio(loop_scope="module")

LIMIT = 1 << 20
JSON_LIMIT = 1 << 18
MODEL = "/v2/models/echo/infer"
PREDICT = "/v1/models/echo/predict"
NUMBERS = {"inputs": [{"name": "X", "datatype": "FP32", "shape": [2], "data": [1.5, 2]}]}


class Running:
    def __init__(
        self,
        backend: Backend,
        watch: PlacementWatch,
        port: int,
        converter: Converter,
        service: Service,
    ) -> None:
        self.service = service
        self.backend = backend
        self.watch = watch
        self.port = port
        self.converter = converter

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def raw(self, data: bytes) -> tuple[int, dict[str, str], bytes]:
        reader, writer = await self.connect()
        writer.write(data)
        found = await response(reader)
        writer.close()
        return found

    async def ask(
        self, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[int, dict[str, str], Any]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode() if body else b""
        status, found, text = await self.raw(request(method, path, data, headers))
        if found.get("content-type") == "application/json" and "content-encoding" not in found:
            return status, found, json.loads(text) if text else None
        return status, found, text


def request(method: str, path: str, body: bytes, headers: dict[str, str]) -> bytes:
    given = {"host": "here", "content-length": str(len(body)), "connection": "close"} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in given.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body


async def response(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in head[1:] if line)
    if "content-length" in headers:
        body = await reader.readexactly(int(headers["content-length"]))
    else:
        body = await reader.read()
    return int(head[0].split()[1]), headers, body


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[Running]:
    backend = Backend()
    watch = PlacementWatch({}, "router-test", Table(), None)
    watch.table.routes["echo"] = Route(1, {"stable": 1}, {1: VersionRoute(servers=("a",))})
    watch.table.routes["rare"] = Route(0, {}, {3: VersionRoute(reason="evicted: lru")})
    watch.synchronized.set()

    async def metrics() -> bytes:
        return b"up 1\n"

    service = Service(
        watch=watch,
        inference=backend,  # type: ignore[arg-type]
        callers=CallerPolicy(),
        answers={"ModelConfig": backend.config, "RepositoryModelLoad": backend.load},
        metrics=metrics,
        pages=pages(ROUTES, "1.2.3"),
        max_body=LIMIT,
        max_json=JSON_LIMIT,
        responses=backend.stream,
    )
    limits = HttpLimits(head_bytes=4096, head_seconds=0.3, connections=20)
    async with AsyncExitStack() as stack:
        listener = stack.enter_context(listen("127.0.0.1", 0))
        stack.push_async_callback(service.converter.close)
        await stack.enter_async_context(web.serving(app(service), listener, limits))
        port = listener.getsockname()[1]
        yield Running(backend, watch, port, service.converter, service)


@pytest_asyncio.fixture(loop_scope="module")
async def running(server: Running) -> Running:
    """With a backend that has heard and been told nothing."""
    vars(server.backend).update(vars(Backend()))
    return server


# --- tensors --------------------------------------------------------------------------------------


async def test_json_goes_in_and_comes_out(running: Running) -> None:
    status, headers, found = await running.ask("POST", MODEL, {"id": "7", **NUMBERS})
    assert (status, found) == (
        200,
        {
            "id": "7",
            "model_name": "echo",
            "model_version": "1",
            "outputs": [{"name": "X", "datatype": "FP32", "shape": [2], "data": [1.5, 2.0]}],
        },
    )
    assert headers["x-shoal-route"] == "arm a"
    assert "else" not in headers


async def test_binary_goes_in_and_comes_out_as_it_is(running: Running) -> None:
    tensor = b"\x00\x01\x02\x03\xff\xfe\xfd\xfc"
    inputs = [
        {
            "name": "X",
            "datatype": "FP32",
            "shape": [2],
            "parameters": {"binary_data_size": 8},
        }
    ]
    text = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    status, headers, body = await running.ask(
        "POST", MODEL, text + tensor, inference_header_content_length=str(len(text))
    )
    assert status == 200
    assert headers["content-type"] == "application/octet-stream"
    size = int(headers["inference-header-content-length"])
    assert json.loads(body[:size])["outputs"][0]["parameters"] == {"binary_data_size": 8}
    assert body[size:] == tensor
    sent = service_pb2.ModelInferRequest.FromString(running.backend.asked[0].message)
    assert list(sent.raw_input_contents) == [tensor]


async def test_numbers_that_are_none(running: Running) -> None:
    data = b'{"inputs":[{"name":"X","datatype":"FP32","shape":[3],"data":[NaN,-Infinity,0.1]}]}'
    status, _, found = await running.ask("POST", MODEL, data)
    assert status == 200
    numbers = found["outputs"][0]["data"]
    assert repr(numbers) == "[nan, -inf, 0.10000000149011612]"


async def test_bytes_that_are_no_text_come_as_they_are(running: Running) -> None:
    inputs = [
        {"name": "X", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 6}}
    ]
    text = json.dumps({"inputs": inputs}).encode()
    status, _, body = await running.raw(
        request(
            "POST",
            MODEL,
            text + b"\x02\x00\x00\x00\xff\xc3",
            {"inference_header_content_length": str(len(text))},
        )
    )
    assert status == 200
    assert b'"data":["\xff\xc3"]' in body


@pytest.mark.parametrize(
    ("coding", "packed"), [("gzip", gzip.compress), ("deflate", zlib.compress)]
)
async def test_bodies_may_be_compressed(running: Running, coding: str, packed: Any) -> None:
    body = packed(json.dumps(NUMBERS).encode())
    status, headers, answer = await running.ask(
        "POST", MODEL, body, content_encoding=coding, accept_encoding=coding
    )
    assert (status, headers["content-encoding"]) == (200, coding)
    unpacked = gzip.decompress(answer) if coding == "gzip" else zlib.decompress(answer)
    assert json.loads(unpacked)["outputs"][0]["data"] == [1.5, 2.0]


async def test_a_compressed_body_may_not_grow_beyond_the_limit(running: Running) -> None:
    bomb = gzip.compress(bytes(2 * LIMIT))
    status, _, found = await running.ask("POST", MODEL, bomb, content_encoding="gzip")
    assert (status, found["reason"]) == (413, "MESSAGE_TOO_LARGE")


async def test_another_encoding_is_refused(running: Running) -> None:
    status, headers, found = await running.ask("POST", MODEL, NUMBERS, content_encoding="br")
    assert (status, found) == (501, {"error": "Unsupported compression type"})
    assert headers["accept-encoding"] == "gzip, deflate"


async def test_json_too_large_is_refused_and_binary_is_not(running: Running) -> None:
    numbers = {"inputs": [{**NUMBERS["inputs"][0], "data": [1] * JSON_LIMIT}]}
    status, _, found = await running.ask("POST", MODEL, numbers)
    assert (status, found["reason"]) == (413, "JSON_TOO_LARGE")
    size = 2 * JSON_LIMIT
    one = {"name": "X", "datatype": "UINT8", "shape": [size]}
    text = json.dumps({"inputs": [one | {"parameters": {"binary_data_size": size}}]}).encode()
    status, _, _ = await running.ask(
        "POST", MODEL, text + bytes(size), inference_header_content_length=str(len(text))
    )
    assert status == 200


MANY = [1.5] * 40_000  # more bytes than are converted in the Router itself, in JSON as in binary
INPUT = {"name": "X", "datatype": "FP32", "shape": [len(MANY)], "data": MANY}


@pytest.mark.parametrize(
    ("path", "asked", "found"),
    [
        (MODEL, {"inputs": [INPUT]}, lambda answer: answer["outputs"][0]["data"]),
        ("/v2/models/echo/generate", {"X": MANY}, lambda answer: answer["X"]),
        (PREDICT, {"inputs": {"X": MANY}}, lambda answer: answer["outputs"]["X"]),
        (PREDICT, {"instances": [MANY]}, lambda answer: answer["predictions"][0]),
    ],
    ids=["infer", "generate", "inputs", "instances"],
)
async def test_much_json_goes_in_and_comes_out(
    running: Running, path: str, asked: Any, found: Callable[[Any], list[float]]
) -> None:
    status, _, answer = await running.ask("POST", path, asked)
    assert status == 200
    assert found(answer) == MANY


@pytest.mark.parametrize("path", [MODEL, "/v2/models/echo/generate", PREDICT])
async def test_much_that_is_no_json_is_refused_as_little_is(running: Running, path: str) -> None:
    little = await running.ask("POST", path, b"[1 ")
    much = await running.ask("POST", path, b"[1 " + b" " * len(MANY) * 4)
    assert much[0] == little[0]
    assert "Missing a comma or ']' after an array element" in little[2]["error"]
    assert "Missing a comma or ']' after an array element" in much[2]["error"]


async def test_without_a_process_to_convert_it(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running.converter, "run", Converter().run)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    status, headers, found = await running.ask("POST", MODEL, {"inputs": [INPUT]})
    assert (status, headers["retry-after"], found["reason"]) == (503, "1", "CONVERTER_LOST")


async def test_a_call_without_tensors_needs_little_json(running: Running) -> None:
    path = "/v2/models/echo/trace/setting"
    status, _, found = await running.ask("POST", path, {"log_frequency": "1" * 200_000})
    assert (status, found["reason"]) == (413, "JSON_TOO_LARGE")
    assert found["error"].endswith("a call of this kind needs less.")
    files = {"parameters": {"file:1/model.py": "eHh4" * 40_000}}
    status, _, _ = await running.ask("POST", "/v2/repository/models/echo/load", files)
    assert status == 200, "it brings whole files"
    sent = running.backend.calls[0][0].parameters["file:1/model.py"].bytes_param
    assert sent == b"xxx" * 40_000


async def test_json_too_deep_is_refused(running: Running) -> None:
    status, _, found = await running.ask("POST", MODEL, b"[" * 200_000)
    assert status == 500, "as Triton says of all JSON that it cannot read"
    assert found["error"].startswith("failed to parse the request JSON buffer: ")


# --- errors ---------------------------------------------------------------------------------------


async def test_a_refusal_has_its_status_reason_and_pause(running: Running) -> None:
    running.backend.failing = NoRoom(model="m", version=1, shortage="x", retry_after=2.2)
    status, headers, found = await running.ask("POST", MODEL, NUMBERS)
    assert (status, found["reason"], headers["retry-after"]) == (503, "NO_ROOM", "3")
    running.backend.failing = NeverFits(model="m", version=1, shortage="x")
    status, headers, found = await running.ask("POST", MODEL, NUMBERS)
    assert (status, found["reason"]) == (507, "NEVER_FITS")
    assert "retry-after" not in headers
    assert next(iter(found)) == "error"


def call_error(code: grpc.StatusCode, text: str, trailing: Any = ()) -> TritonError:
    metadata = grpc.aio.Metadata(*trailing)
    return TritonError(grpc.aio.AioRpcError(code, grpc.aio.Metadata(), metadata, text), cold=False)


async def test_tritons_own_errors_pass(running: Running) -> None:
    running.backend.failing = call_error(grpc.StatusCode.INVALID_ARGUMENT, "wrong shape")
    assert (await running.ask("POST", MODEL, NUMBERS))[::2] == (400, {"error": "wrong shape"})


async def test_a_pause_that_another_service_asks_for_is_told(running: Running) -> None:
    error = NoRoom(model="m", version=1, shortage="x", retry_after=4.0)
    running.backend.failing = call_error(
        grpc.StatusCode.UNAVAILABLE, error.message, ((DETAILS_KEY, details(error)),)
    )
    status, headers, found = await running.ask("POST", MODEL, NUMBERS)
    assert (status, found["reason"], headers["retry-after"]) == (503, "NO_ROOM", "4")
    info = error_details_pb2.ErrorInfo()
    assert status_pb2.Status.FromString(details(error)).details[0].Unpack(info)


async def test_what_breaks_inside_is_500_and_says_where_to_look(
    running: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    running.backend.failing = ZeroDivisionError("oh")
    status, _, found = await running.ask("POST", MODEL, NUMBERS)
    assert status == 500
    assert "its log has the details" in found["error"]
    assert "oh" not in found["error"]


async def test_paths_and_methods_that_are_not_there(running: Running) -> None:
    assert (await running.ask("GET", "/v2/"))[::2] == (404, {"error": "Not Found"})
    assert (await running.ask("GET", MODEL))[::2] == (405, {"error": "Method Not Allowed"})
    assert (await running.ask("DELETE", "/v2/health/live"))[0] == 405


async def test_what_this_router_does_not_have_is_501(running: Running) -> None:
    status, _, found = await running.ask("GET", "/v2/logging")
    assert (status, found["reason"]) == (501, "NOT_PROXIED")
    assert "LogSettings" in found["error"]


async def test_before_there_is_a_table_no_model_is_called_unknown(running: Running) -> None:
    running.watch.synchronized.clear()
    try:
        for path in (MODEL, "/v2/models/nope/infer", PREDICT):
            status, headers, found = await running.ask("POST", path, NUMBERS)
            assert (status, found["reason"], headers["retry-after"]) == (503, "NOT_READY", "1")
        assert (await running.ask("GET", "/v1/health"))[0] == 503
        for path in ("/metrics", "/docs", "/openapi.json"):
            assert (await running.ask("GET", path))[0] == 200
    finally:
        running.watch.synchronized.set()


# --- administration -------------------------------------------------------------------------------


async def test_a_load_is_handed_on_with_its_caller(running: Running) -> None:
    body = {"parameters": {"config": "{}", "file:1/model.py": "eA=="}}
    path = "/v2/repository/models/echo/load"
    status, _, found = await running.ask("POST", path, body, x_request_timeout="9")
    assert (status, found) == (200, None)
    asked, call = running.backend.calls[0]
    assert asked.model_name == "echo"
    assert asked.parameters["config"].string_param == "{}"
    assert asked.parameters["file:1/model.py"].bytes_param == b"x"
    assert call.caller.subject == "local"
    assert call.peer.startswith("ipv4:127.0.0.1:")
    assert call.deadline is not None


async def test_refusals_of_administration(running: Running) -> None:
    path = "/v2/repository/models/echo/load"
    running.backend.failing = AdminRequired(method="RepositoryModelLoad", subject="bob")
    assert (await running.ask("POST", path))[0] == 403
    running.backend.failing = RefusedByServers(grpc.StatusCode.INTERNAL, "failed to load 'echo'")
    assert (await running.ask("POST", path))[::2] == (500, {"error": "failed to load 'echo'"})
    assert (await running.ask("POST", "/v2/repository/r/models/echo/load"))[::2] == (
        501,
        {"error": "'repository_name' specification is not supported"},
    )


# --- generate_stream ------------------------------------------------------------------------------


def token(text: str) -> bytes:
    answer = service_pb2.ModelInferResponse(model_name="echo", model_version="1")
    answer.outputs.add(name="TOKEN", datatype="BYTES", shape=[1])
    answer.raw_output_contents.append(len(text).to_bytes(4, "little") + text.encode())
    return bytes(answer.SerializeToString())


async def test_a_decoupled_model_gives_an_event_for_each_response(running: Running) -> None:
    running.backend.decoupled = True
    broken = call_error(grpc.StatusCode.INTERNAL, "gave up")
    running.backend.responses = [token("a"), token("b"), broken]
    path = "/v2/models/echo/generate_stream"
    status, headers, body = await running.ask("POST", path, {"X": [1, 2]})
    assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    events = [json.loads(event) for event in re.findall(rb"data: (.*)\n\n", body)]
    assert [event.get("TOKEN") for event in events] == ["a", "b", None]
    assert events[2] == {"error": "gave up"}


async def test_a_stream_that_fails_at_once_says_so_by_its_status(running: Running) -> None:
    running.backend.decoupled = True
    path = "/v2/models/echo/generate_stream"
    error = NoRoom(model="m", version=1, shortage="x", retry_after=4.0)
    running.backend.responses = [error]
    status, headers, found = await running.ask("POST", path, {"X": 1})
    assert (status, found["reason"], headers["retry-after"]) == (503, "NO_ROOM", "4")
    running.backend.responses = [call_error(grpc.StatusCode.INTERNAL, "gave up")]
    status, _, body = await running.ask("POST", path, {"X": 1})
    assert status == 500
    assert b'data: {"error":"gave up"}\n\n' in body, "as Triton says what fails in a model"


async def test_a_stream_ends_at_its_deadline(running: Running) -> None:
    running.backend.decoupled = True
    running.backend.responses = [token("a"), token("b")]
    running.backend.pause = asyncio.Event()
    path = "/v2/models/echo/generate_stream"
    status, _, body = await running.ask("POST", path, {"X": 1}, x_request_timeout="0.1")
    assert status == 200
    assert body.count(b"data: ") == 2
    assert b'data: {"error":"Deadline Exceeded"}\n\n' in body
    assert running.backend.closed.is_set()


async def test_generate_wants_one_response(running: Running) -> None:
    running.backend.decoupled = True
    running.backend.responses = [token("a"), token("b")]
    status, _, found = await running.ask("POST", "/v2/models/echo/generate", {"X": 1})
    assert status == 500
    assert found["error"].startswith("generate expects model to produce exactly 1 response")


# --- time, size, and clients that go away ---------------------------------------------------------


async def test_a_deadline_passes(running: Running) -> None:
    running.backend.gate = asyncio.Event()
    status, _, found = await running.ask("POST", MODEL, NUMBERS, x_request_timeout="0.05")
    assert (status, found) == (504, {"error": "Deadline Exceeded"})
    await asyncio.wait_for(running.backend.cancelled.wait(), 5)
    assert running.backend.asked[0].deadline is not None


async def test_a_deadline_passes_while_the_body_comes(running: Running) -> None:
    reader, writer = await running.connect()
    head = request("POST", MODEL, b"x" * 9, {"x-request-timeout": "0.05"})[:-1]
    writer.write(head)
    status, _, body = await asyncio.wait_for(response(reader), 5)
    assert (status, json.loads(body)) == (504, {"error": "Deadline Exceeded"})
    writer.close()


async def test_a_timeout_that_cannot_be_read(running: Running) -> None:
    status, _, found = await running.ask("POST", MODEL, NUMBERS, grpc_timeout="soon")
    assert status == 400
    assert "header 'grpc-timeout' is 'soon'" in found["error"]


async def test_a_client_that_goes_away_frees_its_request(running: Running) -> None:
    running.backend.gate = asyncio.Event()
    _, writer = await running.connect()
    writer.write(request("POST", MODEL, json.dumps(NUMBERS).encode(), {}))
    await asyncio.wait_for(running.backend.reached.wait(), 5)
    writer.close()
    await asyncio.wait_for(running.backend.cancelled.wait(), 5)


@pytest.mark.parametrize("declared", [True, False])
async def test_a_body_beyond_the_limit_is_refused_while_it_is_sent(
    running: Running, declared: bool
) -> None:
    reader, writer = await running.connect()
    size = 8 * LIMIT
    length = f"content-length: {size}" if declared else "transfer-encoding: chunked"
    writer.write(f"POST {MODEL} HTTP/1.1\r\nhost: here\r\n{length}\r\n\r\n".encode())
    chunk = bytes(LIMIT)
    for _ in range(8):
        writer.write(chunk if declared else b"%x\r\n%b\r\n" % (LIMIT, chunk))
        await writer.drain()
    if not declared:
        writer.write(b"0\r\n\r\n")
    status, headers, body = await asyncio.wait_for(response(reader), 5)
    found = json.loads(body)
    assert (status, found["reason"], headers["connection"]) == (413, "MESSAGE_TOO_LARGE", "close")
    assert "SHOAL_ROUTER_MAX_MESSAGE_BYTES" in found["error"]
    assert await reader.read() == b""
    writer.close()


async def test_heads_that_never_end_are_cut_off(running: Running) -> None:
    reader, writer = await running.connect()
    writer.write(b"GET /v2 HTTP/1.1\r\n")
    for _ in range(41):
        writer.write(b"x-flood: " + b"a" * 89 + b"\r\n")
        await writer.drain()
        await asyncio.sleep(0)  # so that it is read in several parts
    writer.write(b"x" * 100)
    status, _, body = await asyncio.wait_for(response(reader), 5)
    assert status == 431
    assert json.loads(body) == {"error": "the request's head has more than 4096 bytes"}
    writer.close()


async def test_a_head_that_is_too_large_is_refused_though_it_came_at_once(
    running: Running,
) -> None:
    status, _, found = await running.ask("GET", "/v2", x_flood="a" * 4096)
    assert (status, found) == (431, {"error": "the request's head has more than 4096 bytes"})
    status, _, _ = await running.ask("GET", f"/{'a' * 4096}")
    assert status == 431


async def test_heads_that_do_not_come_are_not_waited_for(running: Running) -> None:
    reader, writer = await running.connect()
    writer.write(b"GET /v2 HTTP/1.1\r\nhost:")
    status, _, body = await asyncio.wait_for(response(reader), 5)
    assert status == 408
    assert "0.3 s" in json.loads(body)["error"]
    writer.close()


async def test_garbage_is_400_and_others_go_on(running: Running) -> None:
    status, _, body = await running.raw(b"\x16\x03\x01\x02\x00\x01\r\n\r\n")
    assert (status, json.loads(body)) == (400, {"error": "Invalid HTTP request received."})
    assert (await running.raw(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))[0] == 400
    assert (await running.ask("POST", MODEL, NUMBERS))[0] == 200


async def test_a_connection_is_kept_and_may_carry_several_requests_at_once(
    running: Running,
) -> None:
    reader, writer = await running.connect()
    one = request("POST", MODEL, json.dumps(NUMBERS).encode(), {"connection": "keep-alive"})
    writer.write(one * 3)
    for _ in range(3):
        assert (await asyncio.wait_for(response(reader), 5))[0] == 200
    writer.close()


async def test_answers_say_when_they_were_given(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    for now, date in (
        (0.9, "Thu, 01 Jan 1970 00:00:00 GMT"),
        (1.0, "Thu, 01 Jan 1970 00:00:01 GMT"),
    ):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        assert (await running.ask("GET", "/metrics"))[1]["date"] == date


async def test_connections_beyond_the_limit_are_refused_until_others_end(running: Running) -> None:
    others = [await running.connect() for _ in range(20)]
    while (await running.raw(b"GET /v2/health/live HTTP/1.0\r\n\r\n"))[0] != 503:
        pass
    for _, writer in others:
        writer.close()
        await writer.wait_closed()
    while (await running.ask("POST", MODEL, NUMBERS))[0] != 200:
        pass


# --- what it says of itself -----------------------------------------------------------------------


async def test_openapi_tells_of_every_route_and_of_no_other(running: Running) -> None:
    status, _, found = await running.ask("GET", "/openapi.json")
    assert (status, found["openapi"], found["info"]["version"]) == (200, "3.1.0", "1.2.3")
    told = {(method.upper(), path) for path, item in found["paths"].items() for method in item}
    there = {(method, path) for route in ROUTES for path in route.paths for method in route.methods}
    assert told == there
    for method, path in sorted(told):
        # A route that is there never answers with the 404 of one that is not, nor 405.
        concrete = re.sub(r"{\w+}", "none", path)
        status, _, answer = await running.ask(method, concrete)
        assert answer != {"error": "Not Found"}, path
        assert status != 405, path


async def test_openapi_is_whole(running: Running) -> None:
    _, _, found = await running.ask("GET", "/openapi.json")
    names = [
        operation["operationId"] for item in found["paths"].values() for operation in item.values()
    ]
    assert len(set(names)) == len(names)
    referred = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(found)))
    assert referred == set(SCHEMAS)
    for path, item in found["paths"].items():
        for operation in item.values():
            given = {p["name"] for p in operation["parameters"] if p["in"] == "path"}
            assert given == set(re.findall(r"{(\w+)}", path))


async def test_the_page_for_people_names_every_path_and_fetches_nothing(running: Running) -> None:
    status, headers, page = await running.ask("GET", "/docs")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    text = page.decode()
    for route in ROUTES:
        for path in route.paths:
            assert f"<code>{path}</code>" in text
    assert "http://" not in text
    assert "https://" not in text


async def test_metrics(running: Running) -> None:
    assert (await running.ask("GET", "/metrics"))[2] == b"up 1\n"


async def test_the_plain_list_of_models(running: Running) -> None:
    status, _, found = await running.ask("GET", "/v1/models/status")
    assert status == 200
    assert found["models"][0] == {
        "name": "echo",
        "default_version": "1",
        "aliases": {"stable": "1"},
        "versions": [
            {"version": "1", "servable": True, "resident": True, "servers": ["a"], "reason": ""}
        ],
    }
    assert found["models"][1]["versions"][0]["reason"] == "evicted: lru"


async def test_plain_health(running: Running) -> None:
    status, _, found = await running.ask("GET", "/v1/health")
    assert (status, found) == (200, {"status": "ok", "controller_connected": False, "models": 2})


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"{", "failed to parse the request JSON buffer"),
        ([], "the body has to be a JSON object"),
        ({"x": 1}, 'give either {"inputs": {name: values}} or {"instances": [...]}'),
        ({"inputs": {"Y": [1]}}, "model 'echo' has no input 'Y'. It takes X (FP32, [any])."),
        ({"inputs": {}}, "model 'echo' needs input 'X'. It takes X (FP32, [any])."),
        ({"inputs": {"X": ["a"]}}, "input 'X' cannot be read as FP32"),
        ({"inputs": {"X": [[1, 2], [3]]}}, "input 'X' has rows of different lengths"),
        ({"inputs": {"X": [[1, 2], [3, 4]]}}, "input 'X' has shape [2, 2], which model 'echo'"),
        ({"instances": []}, "'instances' is a list of at least one"),
    ],
)
async def test_plain_mistakes_say_what_to_do(running: Running, body: Any, says: str) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    status, _, found = await running.ask("POST", PREDICT, data)
    assert status == 400
    assert says in found["error"]


async def test_plain_predictions(running: Running) -> None:
    path = "/v1/models/echo:stable/predict"
    named = {"model": "echo", "version": "1"}
    found = (await running.ask("POST", path, {"inputs": {"X": [1, 0.1]}}))[2]
    assert found == {"outputs": {"X": [1.0, 0.1]}, **named}
    found = (await running.ask("POST", path, {"inputs": [1, 2]}))[2]
    assert found == {"outputs": {"X": [1.0, 2.0]}, **named}
    found = (await running.ask("POST", path, {"instances": [[1, 2], {"X": 3}]}))[2]
    assert found == {"predictions": [[1.0, 2.0], [3.0]], **named}
    status, _, found = await running.ask("POST", "/v1/models/echo:predict", {"inputs": [1]})
    assert (status, found["outputs"]) == (200, {"X": [1.0]})


# --- JSON as Triton reads it ----------------------------------------------------------------------


def text_input(text: bytes) -> bytes:
    head = b'{"inputs":[{"name":"X","datatype":"BYTES","shape":[1],"data":["'
    return head + text + b'"]}]}'


@pytest.mark.parametrize("text", [b"\xff\xfe", "é".encode(), b"a\\u0000b"])
async def test_bytes_of_a_text_go_in_as_they_are(running: Running, text: bytes) -> None:
    assert (await running.raw(request("POST", MODEL, text_input(text), {})))[0] == 200
    sent = service_pb2.ModelInferRequest.FromString(running.backend.asked[0].message)
    content = text.replace(b"\\u0000", b"\0")
    assert sent.raw_input_contents[0] == len(content).to_bytes(4, "little") + content


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (text_input(b"\\ud800"), 500, "The surrogate pair in string is invalid. at 63"),
        (text_input(b"\xff\\ud800"), 500, "The surrogate pair in string is invalid. at 64"),
        (text_input(b"a\0b"), 500, "Missing a closing quotation mark in string. at 64"),
        (b'{"id":"\xff","inputs":[]}', 400, "have to be UTF-8"),
        (b'{"inputs":[]}  x', 500, "The document root must not be followed by other values. at 15"),
        (b'{"parameters":{"a\\u0000b":1},"inputs":[]}', 500, "parameter key 'a' was not found"),
    ],
)
async def test_texts_that_are_refused(
    running: Running, body: bytes, status: int, says: str
) -> None:
    found = await running.ask("POST", MODEL, body)
    assert found[0] == status
    assert says in found[2]["error"]
    assert running.backend.asked == []


async def test_what_is_around_the_json_is_skipped(running: Running) -> None:
    text = json.dumps(NUMBERS).encode()
    for body in (b"\xef\xbb\xbf" + text, text + b"\0\0", b"\n " + text + b"\r\n"):
        status, _, found = await running.ask("POST", MODEL, body)
        assert (status, found["outputs"][0]["data"]) == (200, [1.5, 2.0])


@pytest.mark.parametrize("more", [b"", b',"x":NaN', b',"x":"\xff"'])
async def test_the_first_of_several_members_of_one_name_counts(
    running: Running, more: bytes
) -> None:
    one = b'{"name":"X","name":"Y","datatype":"FP32","shape":[1],"data" : [1],"data":[2]' + more
    body = b'{"id":"a:","id":"b","inputs":[' + one + b"}]}"
    status, _, found = await running.ask("POST", MODEL, body)
    assert (status, found["id"]) == (200, "a:")
    assert found["outputs"] == [{"name": "X", "datatype": "FP32", "shape": [1], "data": [1.0]}]


@pytest.mark.parametrize("datatype", ["STRING", "", "fp32", "FLOAT"])
@pytest.mark.parametrize(("shape", "data"), [([0], []), ([2, 0], []), ([1], ["a"]), ([], [])])
async def test_a_datatype_that_is_none_is_refused_without_elements_too(
    running: Running, datatype: str, shape: list[int], data: list[str]
) -> None:
    one = {"name": "X", "datatype": datatype, "shape": shape, "data": data}
    status, _, found = await running.ask("POST", MODEL, {"inputs": [one]})
    assert (status, found) == (400, {"error": "invalid datatype for input X"})


@pytest.mark.parametrize("datatype", ["FP32", "FP16", "BF16", "BOOL", "BYTES"])
async def test_an_input_may_have_no_elements(running: Running, datatype: str) -> None:
    one = {"name": "X", "datatype": datatype, "shape": [2, 0], "data": []}
    assert (await running.ask("POST", MODEL, {"inputs": [one]}))[0] in (200, 400)
    sent = service_pb2.ModelInferRequest.FromString(running.backend.asked[0].message)
    assert list(sent.raw_input_contents) == [b""]


async def test_values_beyond_a_call_are_refused(running: Running) -> None:
    path = "/v2/repository/models/echo/load"
    body = b'{"parameters":{"config":"\xff"}}'
    status, _, found = await running.ask("POST", path, body)
    assert status == 400
    assert found["error"].startswith("RepositoryModelLoad does not take this: ")


async def test_plain_numbers_that_are_none_are_words(running: Running) -> None:
    body = b'{"inputs":{"X":[NaN,"NaN","Infinity","-Infinity",1.5]}}'
    status, _, found = await running.ask("POST", PREDICT, body)
    assert status == 200
    words = ["NaN", "NaN", "Infinity", "-Infinity", 1.5]
    assert found["outputs"]["X"] == words
    status, _, again = await running.ask("POST", PREDICT, {"instances": [words, words]})
    assert (status, again["predictions"]) == (200, [words, words])
    status, _, found = await running.ask("POST", PREDICT, {"inputs": {"X": ["nan"]}})
    assert status == 400


# --- methods, paths and web pages -----------------------------------------------------------------


async def test_a_get_may_be_a_head(running: Running) -> None:
    for path in ("/metrics", "/v1/health", "/openapi.json"):
        whole = await running.raw(request("GET", path, b"", {}))
        reader, writer = await running.connect()
        writer.write(request("HEAD", path, b"", {}))
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        assert head.startswith(b"HTTP/1.1 200")
        assert f"content-length: {len(whole[2])}".encode() in head
        assert body == b""


async def test_other_methods_are_told(running: Running) -> None:
    assert (await running.ask("DELETE", "/metrics"))[1]["allow"] == "GET, HEAD"
    assert (await running.ask("OPTIONS", MODEL))[1]["allow"] == "POST"
    reader, writer = await running.connect()
    writer.write(request("HEAD", MODEL, b"", {}))
    assert (await reader.read()).startswith(b"HTTP/1.1 405")
    writer.close()
    both = "/v2/models/echo/trace/setting"
    assert (await running.ask("PUT", both))[1]["allow"] == "GET, POST, HEAD"


@pytest.mark.parametrize(
    "path", ["/v2%2Frepository%2Findex", "/v2/models/echo%2Finfer", "/v2/models/echo/versions%2f1"]
)
async def test_an_escaped_slash_separates_nothing(running: Running, path: str) -> None:
    assert (await running.ask("POST", path))[0] in (404, 405)
    assert not running.backend.calls
    assert not running.backend.asked


async def test_names_may_be_escaped(running: Running) -> None:
    assert (await running.ask("POST", "/v2/models/%65cho/infer", NUMBERS))[0] == 200
    assert (await running.ask("POST", "/v1/models/echo%3Astable/predict", {"inputs": [1]}))[
        0
    ] == 200


@pytest.mark.parametrize(
    "page",
    [
        {"origin": "https://evil.example", "content_type": "text/plain"},
        {"origin": "null"},
        {"sec_fetch_site": "cross-site"},
        {"host": "evil.example:8000", "origin": "http://evil.example:8000"},
    ],
)
async def test_pages_of_other_sites_change_nothing(running: Running, page: dict[str, str]) -> None:
    for path in ("/v2/repository/models/echo/load", MODEL, PREDICT):
        status, _, found = await running.ask("POST", path, NUMBERS, **page)
        assert status == 403
        assert "SHOAL_ROUTER_" in found["error"]
        assert found["reason"] == ("UNKNOWN_HOST" if "host" in page else "FOREIGN_PAGE")
    assert not running.backend.calls
    assert not running.backend.asked
    reads = 403 if "host" in page else 200
    assert (await running.ask("GET", "/v1/models/status", **page))[0] == reads


async def test_pages_of_this_machine_may(running: Running) -> None:
    for origin in ("http://here", "http://localhost:3000"):
        assert (await running.ask("POST", MODEL, NUMBERS, origin=origin))[0] == 200


async def test_listed_origins_may_call_and_read(running: Running) -> None:
    origin = "https://app.example"
    given = replace(running.service, browsers=BrowserPolicy(frozenset({origin})))
    with listen("127.0.0.1", 0) as listener:
        async with web.serving(app(given), listener):
            port = listener.getsockname()[1]
            open_ = Running(running.backend, running.watch, port, running.converter, given)
            status, headers, _ = await open_.ask("POST", MODEL, NUMBERS, origin=origin)
            assert (status, headers["access-control-allow-origin"]) == (200, origin)
            status, headers, _ = await open_.ask(
                "OPTIONS",
                MODEL,
                origin=origin,
                access_control_request_method="POST",
                access_control_request_headers="content-type, inference-header-content-length",
            )
            assert status == 200
            assert headers["access-control-allow-origin"] == origin
            assert "inference-header-content-length" in headers["access-control-allow-headers"]
            status, headers, _ = await open_.ask(
                "POST", MODEL, NUMBERS, origin="https://evil.example"
            )
            assert status == 403
            assert "access-control-allow-origin" not in headers
