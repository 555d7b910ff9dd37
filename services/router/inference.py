"""inference.GRPCInferenceService, as one very large Triton would answer it."""

import random
import time
import zlib
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

import grpc
from opentelemetry import trace
from tritonclient.grpc import service_pb2

from services.common import telemetry
from services.common.errors import (
    MalformedMessage,
    MessageTooLarge,
    NotProxied,
    ServerLost,
    ShoalError,
    VersionNotFound,
)
from services.common.rpc import Context
from services.common.status import abort, grpc_code
from services.router import model_info
from services.router.controller_client import Rejected
from services.router.core import wire
from services.router.core.routes import Target, VersionRoute, resolve
from services.router.forward import Forwarder, Metadata, TritonError
from services.router.model_info import ModelInfo
from services.router.placement_watch import PlacementWatch
from services.router.statistics import Statistics

SERVICE: Final = "inference.GRPCInferenceService"
SERVER_NAME: Final = "shoal"
# Only what is really proxied.
EXTENSIONS: Final = ("classification", "model_configuration", "model_repository")

# Triton's control key and our own identity headers are ours alone; the rest of these belong to one
# hop only, or are set anew for the next. A content-length would be wrong for the longer message.
_STRIPPED: Final = (
    *("grpc-", "triton-grpc-protocol-", "x-shoal-"),
    *("content-length", "user-agent", "trace"),
)

_NOT_PROXIED: Final = {
    "ModelStreamInfer": "send unary ModelInfer requests; streams are not proxied yet.",
    "ModelStatistics": "shoal.router.v1.RouterService/GetStatistics has the Router's counts.",
    "RepositoryModelLoad": "models are loaded when they are asked for; `shoal load` does it ahead.",
    "RepositoryModelUnload": "models leave when room is needed; `shoal evict` does it at once.",
    "TraceSetting": "send a sampled traceparent, and the request is traced through Triton.",
    "LogSettings": "ask each server's administrator.",
    **dict.fromkeys(
        (
            f"{kind}SharedMemory{verb}"
            for kind in ("System", "Cuda")
            for verb in ("Status", "Register", "Unregister")
        ),
        "shared memory is not proxied: send tensors in the request.",
    ),
}

_tracer = trace.get_tracer("shoal.router")

Answer = Callable[[Any, Context], Awaitable[Any]]


class Inference:
    """`version`: of Shoal, for ServerMetadata. `max_message`: bytes of one request."""

    def __init__(
        self,
        watch: PlacementWatch,
        forwarder: Forwarder,
        info: ModelInfo,
        statistics: Statistics,
        *,
        version: str,
        max_message: int,
    ) -> None:
        self._watch = watch
        self._forwarder = forwarder
        self._info = info
        self._statistics = statistics
        self._version = version
        self._max_message = max_message

    def handlers(self) -> grpc.GenericRpcHandler:
        """The service's handlers: ModelInfer takes and gives raw bytes, the rest are messages."""
        methods: dict[str, Any] = {
            "ModelInfer": grpc.unary_unary_rpc_method_handler(self.model_infer),
        }
        for name, answer in (
            ("ServerLive", self.server_live),
            ("ServerReady", self.server_ready),
            ("ServerMetadata", self.server_metadata),
            ("ModelReady", self.model_ready),
            ("ModelMetadata", self.model_metadata),
            ("ModelConfig", self.model_config),
            ("RepositoryIndex", self.repository_index),
        ):
            methods[name] = grpc.unary_unary_rpc_method_handler(
                _answering(answer),
                request_deserializer=getattr(service_pb2, f"{name}Request").FromString,
                response_serializer=getattr(service_pb2, f"{name}Response").SerializeToString,
            )
        for name, hint in _NOT_PROXIED.items():
            make = (
                grpc.stream_stream_rpc_method_handler
                if name == "ModelStreamInfer"
                else grpc.unary_unary_rpc_method_handler
            )
            methods[name] = make(_refusing(name, hint))
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    # --- inference --------------------------------------------------------------------------------

    async def model_infer(self, request: bytes, context: Context) -> bytes:
        if not telemetry.enabled():
            return await self._infer(request, context)
        parent = telemetry.parent_context(context.invocation_metadata() or ())
        if not telemetry.sampled(parent):
            return await self._infer(request, context)
        with _tracer.start_as_current_span(
            f"{SERVICE}/ModelInfer",
            context=parent,
            kind=trace.SpanKind.SERVER,
            record_exception=False,
            set_status_on_exception=False,
        ):
            return await self._infer(request, context)

    async def _infer(self, request: bytes, context: Context) -> bytes:
        began = time.monotonic()
        target: Target | None = None
        request_id = ""
        failed, cold = True, False
        try:
            if len(request) > self._max_message:
                raise MessageTooLarge(size=len(request), limit=self._max_message)
            head = wire.head(request)
            routes = self._watch.table.routes
            target = resolve(routes, head.model, head.version, _draw(head.sequence))
            request_id = head.id
            renamed = None if target.model == head.model else target.model
            left = cast("float | None", context.time_remaining())  # None without a deadline
            reply = await self._forwarder.infer(
                target,
                wire.overridden(request, renamed, target.version),
                forwarded(context.invocation_metadata() or ()),
                None if left is None else began + left,
                retry=routes[target.model].retry,
                sequence=head.sequence,
            )
            failed, cold = False, reply.cold
            if reply.leading:
                await context.send_initial_metadata(forwarded(reply.leading))
            if reply.trailing:
                context.set_trailing_metadata(forwarded(reply.trailing))
            if renamed is not None:
                return wire.overridden(reply.message, head.model, None)
            return reply.message
        except TritonError as answered:
            cold = answered.cold
            await _pass_on(context, answered.error)
        except Rejected as rejected:
            cold = True
            await _pass_on(context, rejected.error)
        except wire.Malformed as error:
            await _fail(
                context, MalformedMessage(message_type="inference.ModelInferRequest", problem=error)
            )
        except ShoalError as error:
            cold = isinstance(error, ServerLost)
            await _fail(context, error)
        finally:
            if target is not None:
                self._statistics.add(target, time.monotonic() - began, failed=failed, cold=cold)
                if telemetry.enabled():
                    _describe(target, request_id, cold=cold)
        raise AssertionError("unreachable")

    # --- what there is ----------------------------------------------------------------------------

    async def server_live(self, request: Any, context: Context) -> Any:
        return service_pb2.ServerLiveResponse(live=True)

    async def server_ready(self, request: Any, context: Context) -> Any:
        return service_pb2.ServerReadyResponse(ready=self._watch.synchronized.is_set())

    async def server_metadata(self, request: Any, context: Context) -> Any:
        return service_pb2.ServerMetadataResponse(
            name=SERVER_NAME, version=self._version, extensions=EXTENSIONS
        )

    async def model_ready(self, request: Any, context: Context) -> Any:
        try:
            _, route = self._version_of(request.name, request.version)
        except ShoalError:
            return service_pb2.ModelReadyResponse(ready=False)
        return service_pb2.ModelReadyResponse(ready=route.servable)

    async def model_metadata(self, request: Any, context: Context) -> Any:
        target, route = self._version_of(request.name, request.version)
        config = await self._info.config(target, route.config_digest)
        versions = self._watch.table.routes[target.model].versions
        servable = sorted(number for number, entry in versions.items() if entry.servable)
        listed = [target.version] if request.version else servable
        return model_info.metadata(request.name, listed, config)

    async def model_config(self, request: Any, context: Context) -> Any:
        target, route = self._version_of(request.name, request.version)
        config = await self._info.config(target, route.config_digest)
        return service_pb2.ModelConfigResponse(config=config)

    async def repository_index(self, request: Any, context: Context) -> Any:
        return model_info.index(self._watch.table.routes, ready_only=request.ready)

    def _version_of(self, model: str, version: str) -> tuple[Target, VersionRoute]:
        """The first arm's version where a policy splits the traffic: its arms share signatures."""
        routes = self._watch.table.routes
        target = resolve(routes, model, version, 0.0)
        found = routes[target.model].versions.get(target.version)
        if found is None:
            raise VersionNotFound(
                model=target.model, version=target.version, versions="it is not registered any more"
            )
        return target, found


def _draw(sequence: wire.Sequence | None) -> float:
    """In [0, 1): where a traffic policy sends it. A sequence stays with what it began with."""
    if sequence is None:
        return random.random()  # noqa: S311
    return zlib.crc32(str(sequence.id).encode()) / 2**32


def forwarded(
    metadata: Metadata,
) -> tuple[tuple[str, str | bytes], ...]:
    """The part of a call's metadata that the next hop may see."""
    return tuple([item for item in metadata if not item[0].startswith(_STRIPPED)])


def _answering(answer: Answer) -> Answer:
    async def behaviour(request: Any, context: Context) -> Any:
        try:
            return await answer(request, context)
        except Rejected as rejected:
            await _pass_on(context, rejected.error)
        except ShoalError as error:
            await abort(context, error)

    return behaviour


def _refusing(method: str, hint: str) -> Answer:
    async def behaviour(request: Any, context: Context) -> Any:
        await abort(context, NotProxied(method=method, hint=hint))

    return behaviour


async def _pass_on(context: Context, error: grpc.aio.AioRpcError) -> None:
    """End the call with the status that another service gave, unchanged."""
    _mark_failed(error.details() or error.code().name)
    trailing = tuple(
        (key, value)
        for key, value in error.trailing_metadata() or ()
        if key == "grpc-status-details-bin" or not key.startswith(_STRIPPED)
    )
    await context.abort(error.code(), error.details() or "", trailing)


async def _fail(context: Context, error: ShoalError) -> None:
    span = trace.get_current_span()
    if span.is_recording():
        span.set_attribute("shoal.error.reason", error.reason)
        span.set_attribute("rpc.grpc.status_code", grpc_code(error).value[0])
    _mark_failed(error.message)
    await abort(context, error)


def _mark_failed(text: str) -> None:
    span = trace.get_current_span()
    if span.is_recording():
        span.set_status(trace.StatusCode.ERROR, text)


def _describe(target: Target, request_id: str, *, cold: bool) -> None:
    span = trace.get_current_span()
    if span.is_recording():
        if request_id:
            span.set_attribute("shoal.request_id", request_id)
        span.set_attributes(
            {
                "shoal.model": target.model,
                "shoal.version": target.version,
                "shoal.cold": cold,
            }
        )
