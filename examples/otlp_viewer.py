"""Receive traces over OTLP/HTTP, and print each one as a tree.

    .venv/bin/python examples/otlp_viewer.py
    make up ARGS="--otlp http://localhost:4320 --trace-ratio 1"      # in another terminal
    .venv/bin/shoal infer text_stats --input TEXT="few shoals"       # in a third one

Any OTLP collector can stand in its place. Prints a trace when it has been quiet for two seconds:

    trace 4bf92f3577b34da6a3ce929d0e0e4736
           3.5 ms  shoal-router      inference.GRPCInferenceService/ModelInfer
           2.9 ms  shoal-router        forward
           2.1 ms  triton                InferRequest
"""

import argparse
import base64
import json
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

QUIET = 2.0  # seconds


class Span(NamedTuple):
    id: bytes
    parent: bytes
    start: int  # nanoseconds
    end: int
    service: str
    name: str


class Traces:
    """The spans of each trace, until it has been quiet for a while."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spans: dict[bytes, list[Span]] = defaultdict(list)
        self._last: dict[bytes, float] = {}

    def add(self, request: ExportTraceServiceRequest) -> None:
        with self._lock:
            for resource in request.resource_spans:
                attributes = {one.key: one.value for one in resource.resource.attributes}
                service = attributes["service.name"].string_value
                for one in (one for scope in resource.scope_spans for one in scope.spans):
                    times = one.start_time_unix_nano, one.end_time_unix_nano
                    span = Span(one.span_id, one.parent_span_id, *times, service, one.name)
                    self._spans[one.trace_id].append(span)
                    self._last[one.trace_id] = time.monotonic()

    def finished(self) -> Iterator[tuple[bytes, list[Span]]]:
        with self._lock:
            before = time.monotonic() - QUIET
            for trace in [trace for trace, last in self._last.items() if last < before]:
                del self._last[trace]
                yield trace, self._spans.pop(trace)


def parsed(body: bytes, content_type: str) -> ExportTraceServiceRequest:
    """Read either encoding: the services send protobuf, Triton sends JSON."""
    if not content_type.startswith("application/json"):
        return ExportTraceServiceRequest.FromString(body)
    document = json.loads(body)
    for scope in [one for resource in document["resourceSpans"] for one in resource["scopeSpans"]]:
        for span in scope["spans"]:
            # Ids are hexadecimal in OTLP's JSON, where protobuf's own would have base64.
            for key in ("traceId", "spanId", "parentSpanId"):
                span[key] = base64.b64encode(bytes.fromhex(span.get(key, ""))).decode()
    request = ExportTraceServiceRequest()
    return json_format.ParseDict(document, request, ignore_unknown_fields=True)


def show(spans: list[Span], parent: bytes, depth: int) -> None:
    """Print the spans below `parent`, in the order in which they began."""
    for span in sorted((one for one in spans if one.parent == parent), key=lambda one: one.start):
        took = (span.end - span.start) / 1e6
        print(f"{took:10.1f} ms  {span.service:16}  {'  ' * depth}{span.name}", flush=True)
        show(spans, span.id, depth + 1)


def serve(traces: Traces, port: int) -> None:
    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            traces.add(parsed(body, self.headers["Content-Type"]))
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()


def main(port: int) -> None:
    traces = Traces()
    serve(traces, port)
    print(f"waiting for spans at http://localhost:{port}", flush=True)
    while True:
        for trace, spans in traces.finished():
            print(f"trace {trace.hex()}", flush=True)
            # A parent that was recorded elsewhere, such as in the caller's own program, is a root.
            known = {span.id for span in spans}
            for root in sorted({span.parent for span in spans} - known):
                show(spans, root, 0)
        time.sleep(0.2)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Print traces as they come.")
    parser.add_argument("--port", type=int, default=4320)
    main(parser.parse_args().port)
