"""The collector's side of OTLP over gRPC."""

from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from services.embedded.collector.otlp import received
from services.embedded.collector.store import TraceStore


class TraceService(trace_service_pb2_grpc.TraceServiceServicer):
    """OTLP's TraceService."""

    def __init__(self, store: TraceStore) -> None:
        self._store = store

    async def Export(
        self,
        request: trace_service_pb2.ExportTraceServiceRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        got = received(request)
        self._store.add(got.spans)
        return got.response()
