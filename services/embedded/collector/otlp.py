"""OTLP's messages, in their two encodings, turned into spans."""

import base64
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, cast, get_args

from google.protobuf import json_format, message
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1 import trace_pb2

from services.embedded.collector.core import Kind, Span, Status

MAX_ATTRIBUTES: Final = 128  # of one span; the rest is left out
MAX_TEXT: Final = 1024  # characters of a name or an attribute; the rest is cut off
_DEEPEST: Final = 8  # levels of nesting in an attribute

_KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
_STATUSES: Final[tuple[Status, ...]] = get_args(Status)
_ID_FIELDS: Final = ("traceId", "spanId", "parentSpanId")


class MalformedBody(ValueError):
    """A body is not an ExportTraceServiceRequest; the text says why."""


@dataclass(frozen=True, slots=True)
class Received:
    """The spans of a request. `rejected` is the number of those without usable ids."""

    spans: tuple[Span, ...]
    rejected: int = 0
    problem: str = ""

    def response(self) -> ExportTraceServiceResponse:
        response = ExportTraceServiceResponse()
        if self.rejected:  # a full success must leave the field unset
            response.partial_success.rejected_spans = self.rejected
            response.partial_success.error_message = self.problem
        return response


def from_protobuf(body: bytes) -> ExportTraceServiceRequest:
    """Parse OTLP's protobuf. Raises MalformedBody."""
    try:
        return ExportTraceServiceRequest.FromString(body)
    except message.DecodeError as error:
        raise MalformedBody(f"the body is not an ExportTraceServiceRequest: {error}") from error


def from_json(body: bytes) -> ExportTraceServiceRequest:
    """Parse OTLP's JSON, which is protobuf's with hexadecimal ids. Raises MalformedBody."""
    try:
        document = json.loads(body)
        for span in _spans_of(document):
            _ids_to_base64(span)
            for link in _objects(span, "links"):
                _ids_to_base64(link)
        request = ExportTraceServiceRequest()
        # OTLP asks to ignore unknown fields, which come from a later version.
        json_format.ParseDict(document, request, ignore_unknown_fields=True)
    except (ValueError, TypeError, AttributeError, json_format.ParseError, RecursionError) as error:
        raise MalformedBody(f"the body is not an ExportTraceServiceRequest: {error}") from error
    return request


def received(request: ExportTraceServiceRequest) -> Received:
    spans: list[Span] = []
    rejected = 0
    for resource_spans in request.resource_spans:
        resource = _attributes(resource_spans.resource.attributes)
        service = str(resource.get("service.name", "unknown"))
        instance = str(resource.get("service.instance.id", ""))
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                if _identified(span):
                    spans.append(_span(span, service, instance))
                else:
                    rejected += 1
    problem = f"{rejected} spans without a valid trace or span id" if rejected else ""
    return Received(tuple(spans), rejected, problem)


def _spans_of(document: Any) -> Iterator[dict[str, Any]]:
    if not isinstance(document, dict):
        raise ValueError("it is not a JSON object")
    for resource_spans in _objects(document, "resourceSpans"):
        for scope_spans in _objects(resource_spans, "scopeSpans"):
            yield from _objects(scope_spans, "spans")


def _objects(node: dict[str, Any], name: str) -> list[dict[str, Any]]:
    # protobuf's own parser accepts a string as an object without known fields.
    found = node.get(name) or []
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise ValueError(f"{name} is not a list of objects")
    return found


def _ids_to_base64(node: dict[str, Any]) -> None:
    for name in _ID_FIELDS:
        if isinstance(given := node.get(name), str):
            try:
                node[name] = base64.b64encode(bytes.fromhex(given)).decode()
            except ValueError:
                raise ValueError(f"{name} {given[:64]!r} is not hexadecimal") from None


def _identified(span: trace_pb2.Span) -> bool:
    parent = span.parent_span_id
    return (
        len(span.trace_id) == 16
        and len(span.span_id) == 8
        and len(parent) in (0, 8)
        and any(span.trace_id)
        and any(span.span_id)
    )


def _span(span: trace_pb2.Span, service: str, instance: str) -> Span:
    return Span(
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        # Some senders write zeros for the missing parent of a root.
        parent_span_id=span.parent_span_id.hex() if any(span.parent_span_id) else "",
        service=service,
        instance=instance,
        name=span.name[:MAX_TEXT],
        kind=_KINDS[span.kind] if 0 <= span.kind < len(_KINDS) else "unspecified",
        start_unix_nano=span.start_time_unix_nano,
        # The clock may have been set back while the span ran.
        end_unix_nano=max(span.start_time_unix_nano, span.end_time_unix_nano),
        status=_STATUSES[span.status.code] if 0 <= span.status.code < len(_STATUSES) else "unset",
        message=span.status.message[:MAX_TEXT],
        attributes=_attributes(span.attributes),
    )


def _attributes(pairs: Iterable[KeyValue], depth: int = 0) -> dict[str, Any]:
    kept = list(pairs)[:MAX_ATTRIBUTES]
    return {pair.key[:MAX_TEXT]: _value(pair.value, depth) for pair in kept}


def _value(value: AnyValue, depth: int) -> Any:
    """Return a value in JSON's types: bytes become base64, and what is nested too deep None."""
    kind = value.WhichOneof("value")
    if kind is None or depth == _DEEPEST:
        return None
    if kind == "array_value":
        return [_value(one, depth + 1) for one in value.array_value.values[:MAX_ATTRIBUTES]]
    if kind == "kvlist_value":
        return _attributes(value.kvlist_value.values, depth + 1)
    found = getattr(value, kind)
    if kind == "bytes_value":
        return base64.b64encode(cast("bytes", found)[:MAX_TEXT]).decode()
    if isinstance(found, float) and not math.isfinite(found):
        return str(found)
    return found[:MAX_TEXT] if isinstance(found, str) else found
