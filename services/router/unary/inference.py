"""One inference request, whichever way it came in: resolved, admitted, forwarded and counted."""

import asyncio
import random
import time
import zlib
from collections.abc import Awaitable
from typing import NamedTuple

import grpc

from services.common import telemetry
from services.common.caller import Caller
from services.common.errors import MalformedMessage
from services.common.rpc import HEADER_BYTES
from services.common.tasks import TaskScope
from services.router.admission.admission import Admission, Ticket
from services.router.admission.memory import Reservation, reserve
from services.router.control.answers import Rejected
from services.router.control.model_info import ModelInfo
from services.router.control.placement_watch import PlacementWatch
from services.router.core.admission.priority import HEADER
from services.router.core.errors import (
    ControllerUnavailable,
    MessageTooLarge,
    MetadataTooLarge,
    ServerLost,
    TextSequenceId,
)
from services.router.core.routing.metadata import EXPLAIN, CallerMetadata, Pairs, read_metadata
from services.router.core.routing.routes import Target, why
from services.router.core.routing.sequences import SequenceIds, policy_draw
from services.router.core.wire import request as wire
from services.router.core.wire.reply import amended
from services.router.servers.answers import InferReply, TritonError
from services.router.servers.lockstep import LockstepStream
from services.router.telemetry import tracing
from services.router.telemetry.statistics import Statistics
from services.router.unary import classification as classes
from services.router.unary.decompression import decompressed
from services.router.unary.forward import Forwarder
from services.router.unary.lending import Lender, Lending
from shoal.protobuf import Malformed


class Request(NamedTuple):
    """An inference request."""

    #: A serialized ModelInferRequest.
    message: bytes
    metadata: CallerMetadata
    #: Seconds of the monotonic clock, or None.
    deadline: float | None
    caller: Caller
    #: The head of a message that holds its memory already.
    head: wire.Head | None = None
    #: May carry the request to a server; the reply may then be `streamed`.
    stream: LockstepStream | None = None


class UnaryInference:
    """Answers inference requests, each by itself.

    `max_message` bounds the bytes of one request, and `max_metadata` those of a call's metadata,
    counted as HTTP/2 does. `admission` is shared with everybody who sends requests. `lender` is
    None if shared memory is switched off."""

    def __init__(
        self,
        watch: PlacementWatch,
        forwarder: Forwarder,
        statistics: Statistics,
        info: ModelInfo,
        admission: Admission,
        *,
        max_message: int,
        max_metadata: int = HEADER_BYTES,
        lender: Lender | None = None,
    ) -> None:
        self._watch = watch
        self._forwarder = forwarder
        self._info = info
        self.admission = admission
        self._statistics = statistics
        self._max_message = max_message
        self._max_metadata = max_metadata
        self._lender = lender
        self._with_memory = TaskScope("requests with shared memory")
        self._tracing = telemetry.enabled()

    def checked_metadata(self, pairs: Pairs) -> CallerMetadata:
        """Read a call's metadata, as it came. Raises MetadataTooLarge.

        gRPC enforces its bound only once the client has heard of it, and HTTP has another. A Triton
        that receives too much also refuses other callers' requests on the same connection (seen on
        release 24.10)."""
        metadata = read_metadata(pairs)
        if metadata.size > self._max_metadata:
            raise MetadataTooLarge(size=metadata.size, limit=self._max_metadata)
        return metadata

    async def decompressed(self, message: bytes) -> bytes:
        """Return a request that came compressed. Raises MalformedMessage, MessageTooLarge,
        MemoryTaken."""
        reservation = Reservation(self.admission.memory_budget)
        try:
            reservation.grow(len(message))
            return await decompressed(message, self._max_message, reservation)
        except zlib.error as error:
            raise malformed(f"it cannot be decompressed: {error}") from error
        finally:
            reservation.release()

    async def close(self) -> None:
        """Cancel what runs on without its caller."""
        await self._with_memory.close()

    def lend(self, message: bytes, caller: Caller) -> Lending | None:
        """Return the caller's memory for a request that is not sent by `answer`; None if none of
        its tensors lies there. Raises RegionNotFound, RegionBounds, NotProxied."""
        return None if self._lender is None else self._lender.lend(message, caller)

    def answer(self, request: Request) -> Awaitable[InferReply]:
        """Answer one request, whatever it takes.

        Raises TritonError and Rejected with another service's own status, otherwise ShoalError.
        Not a coroutine of its own, because every request passes through it."""
        memory = self.lend(request.message, request.caller)
        if memory is None:
            return self._answer(request)
        # Servers write to the memory even if the caller stops waiting.
        work = self._with_memory.start(self._answer_with_memory(request, memory), awaited=True)
        return asyncio.shield(work)

    async def _answer_with_memory(self, request: Request, memory: Lending) -> InferReply:
        """Answer a request whose tensors lie in the caller's memory, even if the caller is gone."""
        request = request._replace(message=memory.message, stream=None)
        try:
            try:
                answer = await self._answer(request)
            except TritonError as error:
                status = error.error
                refused = status.code() is grpc.StatusCode.NOT_FOUND
                if not (refused and memory.note_refusal(status.details() or "")):
                    raise
                await memory.map_again()
                answer = await self._answer(request)
        except TritonError as error:
            raise _renamed(error, memory) from error
        finally:
            memory.release()
        return answer._replace(message=memory.restore_answer(answer.message))

    async def _answer(self, request: Request) -> InferReply:
        began = time.monotonic()
        message, metadata, deadline, caller, head, stream = request
        size = len(message)
        admission = self.admission
        target: Target | None = None
        ticket: Ticket | None = None
        request_id = ""
        held = 0
        failed, cold, abandoned = True, False, False
        try:
            if size > self._max_message:
                raise MessageTooLarge(size=size, limit=self._max_message)
            if head is None:
                held = reserve(admission.memory_budget, size)
                head = wire.head(message)
            model, version, request_id, sequence, priority, asks_classes = head
            table = self._watch.table
            target, tail, retry, renamed = table.resolve(
                model,
                version,
                policy_draw(sequence, random.random()),
            )
            if asks_classes:
                await self.check_classes(message, target)
            if sequence is not None:
                sequence = await self.checked_sequence(sequence, target)
            entered = admission.enter(
                caller.tenant,
                target,
                priority_header=metadata.shoal.get(HEADER),
                priority_parameter=priority,
                deadline=deadline,
                size=size,
                continues=sequence is not None and not sequence.start,
            )
            if entered.turn is not None:
                await admission.wait_turn(entered)
            ticket = entered
            reply = await self._forwarder.infer(
                target,
                message + tail,
                metadata.onward,
                deadline,
                retry=retry,
                sequence=sequence,
                stream=None if asks_classes else stream,
            )
            failed, cold = False, reply.cold
            if reply.streamed:
                self._statistics.streamed += 1
            if renamed:
                mended = amended if reply.streamed else wire.overridden
                reply = reply._replace(message=mended(reply.message, model, None))
            if EXPLAIN in metadata.shoal:
                status = self._explained(head, target, reply)
                reply = reply._replace(trailing=status)
            return reply
        except TritonError as error:
            cold = error.cold
            raise
        except (Rejected, ServerLost):
            cold = True
            raise
        except Malformed as error:
            raise malformed(error) from error
        except asyncio.CancelledError:
            abandoned = True
            raise
        finally:
            if held:
                admission.memory_budget.give(held)
            if ticket is not None:
                admission.leave(ticket, answered=not (failed or cold), abandoned=abandoned)
            if target is not None:
                self._statistics.add(target, time.monotonic() - began, failed=failed, cold=cold)
                if self._tracing:
                    tracing.describe(target, request_id, cold=cold)

    def _explained(self, head: wire.Head, target: Target, reply: InferReply) -> Pairs:
        """Return the trailers for a caller who asks how the request was routed."""
        return (
            ("x-shoal-model", target.model),
            ("x-shoal-version", str(target.version)),
            ("x-shoal-server", reply.server),
            ("x-shoal-cold", str(reply.cold).lower()),
            ("x-shoal-why", why(self._watch.table.routes, head.model, head.version, target)),
        )

    async def check_classes(self, message: bytes, target: Target) -> None:
        """Check a request that may ask for classes. Raises NoClasses, Malformed, and Rejected or
        ShoalError if the Controller does not give the config of `target`."""
        identity = self._watch.table.identity(target)
        classes.check(message, await self._info.config(target, identity))

    async def checked_sequence(
        self, sequence: wire.Sequence, target: Target
    ) -> wire.Sequence | None:
        """Return the sequence that a request belongs to, or None if the model has no sequences and
        will ignore it.

        Raises TextSequenceId, and for ids that are texts also what `check_classes` raises. A number
        does no harm, so it need not wait for the Controller."""
        text = isinstance(sequence.id, str)
        try:
            ids = await self._info.sequence_ids(target, self._watch.table.routes)
        except (Rejected, ControllerUnavailable):
            if text:
                raise
            return sequence
        if text and ids is SequenceIds.NUMBERS:
            raise TextSequenceId(model=target.model)
        return None if ids is SequenceIds.IGNORED else sequence


def _renamed(error: TritonError, memory: Lending) -> TritonError:
    status = error.error
    text = memory.restore_names(status.details() or "")
    again = grpc.aio.AioRpcError(
        status.code(), status.initial_metadata(), status.trailing_metadata(), details=text
    )
    return TritonError(again, cold=error.cold)


def malformed(problem: object) -> MalformedMessage:
    return MalformedMessage(message_type="inference.ModelInferRequest", problem=problem)
