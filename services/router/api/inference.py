"""inference.GRPCInferenceService, as one very large Triton would answer it."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final, NoReturn, cast

import grpc
from tritonclient.grpc import service_pb2

from services.common import telemetry
from services.common.caller import CallerPolicy
from services.common.errors import ShoalError, VersionNotFound
from services.common.packed import PACKED
from services.common.rpc import Context, deadline_of, unpacking
from services.common.status import DETAILS_KEY, abort
from services.router.api.administration import refuse_named
from services.router.call import Answer, over_grpc
from services.router.control import model_info
from services.router.control.model_info import ModelInfo
from services.router.control.placement_watch import PlacementWatch
from services.router.control.residents import Rejected
from services.router.core.errors import NotProxied
from services.router.core.routing.metadata import Pairs, forwarded
from services.router.core.routing.routes import Target, VersionRoute, resolve
from services.router.streams.stream import Streams
from services.router.telemetry import tracing
from services.router.unary.forward import TritonError
from services.router.unary.inference import Request, Requests

SERVICE: Final = "inference.GRPCInferenceService"
SERVER_NAME: Final = "shoal"
# As Triton names and orders them, with the call without which there is none.
EXTENSIONS: Final = (
    ("classification", "ModelInfer"),
    ("sequence", "ModelInfer"),
    ("model_repository", "RepositoryModelLoad"),
    ("model_repository(unload_dependents)", "RepositoryModelUnload"),
    ("schedule_policy", "ModelInfer"),
    ("model_configuration", "ModelConfig"),
    ("system_shared_memory", "SystemSharedMemoryRegister"),
    ("cuda_shared_memory", "CudaSharedMemoryRegister"),
    ("binary_tensor_data", "ModelInfer"),
    ("parameters", "ModelInfer"),
    ("statistics", "ModelStatistics"),
    ("trace", "TraceSetting"),
    ("logging", "LogSettings"),
)

_NOT_PROXIED: Final = dict.fromkeys(
    (
        f"{kind}SharedMemory{verb}"
        for kind in ("System", "Cuda")
        for verb in ("Status", "Register", "Unregister")
    ),
    "send tensors in the request, or set SHOAL_ROUTER_SHARED_MEMORY.",
)

Behaviour = Callable[[Any, Context], Awaitable[Any]]


class Inference:
    """`further`: what answers the calls that are not answered here, by name. `version`: of Shoal,
    for ServerMetadata."""

    def __init__(
        self,
        watch: PlacementWatch,
        requests: Requests,
        info: ModelInfo,
        callers: CallerPolicy,
        further: Mapping[str, Answer],
        streams: Streams,
        *,
        version: str,
    ) -> None:
        self._watch = watch
        self._streams = streams
        self._requests = requests
        self._info = info
        self._callers = callers
        self._further = further
        self._version = version

    def handlers(self) -> grpc.GenericRpcHandler:
        """The service's handlers: inference takes and gives raw bytes, the rest are messages."""
        infer = self._traced_infer if telemetry.enabled() else self.model_infer
        methods: dict[str, Any] = {
            "ModelInfer": grpc.unary_unary_rpc_method_handler(infer),
            "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(self.model_stream_infer),
        }
        for name, answer in (
            *self._own(),
            *((name, over_grpc(call, self._callers)) for name, call in self._further.items()),
        ):
            methods[name] = grpc.unary_unary_rpc_method_handler(
                _answering(answer, f"{name}Request"),
                response_serializer=getattr(service_pb2, f"{name}Response").SerializeToString,
            )
        for name, hint in _NOT_PROXIED.items():
            if name not in methods:
                methods[name] = grpc.unary_unary_rpc_method_handler(_refusing(name, hint))
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    def answers(self) -> Mapping[str, Answer]:
        """What answers each call but inference, by name, whatever protocol it came by."""

        def apart(answer: Behaviour) -> Answer:
            return lambda request, call: answer(request, cast("Context", None))

        return {**{name: apart(answer) for name, answer in self._own()}, **self._further}

    def _own(self) -> tuple[tuple[str, Behaviour], ...]:
        """None of them looks at its context."""
        return (
            ("ServerLive", self.server_live),
            ("ServerReady", self.server_ready),
            ("ServerMetadata", self.server_metadata),
            ("ModelReady", self.model_ready),
            ("ModelMetadata", self.model_metadata),
            ("ModelConfig", self.model_config),
            ("RepositoryIndex", self.repository_index),
        )

    # --- inference --------------------------------------------------------------------------------

    async def _traced_infer(self, request: bytes, context: Context) -> bytes:
        metadata = tuple(context.invocation_metadata() or ())
        with tracing.serving(f"{SERVICE}/ModelInfer", metadata):
            return await self.model_infer(request, context, metadata)

    async def model_infer(
        self, request: bytes, context: Context, metadata: Pairs | None = None
    ) -> bytes:
        """`metadata`: the caller's, where it has been read already, which takes gRPC a while."""
        if metadata is None:
            metadata = tuple(context.invocation_metadata() or ())
        deadline = deadline_of(context)
        caller = self._callers.caller(context.peer(), metadata)
        requests = self._requests
        try:
            said = requests.said(metadata)
            if request[:1] in PACKED:
                request = await requests.unpacked(request)
            answer = await requests.answer(Request(request, said, deadline, caller))
        except (TritonError, Rejected) as answered:
            await _pass_on(context, answered.error)
        except ShoalError as error:
            tracing.refused(error)
            await abort(context, error)
        if answer.trailing:
            context.set_trailing_metadata(answer.trailing)
        return answer.message

    async def model_stream_infer(self, requests: AsyncIterator[bytes], context: Context) -> None:
        metadata = tuple(context.invocation_metadata() or ())
        deadline = deadline_of(context)
        caller = self._callers.caller(context.peer(), metadata)
        try:
            await self._streams.open(metadata, deadline, caller).run(requests, context.write)
        except grpc.aio.InternalError:
            return  # a write failed: the client has gone
        except TritonError as answered:
            await _pass_on(context, answered.error)
        except ShoalError as error:
            await abort(context, error)

    # --- what there is ----------------------------------------------------------------------------

    async def server_live(self, request: Any, context: Context) -> Any:
        return service_pb2.ServerLiveResponse(live=True)

    async def server_ready(self, request: Any, context: Context) -> Any:
        return service_pb2.ServerReadyResponse(ready=self._watch.synchronized.is_set())

    async def server_metadata(self, request: Any, context: Context) -> Any:
        own = {"ModelInfer", "ModelConfig"}
        extensions = [name for name, call in EXTENSIONS if call in own or call in self._further]
        return service_pb2.ServerMetadataResponse(
            name=SERVER_NAME, version=self._version, extensions=extensions
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
        refuse_named(request.repository_name)
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


def _answering(answer: Behaviour, asked: str) -> Behaviour:
    """`asked`: the message's name."""
    read = unpacking(getattr(service_pb2, asked).FromString, f"inference.{asked}")

    async def behaviour(message: bytes, context: Context) -> Any:
        try:
            return await answer(read(message), context)
        except Rejected as rejected:
            await _pass_on(context, rejected.error)
        except ShoalError as error:
            await abort(context, error)

    return behaviour


def _refusing(method: str, hint: str) -> Behaviour:
    async def behaviour(request: Any, context: Context) -> Any:
        await abort(context, NotProxied(method=method, hint=hint))

    return behaviour


async def _pass_on(context: Context, error: grpc.aio.AioRpcError) -> NoReturn:
    """End the call with the status that another service gave, unchanged."""
    tracing.failed(error.details() or error.code().name)
    trailing = error.trailing_metadata() or ()
    kept = forwarded(trailing)
    details = tuple([item for item in trailing if item[0] == DETAILS_KEY])
    await context.abort(error.code(), error.details() or "", (*kept, *details))
    raise AssertionError("abort returned")
