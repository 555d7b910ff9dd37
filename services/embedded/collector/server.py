"""The collector's two ports, open for as long as it runs."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Final

import uvicorn
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    add_TraceServiceServicer_to_server,
)

from services.common.caller import CallerPolicy
from services.common.ports import listen
from services.common.rpc import RpcServer
from services.embedded.collector.servicer import TraceService
from services.embedded.collector.settings import CollectorSettings
from services.embedded.collector.store import TraceStore
from services.embedded.collector.web import app

SERVICE: Final = "opentelemetry.proto.collector.trace.v1.TraceService"
GRACE_S: Final = 2


@dataclass(frozen=True, slots=True)
class Collector:
    """A running one. The ports are those that were bound."""

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
        web = _Web(
            uvicorn.Config(
                app(store),
                log_config=None,
                access_log=False,
                lifespan="off",
                ws="none",
                timeout_graceful_shutdown=GRACE_S,
            )
        )
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(web.serve(sockets=[listener]))
                await grpc_server.set_ready(True)
                try:
                    yield Collector(store, grpc_port, listener.getsockname()[1])
                finally:
                    web.should_exit = True
        finally:
            await grpc_server.stop(GRACE_S)


class _Web(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the process's: it says when to stop."""
        yield
