"""The trace receiver, with everything that sends it traces."""

import asyncio
import gzip
import http.client
import json
import os
import signal
import sys
import time
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from google.rpc import status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceStub
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from services.common.ports import PortTaken, listen
from services.embedded.collector.server import Collector, collector
from services.embedded.collector.settings import CollectorSettings
from services.embedded.collector.web import MAX_BODY
from tests.support.triton_direct import triton_direct

ROOT = Path(__file__).resolve().parents[2]
LOOPBACK = "127.0.0.1"
PROTOBUF, JSON = "application/x-protobuf", "application/json"

TRACE, ROOT_SPAN, CHILD_SPAN = "5b8efff798038103d269b633813fc60c", "eee19b7ec3c1b173", "ab" * 8
BEGAN, ENDED = 1_544_712_660_000_000_001, 1_544_712_661_000_000_003


@asynccontextmanager
async def running(max_spans: int = 1000) -> AsyncIterator[Collector]:
    settings = CollectorSettings(grpc_port=0, http_port=0, max_spans=max_spans)
    async with collector(settings) as started:
        yield started


async def call(
    to: Collector, method: str, path: str, body: bytes = b"", **headers: str
) -> tuple[int, str, bytes]:
    """(status, content type, body); `content_type` stands for Content-Type."""

    def blocking() -> tuple[int, str, bytes]:
        connection = http.client.HTTPConnection(LOOPBACK, to.http_port, timeout=10)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, named)
            answer = connection.getresponse()
            return answer.status, answer.headers.get_content_type(), answer.read()
        finally:
            connection.close()

    return await asyncio.to_thread(blocking)


async def read(to: Collector, path: str) -> Any:
    status, media, body = await call(to, "GET", path)
    assert (status, media) == (200, JSON)
    return json.loads(body)


# --- one trace, from every sender -----------------------------------------------------------------


def through(exporter: Callable[[Collector], SpanExporter]) -> Callable[[Collector], str]:
    """A sender that makes the trace with the SDK. Returns the trace's id."""

    def send(to: Collector) -> str:
        provider = TracerProvider(
            resource=Resource({"service.name": "shoal-router", "service.instance.id": "r0"}),
            shutdown_on_exit=False,
        )
        provider.add_span_processor(SimpleSpanProcessor(exporter(to)))
        tracer = provider.get_tracer("test")
        root = tracer.start_span("infer", kind=SpanKind.SERVER, start_time=BEGAN)
        root.set_attributes({"model": "m", "version": 2, "cold": True, "share": 0.5})
        root.set_attribute("evicted", ["a:1", "b:2"])
        child = tracer.start_span(
            "load",
            context=trace.set_span_in_context(root),
            kind=SpanKind.CLIENT,
            start_time=BEGAN + 5,
        )
        child.set_status(StatusCode.ERROR, "out of memory")
        child.end(ENDED - 5)
        root.end(ENDED)
        provider.shutdown()
        return f"{root.get_span_context().trace_id:032x}"

    return send


def by_hand(**overrides: Any) -> dict[str, Any]:
    """The same trace as OTLP's JSON."""

    def attribute(key: str, **value: Any) -> dict[str, Any]:
        return {"key": key, "value": value}

    root = {
        "traceId": TRACE.upper(),  # case doesn't matter in hexadecimal
        "spanId": ROOT_SPAN,
        "parentSpanId": "",
        "name": "infer",
        "kind": 2,
        "startTimeUnixNano": str(BEGAN),
        "endTimeUnixNano": ENDED,  # a number is as good as a string
        "attributes": [
            attribute("model", stringValue="m"),
            attribute("version", intValue="2"),
            attribute("cold", boolValue=True),
            attribute("share", doubleValue=0.5),
            attribute(
                "evicted",
                arrayValue={"values": [{"stringValue": "a:1"}, {"stringValue": "b:2"}]},
            ),
        ],
        "links": [{"traceId": TRACE, "spanId": CHILD_SPAN}],
        "ofALaterOtlp": {"ignored": True},
        **overrides,
    }
    child = {
        "traceId": TRACE,
        "spanId": CHILD_SPAN,
        "parentSpanId": ROOT_SPAN,
        "name": "load",
        "kind": "SPAN_KIND_CLIENT",
        "startTimeUnixNano": str(BEGAN + 5),
        "endTimeUnixNano": str(ENDED - 5),
        "status": {"code": 2, "message": "out of memory"},
    }
    resource = [
        attribute("service.name", stringValue="shoal-router"),
        attribute("service.instance.id", stringValue="r0"),
    ]
    spans = {"scope": {"name": "by hand"}, "spans": [child, root]}
    return {"resourceSpans": [{"resource": {"attributes": resource}, "scopeSpans": [spans]}]}


def as_json(packed: bool) -> Callable[[Collector], str]:
    def send(to: Collector) -> str:
        body = json.dumps(by_hand()).encode()
        headers = {"Content-Type": f"{JSON}; charset=utf-8"}
        if packed:
            body, headers["Content-Encoding"] = gzip.compress(body, mtime=0), "gzip"
        connection = http.client.HTTPConnection(LOOPBACK, to.http_port, timeout=10)
        connection.request("POST", "/v1/traces", body, headers)
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (200, b"{}")
        connection.close()
        return TRACE

    return send


def http_exporter(compression: Compression) -> Callable[[Collector], SpanExporter]:
    return lambda to: HttpExporter(
        f"http://{LOOPBACK}:{to.http_port}/v1/traces", compression=compression
    )


SENDERS = {
    "grpc": through(lambda to: GrpcExporter(f"http://{LOOPBACK}:{to.grpc_port}")),
    "grpc-gzip": through(
        lambda to: GrpcExporter(
            f"http://{LOOPBACK}:{to.grpc_port}", compression=grpc.Compression.Gzip
        )
    ),
    "http": through(http_exporter(Compression.NoCompression)),
    "http-gzip": through(http_exporter(Compression.Gzip)),
    "http-deflate": through(http_exporter(Compression.Deflate)),
    "json": as_json(packed=False),
    "json-gzip": as_json(packed=True),
}


@pytest.mark.parametrize("sender", SENDERS)
async def test_a_trace_is_the_same_from_every_sender(sender: str) -> None:
    async with running() as to:
        trace_id = await asyncio.to_thread(SENDERS[sender], to)
        answer = await read(to, f"/api/traces/{trace_id}")
        listed = await read(to, "/api/traces")
    assert answer["trace_id"] == trace_id
    root, child = answer["spans"]
    assert child.pop("parent_span_id") == root["span_id"]
    assert len(root.pop("span_id")) == len(child.pop("span_id")) == 16
    assert root == {
        "trace_id": trace_id,
        "parent_span_id": "",
        "service": "shoal-router",
        "instance": "r0",
        "name": "infer",
        "kind": "server",
        "start_unix_nano": BEGAN,
        "end_unix_nano": ENDED,
        "attributes": {
            "model": "m",
            "version": 2,
            "cold": True,
            "share": 0.5,
            "evicted": ["a:1", "b:2"],
        },
        "status": {"code": "unset", "message": ""},
        "depth": 0,
        "orphan": False,
        "critical": True,
    }
    assert (child["name"], child["kind"], child["depth"]) == ("load", "client", 1)
    assert child["status"] == {"code": "error", "message": "out of memory"}
    assert listed["traces"] == [
        {
            "trace_id": trace_id,
            "root": "infer",
            "services": ["shoal-router"],
            "start_unix_nano": BEGAN,
            "end_unix_nano": ENDED,
            "duration_ms": 1000.0,
            "spans": 2,
            "errors": 1,
        }
    ]


@pytest.mark.triton
async def test_a_real_triton_sends_what_is_understood(tmp_path: Path) -> None:
    caller = "cd" * 8

    def infer(to: Collector) -> None:
        url = f"http://{LOOPBACK}:{to.http_port}/v1/traces"
        repository = ROOT / "model_repository"
        with triton_direct(tmp_path, repository, orderly=True, trace_url=url) as server:
            server.load("multiplier")
            numbers = triton.InferInput("INPUT", [1, 1], "FP32")
            numbers.set_data_from_numpy(np.ones((1, 1), np.float32))
            headers = {"traceparent": f"00-{TRACE}-{caller}-01"}
            server.client.infer("multiplier", [numbers], headers=headers)
        # A server that has stopped has sent all its spans.

    async with running() as to:
        await asyncio.to_thread(infer, to)
        request, model, compute = (await read(to, f"/api/traces/{TRACE}"))["spans"]
    assert [one["name"] for one in (request, model, compute)] == [
        "InferRequest",
        "multiplier",
        "compute",
    ]
    assert (request["parent_span_id"], request["orphan"]) == (caller, True)
    assert [one["depth"] for one in (request, model, compute)] == [0, 1, 2]
    assert {one["service"] for one in (request, model, compute)} == {"triton"}
    assert model["instance"] == "direct"
    assert model["attributes"]["triton.model_name"] == "multiplier"
    assert request["start_unix_nano"] <= compute["start_unix_nano"] < compute["end_unix_nano"]


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("media", [JSON, PROTOBUF])
async def test_a_malformed_body_is_refused_in_the_senders_own_encoding(media: str) -> None:
    async with running() as to:
        status, answered, body = await call(
            to, "POST", "/v1/traces", b"\xff\xff nonsense", content_type=media
        )
    assert (status, answered) == (400, media)
    message = (
        json.loads(body)["message"] if media == JSON else status_pb2.Status.FromString(body).message
    )
    assert "ExportTraceServiceRequest" in message


@pytest.mark.parametrize(
    "document",
    [
        [],
        "text",
        {"resourceSpans": {}},
        {"resourceSpans": [{"scopeSpans": [{"spans": ["a"]}]}]},
        by_hand(links=["a"]),
        by_hand(attributes="a"),
        by_hand(attributes=[{"key": "a", "value": {"intValue": "many"}}]),
        by_hand(traceId="W47/95gDgQPSabYzgT/GDA=="),  # base64, as plain protobuf JSON has it
        by_hand(kind={"a": 1}),
        by_hand(startTimeUnixNano="soon"),
    ],
)
async def test_json_of_another_shape_is_refused(document: object) -> None:
    async with running() as to:
        body = json.dumps(document).encode()
        status, media, answer = await call(to, "POST", "/v1/traces", body, content_type=JSON)
        assert (status, media) == (400, JSON)
        assert "ExportTraceServiceRequest" in json.loads(answer)["message"]
        assert to.store.spans == 0


async def test_json_nested_beyond_reason_is_refused() -> None:
    async with running() as to:
        body = b'{"resourceSpans":' + b"[" * 200_000
        status, _, _ = await call(to, "POST", "/v1/traces", body, content_type=JSON)
    assert status == 400


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content_type": "text/plain"},
        {"content_type": JSON, "content_encoding": "br"},
    ],
)
async def test_unknown_encodings_are_refused(headers: dict[str, str]) -> None:
    async with running() as to:
        status, media, body = await call(to, "POST", "/v1/traces", b"{}", **headers)
    assert (status, media) == (415, JSON)
    assert "unknown" in json.loads(body)["message"]


@pytest.mark.parametrize("body", [b"not gzip", gzip.compress(b"{}", mtime=0)[:-4]])
async def test_a_body_that_does_not_unpack_is_refused(body: bytes) -> None:
    async with running() as to:
        status, media, _ = await call(
            to, "POST", "/v1/traces", body, content_type=JSON, content_encoding="gzip"
        )
    assert (status, media) == (400, JSON)


@pytest.mark.parametrize("packed", [False, True])
async def test_too_large_a_body_is_refused(packed: bool) -> None:
    body = bytes(MAX_BODY + 1)
    headers = {"content_encoding": "deflate"} if packed else {}
    async with running() as to:
        status, _, _ = await call(
            to,
            "POST",
            "/v1/traces",
            zlib.compress(body) if packed else body,
            content_type=PROTOBUF,
            **headers,
        )
    assert status == 413


async def test_spans_without_ids_are_rejected_and_the_others_kept() -> None:
    document = by_hand(spanId="00" * 8)
    async with running() as to:
        status, _, body = await call(
            to, "POST", "/v1/traces", json.dumps(document).encode(), content_type=JSON
        )
        assert (status, to.store.spans) == (200, 1)
    partial = json.loads(body)["partialSuccess"]
    assert partial["rejectedSpans"] == "1"
    assert "valid" in partial["errorMessage"]


async def test_the_same_over_grpc() -> None:
    request = ExportTraceServiceRequest()
    spans = request.resource_spans.add().scope_spans.add().spans
    spans.add(trace_id=b"t" * 16, span_id=b"s" * 8, parent_span_id=bytes(8), name="root")
    spans.add(trace_id=b"t" * 15, span_id=b"s" * 8, name="short")
    spans.add(trace_id=bytes(16), span_id=b"s" * 8, name="zero")
    async with running() as to, grpc.aio.insecure_channel(f"{LOOPBACK}:{to.grpc_port}") as channel:
        stub: Any = TraceServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
        response = await stub.Export(request)
        (root,) = to.store.trace((b"t" * 16).hex())
        assert root.parent_span_id == ""
        full = await stub.Export(ExportTraceServiceRequest())
    assert response.partial_success.rejected_spans == 2
    assert full == ExportTraceServiceResponse()
    assert not full.HasField("partial_success")


# --- what people ask ------------------------------------------------------------------------------


async def test_a_list_is_as_long_as_asked_for() -> None:
    async with running() as to:
        for number in range(1, 4):
            spans = {"spans": [{"traceId": f"{number:032x}", "spanId": f"{number:016x}"}]}
            body = json.dumps({"resourceSpans": [{"scopeSpans": [spans]}]}).encode()
            await call(to, "POST", "/v1/traces", body, content_type=JSON)
        listed = (await read(to, "/api/traces?limit=2"))["traces"]
        assert [int(one["trace_id"], 16) for one in listed] == [3, 2]
        for bad in ("0", "-1", "many", "1001", "9" * 30, "²"):
            status, _, body = await call(to, "GET", f"/api/traces?limit={quote(bad)}")
            assert status == 400
            assert "limit" in json.loads(body)["error"]


async def test_what_is_unknown_is_not_found() -> None:
    async with running() as to:
        status, _, body = await call(to, "GET", f"/api/traces/{TRACE}")
        assert status == 404
        assert TRACE in json.loads(body)["error"]
        assert (await call(to, "GET", "/v1/traces"))[0] == 405
        assert (await call(to, "GET", "/elsewhere"))[0] == 404


async def test_health_tells_what_was_dropped() -> None:
    async with running(max_spans=2) as to:
        for _ in range(2):
            await asyncio.to_thread(SENDERS["http"], to)
        told = await read(to, "/healthz")
        async with grpc.aio.insecure_channel(f"{LOOPBACK}:{to.grpc_port}") as channel:
            health = health_pb2_grpc.HealthStub(channel)
            serving = await health.Check(health_pb2.HealthCheckRequest())
    assert told == {
        "status": "ok",
        "traces": 1,
        "spans": 2,
        "dropped_traces": 1,
        "dropped_spans": 2,
    }
    assert serving.status == health_pb2.HealthCheckResponse.SERVING


# --- the process ----------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["grpc_port", "http_port"])
async def test_a_taken_port_is_refused_and_the_other_one_freed(which: str) -> None:
    with listen(LOOPBACK, 0) as taken, listen(LOOPBACK, 0) as other:
        ports = {"grpc_port": other.getsockname()[1], "http_port": other.getsockname()[1]}
        ports[which] = taken.getsockname()[1]
        other.close()
        with pytest.raises(PortTaken, match=str(ports[which])):
            async with collector(CollectorSettings(**ports)):
                pytest.fail("it started")
    listen(LOOPBACK, other_port(ports, which)).close()


def other_port(ports: dict[str, int], which: str) -> int:
    return next(port for name, port in ports.items() if name != which)


async def test_the_process_serves_until_it_is_told_to_stop() -> None:
    environment = {name: value for name, value in os.environ.items() if "OTEL" not in name}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-W", "error", "-m", "services.embedded.collector"),
        cwd=ROOT,
        env={**environment, "SHOAL_OTLP_GRPC_PORT": "0", "SHOAL_OTLP_HTTP_PORT": "0"},
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stderr is not None
        ports: dict[str, Any] = {}
        async with asyncio.timeout(30):
            while ports.get("event") != "receiving traces":
                ports = json.loads(await process.stderr.readline())
        assert ports["host"] == LOOPBACK
        to = Collector(None, ports["grpc_port"], ports["http_port"])  # type: ignore[arg-type]
        trace_id = await asyncio.to_thread(SENDERS["grpc"], to)
        assert len((await read(to, f"/api/traces/{trace_id}"))["spans"]) == 2
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        async with asyncio.timeout(10):
            rest = await process.stderr.read()
            assert await process.wait() == 0, rest.decode()
        assert time.monotonic() - began < 4
        assert b"Traceback" not in rest
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
