"""The running collector, with its two ports."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    add_TraceServiceServicer_to_server,
)

from services.common.caller import CallerPolicy
from services.common.ports import listen
from services.common.rpc import RpcServer
from services.common.web import serving
from services.embedded.collector.servicer import TraceService
from services.embedded.collector.settings import CollectorSettings
from services.embedded.collector.store import TraceStore
from services.embedded.collector.web import app

SERVICE: Final = "opentelemetry.proto.collector.trace.v1.TraceService"
GRACE_S: Final = 2


@dataclass(frozen=True, slots=True)
class Collector:
    """A running collector, and the ports that it has bound."""

    store: TraceStore
    grpc_port: int
    http_port: int


@asynccontextmanager
async def collector(settings: CollectorSettings) -> AsyncIterator[Collector]:
    """Receive traces inside the `async with`. Raises ports.PortTaken."""
    store = TraceStore(settings.max_spans, max_traces=settings.max_spans)
    with listen(settings.host, settings.http_port) as listener:
        grpc_server = RpcServer(CallerPolicy(), open_methods=frozenset())
        grpc_server.announce(SERVICE)
        add_TraceServiceServicer_to_server(  # type: ignore[no-untyped-call]
            TraceService(store), grpc_server.grpc
        )
        grpc_port = await grpc_server.start(settings.host, settings.grpc_port)
        try:
            async with serving(app(store), listener):
                await grpc_server.set_ready(True)
                yield Collector(store, grpc_port, listener.getsockname()[1])
        finally:
            await grpc_server.stop(GRACE_S)
