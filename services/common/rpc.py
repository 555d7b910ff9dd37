"""The gRPC server that every Shoal service runs.

It has reflection and grpc.health.v1. Around every handler of Shoal's own services there is an edge,
which identifies the caller, refuses administrative calls to strangers, traces, counts, and turns a
ShoalError into its status.
"""

import inspect
import time
import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, cast

import grpc
import structlog
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from opentelemetry import trace

from services.common import metrics, telemetry
from services.common.caller import LOCAL, Caller, CallerPolicy
from services.common.channels import KEEPALIVE, MAX_CONTROL_MESSAGE
from services.common.errors import MalformedMessage, ShoalError
from services.common.packed import PACKED, unpacked
from services.common.ports import listen
from services.common.status import abort, grpc_code

Context = grpc.aio.ServicerContext[Any, Any]

MAX_UNPACKED: Final = 4 * 1024 * 1024  # bytes of a compressed message, except for inference
HEADER_BYTES: Final = 8 * 1024  # of one call's metadata, which every gRPC server accepts

current_caller: ContextVar[Caller] = ContextVar("current_caller", default=LOCAL)

# The context gives only the number.
_CODE_NAMES: Final[dict[Any, str]] = {code.value[0]: code.name for code in grpc.StatusCode}

_log = structlog.get_logger(__name__)
_tracer = trace.get_tracer("shoal.rpc")


def deadline_of(context: Context) -> float | None:
    """Return when the caller stops waiting, in seconds of the monotonic clock; None for never."""
    left = cast("float | None", context.time_remaining())
    return None if left is None else time.monotonic() + left


@dataclass(frozen=True, slots=True)
class Limits:
    """What clients may use of a server. None means no limit, or gRPC's own for `pending`."""

    #: Bytes of one call's metadata.
    header_bytes: int = HEADER_BYTES
    #: Concurrent calls of a connection; further calls wait in the client.
    streams: int | None = None
    #: Connections of the server.
    connections: int | None = None
    #: Calls, of all connections, that no handler has begun with; further ones are CANCELLED.
    pending: int | None = None
    #: Seconds for which a call may be pending, after which it is CANCELLED.
    pending_time: float = 30.0
    #: Seconds after which a connection is closed, once its calls are over.
    age: float | None = None
    #: Seconds after `age` at which the connection is closed with the calls that are left.
    grace: float | None = None
    #: Seconds without a call after which a connection is closed.
    idle: float | None = None
    #: Seconds within which a new connection has to speak HTTP/2.
    handshake: float = 20.0

    def options(self) -> tuple[tuple[str, int], ...]:
        """Return the options of a gRPC server."""
        counts = (
            # The soft and the hard limits are equal: between them gRPC refuses calls at random.
            ("grpc.max_metadata_size", self.header_bytes),
            ("grpc.absolute_max_metadata_size", self.header_bytes),
            ("grpc.max_concurrent_streams", self.streams),
            ("grpc.max_allowed_incoming_connections", self.connections),
            ("grpc.server.max_pending_requests", self.pending),
            ("grpc.server.max_pending_requests_hard_limit", self.pending),
            ("grpc.server_max_unrequested_time_in_server", round(self.pending_time)),
        )
        times = (
            ("grpc.max_connection_age_ms", self.age),
            ("grpc.max_connection_age_grace_ms", self.grace),
            ("grpc.max_connection_idle_ms", self.idle),
            ("grpc.server_handshake_timeout_ms", self.handshake),
        )
        return (
            *((name, count) for name, count in counts if count is not None),
            *((name, round(1000 * time_)) for name, time_ in times if time_ is not None),
        )


class RpcServer:
    """A gRPC server with health, reflection and an edge.

    `open_methods` are full method names (`/package.Service/Method`) that need no admin role.
    Shoal's own servicers are added to `services`. The server itself, `grpc`, has no edge, and its
    handlers get messages as they came, perhaps compressed.
    """

    def __init__(
        self,
        callers: CallerPolicy,
        *,
        open_methods: frozenset[str],
        options: Sequence[tuple[str, Any]] = (),
    ) -> None:
        settled = dict(
            (
                # Two servers that share a port would answer each other's calls unnoticed.
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", MAX_CONTROL_MESSAGE),
                ("grpc.max_send_message_length", MAX_CONTROL_MESSAGE),
                ("grpc.per_message_decompression", 0),  # see packed.py
                ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
                *KEEPALIVE,
                *options,
            )
        )
        # Interceptors would cost every call, even those that they let pass.
        self.grpc = grpc.aio.server(options=tuple(settled.items()))
        edge = _Edge(callers, open_methods)
        self.services = cast("grpc.aio.Server", _Around(edge.around, self.grpc))
        self._health = health.aio.HealthServicer()
        self._names: list[str] = []

    def announce(self, *service_names: str) -> None:
        """Name the services for reflection and health. Their handlers are added separately."""
        self._names.extend(service_names)

    async def start(self, host: str, port: int) -> int:
        """Bind and serve. Return the port, which matters for port 0.

        Raises PortTaken, or OSError if the host isn't this machine's.
        """
        # Added last, because gRPC asks one handler after the other whose a call is.
        open_to_all = cast("grpc.aio.Server", _Around(_unpacking_handler, self.grpc))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, open_to_all)
        reflection.enable_server_reflection(
            [*self._names, health.SERVICE_NAME, reflection.SERVICE_NAME], open_to_all
        )
        await self.set_ready(False)
        try:
            bound = self.grpc.add_insecure_port(
                f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            )
        except RuntimeError:
            listen(host, port).close()  # raises what gRPC does not tell: taken, or not our host
            raise
        await self.grpc.start()
        return int(bound)

    async def set_ready(self, ready: bool) -> None:
        serving = health_pb2.HealthCheckResponse
        state = serving.SERVING if ready else serving.NOT_SERVING
        for name in ("", *self._names):
            await self._health.set(name, state)

    async def stop(self, grace: float) -> None:
        """Refuse new calls at once, and give running calls `grace` seconds."""
        await self._health.enter_graceful_shutdown()
        await self.grpc.stop(grace)


_Wrap = Callable[[Any, str], "grpc.RpcMethodHandler[Any, Any]"]


class _Around:
    """Takes servicers like a server, and wraps their handlers."""

    def __init__(self, around: _Wrap, server: grpc.aio.Server) -> None:
        self._around = around
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        self._server.add_generic_rpc_handlers([_Wrapped(self._around, one) for one in handlers])

    def add_registered_method_handlers(self, service_name: str, handlers: object) -> None:
        """Ignore these: the generic handlers are the same."""


class _Wrapped(grpc.GenericRpcHandler):
    def __init__(self, around: _Wrap, inner: grpc.GenericRpcHandler) -> None:
        self._around = around
        self._inner = inner

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        handler = self._inner.service(handler_call_details)
        if handler is None:
            return None
        return self._around(handler, handler_call_details.method)


def unpacking(parse: Callable[[bytes], Any], name: str) -> Callable[[bytes], Any]:
    """Return a parser that also takes compressed messages.

    It raises MalformedMessage, with `name`.
    """

    def read(message: bytes) -> Any:
        try:
            if message[:1] in PACKED:
                message = unpacked(message, MAX_UNPACKED)
            return parse(message)
        except (zlib.error, DecodeError) as error:
            raise MalformedMessage(message_type=name, problem=error) from error

    return read


def _unpacking_handler(handler: Any, method: str) -> Any:
    return handler._replace(request_deserializer=unpacking(handler.request_deserializer, method))


class _Edge:
    def __init__(self, callers: CallerPolicy, open_methods: frozenset[str]) -> None:
        self._callers = callers
        self._open = open_methods

    def around(self, handler: Any, method: str) -> "grpc.RpcMethodHandler[Any, Any]":
        if handler.response_streaming:
            return self._streaming(handler, method)
        return self._unary(handler, method)

    def _unary(self, handler: Any, method: str) -> "grpc.RpcMethodHandler[Any, Any]":
        behaviour = handler.stream_unary if handler.request_streaming else handler.unary_unary
        read = _read(handler, method)

        async def answer(request: Any, context: Context) -> Any:
            async with _Call(self, method, context):
                return await behaviour(read(request), context)

        make = (
            grpc.stream_unary_rpc_method_handler
            if handler.request_streaming
            else grpc.unary_unary_rpc_method_handler
        )
        return make(answer, None, handler.response_serializer)

    def _streaming(self, handler: Any, method: str) -> "grpc.RpcMethodHandler[Any, Any]":
        behaviour = handler.stream_stream if handler.request_streaming else handler.unary_stream
        read = _read(handler, method)

        async def answer(request: Any, context: Context) -> None:
            async with _Call(self, method, context):
                responses = behaviour(read(request), context)
                if inspect.isawaitable(responses):  # it writes to the context itself
                    await responses
                    return
                async for response in responses:
                    await context.write(response)

        make = (
            grpc.stream_stream_rpc_method_handler
            if handler.request_streaming
            else grpc.unary_stream_rpc_method_handler
        )
        return make(answer, None, handler.response_serializer)

    def admit(self, method: str, context: Context) -> Caller:
        caller = self._callers.caller(context.peer(), tuple(context.invocation_metadata() or ()))
        if method not in self._open:
            caller.require_admin(method)
        return caller


def _read(handler: Any, method: str) -> Callable[[Any], Any]:
    """Return what parses a call's request or requests; a handler without a parser gets them raw."""
    if handler.request_deserializer is None:
        return lambda request: request
    read = unpacking(handler.request_deserializer, f"request to {method}")

    async def each(requests: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        async for message in requests:
            yield read(message)

    return each if handler.request_streaming else read


class _Call:
    """One call's caller, span, count and error mapping, around its handler."""

    def __init__(self, edge: _Edge, method: str, context: Context) -> None:
        self._edge = edge
        self._method = method
        self._context = context
        self._began = time.monotonic()

    async def __aenter__(self) -> None:
        parent = telemetry.parent_context(self._context.invocation_metadata() or ())
        # Watches live for hours, so a span for one would say nothing and never end.
        traced = "/Watch" not in self._method and telemetry.sampled(parent)
        self._span = (
            _tracer.start_span(self._method.lstrip("/"), context=parent, kind=trace.SpanKind.SERVER)
            if traced
            else trace.INVALID_SPAN
        )
        self._scope = trace.use_span(
            self._span, record_exception=False, set_status_on_exception=False
        )
        self._scope.__enter__()
        try:
            current_caller.set(self._edge.admit(self._method, self._context))
        except ShoalError as error:
            await self._finish(error)

    async def __aexit__(self, kind: object, error: BaseException | None, trace_: object) -> None:
        await self._finish(error)

    async def _finish(self, error: BaseException | None) -> None:
        code = "OK"
        try:
            if isinstance(error, ShoalError):
                code = grpc_code(error).name
                self._span.set_attribute("shoal.error.reason", error.reason)
                self._span.set_status(trace.StatusCode.ERROR, error.message)
                await abort(self._context, error)
            elif isinstance(error, Exception) and not isinstance(error, grpc.aio.AbortError):
                code = "INTERNAL"
                _log.exception("call failed", method=self._method, exc_info=error)
                self._span.set_status(trace.StatusCode.ERROR, repr(error))
                await self._context.abort(
                    grpc.StatusCode.INTERNAL,
                    f"{self._method} failed inside the service: its log has the details",
                )
            elif isinstance(error, grpc.aio.AbortError):
                code = _CODE_NAMES.get(self._context.code(), "UNKNOWN")
            elif error is not None:
                code = "CANCELLED"
        finally:
            metrics.RPC_SECONDS.labels(self._method, code).observe(time.monotonic() - self._began)
            self._scope.__exit__(None, None, None)
            self._span.end()
