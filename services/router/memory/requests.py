"""Requests whose tensors lie in shared memory."""

import asyncio

import grpc

from services.common.caller import Caller
from services.common.rpc import HEADER_BYTES
from services.router.admission.admission import Admission
from services.router.control.model_info import ModelInfo
from services.router.control.placement_watch import PlacementWatch
from services.router.core.shared_memory import Owner
from services.router.memory.lent import MARK, LentMemory, lend
from services.router.memory.regions import SharedMemory
from services.router.servers.answers import InferReply, TritonError
from services.router.telemetry.statistics import Statistics
from services.router.unary.forward import Forwarder
from services.router.unary.inference import Request, Requests


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
        self._running: set[asyncio.Task[InferReply]] = set()

    def lend(self, message: bytes, caller: Caller) -> LentMemory | None:
        if MARK not in message:
            return None
        return lend(self._shared, message, Owner(caller.tenant, caller.subject))

    async def answer(self, request: Request) -> InferReply:
        """Raises RegionNotFound and RegionBounds too."""
        memory = self.lend(request.message, request.caller)
        if memory is None:
            return await super().answer(request)
        request = request._replace(message=memory.message, stream=None)
        work = asyncio.create_task(self._answer(request, memory))
        self._running.add(work)
        work.add_done_callback(self._done)
        return await asyncio.shield(work)

    async def _answer(self, request: Request, memory: LentMemory) -> InferReply:
        """Also when the caller has gone."""
        try:
            try:
                answer = await super().answer(request)
            except TritonError as error:
                told = error.error
                refused = told.code() is grpc.StatusCode.NOT_FOUND
                if not (refused and memory.forgotten(told.details() or "")):
                    raise
                await memory.map_again()
                answer = await super().answer(request)
        except TritonError as error:
            raise _renamed(error, memory) from error
        finally:
            memory.release()
        return answer._replace(message=memory.answer(answer.message))

    def _done(self, work: "asyncio.Task[InferReply]") -> None:
        self._running.discard(work)
        if not work.cancelled():
            work.exception()  # its caller has heard of it, or is gone


def _renamed(error: TritonError, memory: LentMemory) -> TritonError:
    told = error.error
    text = memory.renamed(told.details() or "")
    again = grpc.aio.AioRpcError(
        told.code(), told.initial_metadata(), told.trailing_metadata(), details=text
    )
    return TritonError(again, cold=error.cold)
