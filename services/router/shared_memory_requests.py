"""Requests whose tensors lie in shared memory."""

import asyncio
from typing import Any, Final, NamedTuple

import grpc
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from services.common.caller import Caller
from services.common.rpc import HEADER_BYTES
from services.router.admission import Admission
from services.router.core.shared_memory import Mapped, Owner
from services.router.forward import Forwarder, Reply, TritonError
from services.router.model_info import ModelInfo
from services.router.placement_watch import PlacementWatch
from services.router.requests import Request, Requests
from services.router.shared_memory import SharedMemory
from services.router.statistics import Statistics

_REGION: Final = "shared_memory_region"
_OFFSET: Final = "shared_memory_offset"
_SIZE: Final = "shared_memory_byte_size"
_MARK: Final = _REGION.encode()
_UNKNOWN: Final = "Unable to find shared memory region"


class Translated(NamedTuple):
    """`message`: a serialized ModelInferRequest that names what the servers know. `regions`: the
    caller's name of each."""

    message: bytes
    regions: dict[Mapped, str]

    def renamed(self, text: str) -> str:
        for mapped, name in self.regions.items():
            text = text.replace(mapped.name, name)
        return text


class SharedMemoryRequests(Requests):
    """Answers as Requests does; only what names a region is decoded."""

    def __init__(
        self,
        watch: PlacementWatch,
        forwarder: Forwarder,
        statistics: Statistics,
        info: ModelInfo,
        admission: Admission,
        shared: SharedMemory,
        *,
        max_message: int,
        max_metadata: int = HEADER_BYTES,
    ) -> None:
        super().__init__(
            watch,
            forwarder,
            statistics,
            info,
            admission,
            max_message=max_message,
            max_metadata=max_metadata,
        )
        self._shared = shared
        self._running: set[asyncio.Task[Reply]] = set()

    async def answer(self, request: Request) -> Reply:
        """Raises RegionNotFound and RegionBounds too."""
        if _MARK not in request.message:
            return await super().answer(request)
        translated = self.translated(request.message, request.caller)
        if not translated.regions:
            return await super().answer(request)
        # Servers write to the memory until they have answered, whether or not the caller waits.
        for mapped in translated.regions:
            mapped.in_flight += 1
        work = asyncio.create_task(self._answer(request, translated))
        self._running.add(work)
        work.add_done_callback(self._done)
        return await asyncio.shield(work)

    def translated(self, message: bytes, caller: Caller) -> Translated:
        """Raises RegionNotFound, RegionBounds."""
        regions: dict[Mapped, str] = {}
        try:
            request = service_pb2.ModelInferRequest.FromString(message)
        except DecodeError:
            return Translated(message, regions)  # refused, with its reason, where all others are
        owner = Owner(caller.tenant, caller.subject)
        for tensor in (*request.inputs, *request.outputs):
            parameters = tensor.parameters
            place = _place(parameters)
            if place is None:
                continue
            mapped, begins = self._shared.part(owner, *place)
            regions[mapped] = place[0]
            parameters[_REGION].string_param = mapped.name
            if _OFFSET in parameters or begins:
                parameters[_OFFSET].int64_param = begins
        return Translated(request.SerializeToString() if regions else message, regions)

    async def _answer(self, request: Request, translated: Translated) -> Reply:
        request = request._replace(message=translated.message, stream=None)
        try:
            try:
                answer = await super().answer(request)
            except TritonError as error:
                if not _lost(error):
                    raise
                for mapped in translated.regions:
                    await self._shared.map_again(mapped)
                answer = await super().answer(request)
        except TritonError as error:
            raise _renamed(error, translated) from error
        finally:
            for mapped in translated.regions:
                await self._shared.ended(mapped)
        return answer._replace(message=_restored(answer.message, translated))

    def _done(self, work: "asyncio.Task[Reply]") -> None:
        self._running.discard(work)
        if not work.cancelled():
            work.exception()  # its caller has heard of it, or is gone


def _place(parameters: Any) -> tuple[str, int, int] | None:
    """Name of a tensor's region, its offset and size there; None where it lies in none, or where
    Triton will say that it can't tell where."""
    if _REGION not in parameters or _SIZE not in parameters:
        return None
    kinds = [
        parameters[name].WhichOneof("parameter_choice") if name in parameters else "int64_param"
        for name in (_REGION, _OFFSET, _SIZE)
    ]
    if kinds != ["string_param", "int64_param", "int64_param"]:
        return None
    offset = parameters[_OFFSET].int64_param if _OFFSET in parameters else 0
    return parameters[_REGION].string_param, offset, parameters[_SIZE].int64_param


def _lost(error: TritonError) -> bool:
    """Whether the server does not know a region: it has been started since it was registered."""
    return error.error.code() is grpc.StatusCode.NOT_FOUND and _UNKNOWN in str(error)


def _renamed(error: TritonError, translated: Translated) -> TritonError:
    told = error.error
    text = translated.renamed(told.details() or "")
    again = grpc.aio.AioRpcError(
        told.code(), told.initial_metadata(), told.trailing_metadata(), details=text
    )
    return TritonError(again, cold=error.cold)


def _restored(message: bytes, translated: Translated) -> bytes:
    """A serialized ModelInferResponse that names the caller's regions."""
    if not any(mapped.name.encode() in message for mapped in translated.regions):
        return message
    response: Any = service_pb2.ModelInferResponse.FromString(message)
    for tensor in response.outputs:
        if _REGION in tensor.parameters:
            region = tensor.parameters[_REGION]
            region.string_param = translated.renamed(region.string_param)
    return bytes(response.SerializeToString())
