"""inference.GRPCInferenceService, answered as if by one very large Triton."""

from collections.abc import AsyncIterator, Mapping
from typing import Any, Final, NoReturn

import grpc
from tritonclient.grpc import service_pb2

from services.common import telemetry
from services.common.caller import CallerPolicy
from services.common.errors import ShoalError
from services.common.packed import PACKED
from services.common.rpc import Context, deadline_of, unpacking
from services.common.status import DETAILS_KEY, abort, fitting
from services.common.trailers import ROOM, cut
from services.router.call import Answer, GrpcMethod, over_grpc
from services.router.control.answers import Rejected
from services.router.core.errors import NotProxied
from services.router.core.routing.metadata import Pairs, forwarded
from services.router.servers.answers import TritonError
from services.router.streams.stream import Streams
from services.router.telemetry import tracing
from services.router.unary.inference import Request, UnaryInference

SERVICE: Final = "inference.GRPCInferenceService"
_NOT_PROXIED: Final = dict.fromkeys(
    (
        f"{kind}SharedMemory{verb}"
        for kind in ("System", "Cuda")
        for verb in ("Status", "Register", "Unregister")
    ),
    "send tensors in the request, or set SHOAL_ROUTER_SHARED_MEMORY.",
)


class InferenceService:
    """Answers inference itself, and every other method with its entry in `answers`."""

    def __init__(
        self,
        inference: UnaryInference,
        streams: Streams,
        callers: CallerPolicy,
        answers: Mapping[str, Answer],
    ) -> None:
        self._inference = inference
        self._streams = streams
        self._callers = callers
        self._answers = answers

    def methods(self) -> grpc.GenericRpcHandler:
        """Return the service for a gRPC server. Inference takes and returns raw bytes, other
        methods messages."""
        infer = self._traced_infer if telemetry.enabled() else self.model_infer
        methods: dict[str, Any] = {
            "ModelInfer": grpc.unary_unary_rpc_method_handler(infer),
            "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(self.model_stream_infer),
        }
        for name, answer in self._answers.items():
            methods[name] = grpc.unary_unary_rpc_method_handler(
                _method(over_grpc(answer, self._callers), f"{name}Request"),
                response_serializer=getattr(service_pb2, f"{name}Response").SerializeToString,
            )
        for name, hint in _NOT_PROXIED.items():
            if name not in methods:
                methods[name] = grpc.unary_unary_rpc_method_handler(_refusing_method(name, hint))
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    async def _traced_infer(self, request: bytes, context: Context) -> bytes:
        metadata = tuple(context.invocation_metadata() or ())
        with tracing.server_span(f"{SERVICE}/ModelInfer", metadata):
            return await self.model_infer(request, context, metadata)

    async def model_infer(
        self, request: bytes, context: Context, metadata: Pairs | None = None
    ) -> bytes:
        """Answer a serialized ModelInferRequest. `metadata` is the caller's if it has been read
        already, which takes gRPC a while."""
        if metadata is None:
            metadata = tuple(context.invocation_metadata() or ())
        deadline = deadline_of(context)
        caller = self._callers.caller(context.peer(), metadata)
        inference = self._inference
        try:
            checked = inference.checked_metadata(metadata)
            if request[:1] in PACKED:
                request = await inference.decompressed(request)
            answer = await inference.answer(Request(request, checked, deadline, caller))
        except (TritonError, Rejected) as answered:
            await _pass_on(context, answered.error)
        except ShoalError as error:
            tracing.mark_refused(error)
            await abort(context, error)
        if answer.trailing:
            context.set_trailing_metadata(answer.trailing)
        return answer.message

    async def model_stream_infer(self, requests: AsyncIterator[bytes], context: Context) -> None:
        """Answer a client's stream of serialized ModelInferRequests."""
        metadata = tuple(context.invocation_metadata() or ())
        deadline = deadline_of(context)
        caller = self._callers.caller(context.peer(), metadata)
        try:
            await self._streams.open(metadata, deadline, caller).run(requests, context.write)
        except grpc.aio.InternalError:
            return  # a write failed: the client is gone
        except TritonError as answered:
            await _pass_on(context, answered.error)
        except ShoalError as error:
            await abort(context, error)


def _method(answer: GrpcMethod, asked: str) -> GrpcMethod:
    """Return `answer` as a method that takes serialized messages. `asked` is the name of their
    type."""
    read = unpacking(getattr(service_pb2, asked).FromString, f"inference.{asked}")

    async def answered(message: bytes, context: Context) -> Any:
        try:
            return await answer(read(message), context)
        except Rejected as rejected:
            await _pass_on(context, rejected.error)
        except ShoalError as error:
            await abort(context, error)

    return answered


def _refusing_method(method: str, hint: str) -> GrpcMethod:
    """Return a method that refuses every call."""

    async def answered(request: Any, context: Context) -> Any:
        await abort(context, NotProxied(method=method, hint=hint))

    return answered


async def _pass_on(context: Context, error: grpc.aio.AioRpcError) -> NoReturn:
    """End the call with the status that another service gave. Its text is cut to what clients
    take."""
    tracing.mark_failed(error.details() or error.code().name)
    trailing = error.trailing_metadata() or ()
    kept = forwarded(trailing)
    text = error.details() or ""
    status = next((value for key, value in trailing if key == DETAILS_KEY), None)
    if status is None:
        await context.abort(error.code(), cut(text, ROOM), kept)
    text, status = fitting(text, status if isinstance(status, bytes) else status.encode())
    await context.abort(error.code(), text, (*kept, (DETAILS_KEY, status)))
    raise AssertionError("abort returned")
