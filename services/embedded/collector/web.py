"""OTLP over HTTP, and the traces as JSON, for people and the command line."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Final

from google.protobuf import json_format
from google.protobuf.message import Message
from google.rpc import code_pb2, status_pb2
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from services.embedded.collector import body
from services.embedded.collector.core import Row, rows
from services.embedded.collector.otlp import MalformedBody, from_json, from_protobuf, received
from services.embedded.collector.store import TraceStore

MAX_BODY: Final = 8 * 1024 * 1024  # bytes, unpacked; a batch of 512 full spans has about one
MAX_LISTED: Final = 1000

PROTOBUF: Final = "application/x-protobuf"
JSON: Final = "application/json"
_DECODE: Final[dict[str, Callable[[bytes], ExportTraceServiceRequest]]] = {
    PROTOBUF: from_protobuf,
    JSON: from_json,
}


def app(store: TraceStore) -> Starlette:
    web = _Web(store)
    return Starlette(
        routes=[
            Route("/v1/traces", web.export, methods=["POST"]),
            Route("/api/traces", web.traces, methods=["GET"]),
            Route("/api/traces/{trace_id}", web.trace, methods=["GET"]),
            Route("/healthz", web.healthz, methods=["GET"]),
        ]
    )


class _Web:
    def __init__(self, store: TraceStore) -> None:
        self._store = store

    async def export(self, request: Request) -> Response:
        media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        decode = _DECODE.get(media)
        if decode is None:
            return _refusal(
                415, JSON, f"Content-Type {media!r} is unknown: use {PROTOBUF} or {JSON}"
            )
        encoding = request.headers.get("content-encoding", "").strip().lower()
        if encoding not in body.ENCODINGS:
            return _refusal(415, media, f"Content-Encoding {encoding!r} is unknown: use gzip")
        try:
            got = received(decode(await body.read(request.stream(), encoding, MAX_BODY)))
        except body.TooLarge as error:
            return _refusal(413, media, str(error))
        except (body.BadEncoding, MalformedBody) as error:
            return _refusal(400, media, str(error))
        self._store.add(got.spans)
        return _answer(200, media, got.response())

    async def traces(self, request: Request) -> Response:
        given = request.query_params.get("limit", "20")
        limit = int(given) if given.isascii() and given.isdigit() and len(given) < 9 else 0
        if not 1 <= limit <= MAX_LISTED:
            return _problem(400, f"limit={given!r} is not a whole number from 1 to {MAX_LISTED}")
        listed = [
            asdict(one) | {"duration_ms": _ms(one.end_unix_nano - one.start_unix_nano)}
            for one in self._store.newest(limit)
        ]
        return JSONResponse({"traces": listed})

    async def trace(self, request: Request) -> Response:
        trace_id = request.path_params["trace_id"].lower()
        spans = self._store.trace(trace_id)
        if not spans:
            return _problem(404, f"no trace {trace_id!r}: not received yet, or already dropped")
        return JSONResponse({"trace_id": trace_id, "spans": [_as_json(row) for row in rows(spans)]})

    async def healthz(self, request: Request) -> Response:
        return JSONResponse(
            {
                "status": "ok",
                "traces": self._store.traces,
                "spans": self._store.spans,
                "dropped_traces": self._store.dropped_traces,
                "dropped_spans": self._store.dropped_spans,
            }
        )


def _as_json(row: Row) -> dict[str, Any]:
    document = asdict(row.span)
    status = {"code": document.pop("status"), "message": document.pop("message")}
    return {
        **document,
        "status": status,
        "depth": row.depth,
        "orphan": row.orphan,
        "critical": row.critical,
    }


def _ms(nanoseconds: int) -> float:
    return round(nanoseconds / 1e6, 3)


def _problem(status: int, text: str) -> Response:
    return JSONResponse({"error": text}, status_code=status)


def _refusal(status: int, media: str, text: str) -> Response:
    """Answer with a google.rpc.Status in the sender's own encoding, as OTLP requires."""
    return _answer(status, media, status_pb2.Status(code=code_pb2.INVALID_ARGUMENT, message=text))


def _answer(status: int, media: str, answer: Message) -> Response:
    if media == PROTOBUF:
        return Response(answer.SerializeToString(), status_code=status, media_type=PROTOBUF)
    return JSONResponse(json_format.MessageToDict(answer), status_code=status)
