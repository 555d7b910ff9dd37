"""One inference request, however it came in: what it means, when and by whom it is answered, what
is counted."""

import asyncio
import random
import time
import zlib
from typing import NamedTuple

import grpc

from services.common import telemetry
from services.common.caller import Caller
from services.common.errors import MalformedMessage
from services.common.rpc import HEADER_BYTES
from services.common.tasks import TaskScope
from services.router.admission.admission import Admission, Ticket
from services.router.admission.memory import Holding, hold
from services.router.control.answers import Rejected
from services.router.control.model_info import ModelInfo
from services.router.control.placement_watch import PlacementWatch
from services.router.core.admission.priority import HEADER
from services.router.core.errors import MessageTooLarge, MetadataTooLarge, ServerLost
from services.router.core.routing.metadata import EXPLAIN, Pairs, Said, read
from services.router.core.routing.routes import Target, why
from services.router.core.routing.sequences import draw
from services.router.core.wire import request as wire
from services.router.core.wire.reply import amended
from services.router.servers.answers import InferReply, TritonError
from services.router.servers.turns import PlainStream
from services.router.telemetry import tracing
from services.router.telemetry.statistics import Statistics
from services.router.unary import classification as classes
from services.router.unary.decompression import unpacked
from services.router.unary.forward import Forwarder
from services.router.unary.lending import Lender, Lending
from shoal.protobuf import Malformed


class Request(NamedTuple):
    """`message`: a serialized ModelInferRequest. `said`: by the caller's metadata. `deadline`:
    seconds of the monotonic clock, None for none. `head`: of a message that was let in and counted
    already. `stream`: it may go to a server by; then the reply may be `streamed`."""

    message: bytes
    said: Said
    deadline: float | None
    caller: Caller
    head: wire.Head | None = None
    stream: PlainStream | None = None


class UnaryInference:
    """Answers inference requests, each by itself.

    `max_message` bounds the bytes of one request, and `max_metadata` those of a call's metadata,
    counted as HTTP/2 does. `admission` is that of all that is sent, whoever sends it. `lender` is
    None where there is no shared memory."""

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

    def said(self, metadata: Pairs) -> Said:
        """What a call's metadata says, as it came.

        gRPC bounds it only once the client has heard of the bound, and HTTP otherwise. A Triton
        that is sent too much refuses other callers' requests on the same connection with it (seen
        on release 24.10). Raises MetadataTooLarge."""
        said = read(metadata)
        if said.size > self._max_metadata:
            raise MetadataTooLarge(size=said.size, limit=self._max_metadata)
        return said

    async def unpacked(self, message: bytes) -> bytes:
        """A request that came compressed. Raises MalformedMessage, MessageTooLarge, MemoryTaken."""
        holding = Holding(self.admission.held)
        try:
            holding.grow(len(message))
            return await unpacked(message, self._max_message, holding)
        except zlib.error as error:
            raise malformed(f"it cannot be decompressed: {error}") from error
        finally:
            holding.release()

    def lend(self, message: bytes, caller: Caller) -> Lending | None:
        """Return the caller's memory for a request that goes another way than `answer`; None where
        no tensor lies in any. Raises RegionNotFound, RegionBounds, NotProxied."""
        return None if self._lender is None else self._lender.lend(message, caller)

    async def answer(self, request: Request) -> InferReply:
        """Answer one request, whatever it takes.

        Raises TritonError and Rejected with another service's own status, else ShoalError."""
        if self._lender is not None:
            memory = self._lender.lend(request.message, request.caller)
            if memory is not None:
                # Servers write to the memory whether or not the caller waits.
                work = self._with_memory.start(self._lent(request, memory), awaited=True)
                return await asyncio.shield(work)
        return await self._answer(request)

    async def _lent(self, request: Request, memory: Lending) -> InferReply:
        """Answer a request whose tensors lie in the caller's memory, also when that has gone."""
        request = request._replace(message=memory.message, stream=None)
        try:
            try:
                answer = await self._answer(request)
            except TritonError as error:
                told = error.error
                refused = told.code() is grpc.StatusCode.NOT_FOUND
                if not (refused and memory.forgotten(told.details() or "")):
                    raise
                await memory.map_again()
                answer = await self._answer(request)
        except TritonError as error:
            raise _renamed(error, memory) from error
        finally:
            memory.release()
        return answer._replace(message=memory.answer(answer.message))

    async def _answer(self, request: Request) -> InferReply:
        began = time.monotonic()
        message, said, deadline, caller, head, stream = request
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
                held = hold(admission.held, size)
                head = wire.head(message)
            model, version, request_id, sequence, priority, asks_classes = head
            table = self._watch.table
            target, tail, retry, renamed = table.way(
                model,
                version,
                draw(sequence, random.random()),
            )
            if asks_classes:
                await self.check_classes(message, target)
            entered = admission.enter(
                caller.tenant,
                target,
                said=said.own.get(HEADER),
                parameter=priority,
                deadline=deadline,
                size=size,
                begun=sequence is not None and not sequence.start,
            )
            if entered.turn is not None:
                await admission.turn(entered)
            ticket = entered
            reply = await self._forwarder.infer(
                target,
                message + tail,
                said.onward,
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
            if EXPLAIN in said.own:
                told = self._explained(head, target, reply)
                reply = reply._replace(trailing=told)
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
                admission.held.give(held)
            if ticket is not None:
                admission.leave(ticket, answered=not (failed or cold), abandoned=abandoned)
            if target is not None:
                self._statistics.add(target, time.monotonic() - began, failed=failed, cold=cold)
                if self._tracing:
                    tracing.describe(target, request_id, cold=cold)

    def _explained(self, head: wire.Head, target: Target, reply: InferReply) -> Pairs:
        """What a caller who asks for it is told of the way that the request took."""
        return (
            ("x-shoal-model", target.model),
            ("x-shoal-version", str(target.version)),
            ("x-shoal-server", reply.server),
            ("x-shoal-cold", str(reply.cold).lower()),
            ("x-shoal-why", why(self._watch.table.routes, head.model, head.version, target)),
        )

    async def check_classes(self, message: bytes, target: Target) -> None:
        """Of a request that may ask for classes. Raises NoClasses, Malformed, and Rejected or
        ShoalError where the Controller does not say what `target` has."""
        digest = self._watch.table.digest(target)
        classes.check(message, await self._info.config(target, digest))


def _renamed(error: TritonError, memory: Lending) -> TritonError:
    told = error.error
    text = memory.renamed(told.details() or "")
    again = grpc.aio.AioRpcError(
        told.code(), told.initial_metadata(), told.trailing_metadata(), details=text
    )
    return TritonError(again, cold=error.cold)


def malformed(problem: object) -> MalformedMessage:
    return MalformedMessage(message_type="inference.ModelInferRequest", problem=problem)
