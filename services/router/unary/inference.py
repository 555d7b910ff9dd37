"""One inference request, however it came in: what it means, when and by whom it is answered, what
is counted."""

import asyncio
import random
import time
import zlib
from typing import NamedTuple

from services.common import telemetry
from services.common.caller import Caller
from services.common.errors import MalformedMessage
from services.common.rpc import HEADER_BYTES
from services.router.admission.admission import Admission, Ticket
from services.router.admission.memory import Holding, hold
from services.router.control.model_info import ModelInfo
from services.router.control.placement_watch import PlacementWatch
from services.router.control.residents import Rejected
from services.router.core.admission.priority import HEADER
from services.router.core.errors import MessageTooLarge, MetadataTooLarge, ServerLost
from services.router.core.routing.metadata import EXPLAIN, Pairs, Said, read
from services.router.core.routing.routes import Target, why
from services.router.core.routing.sequences import draw
from services.router.core.wire import request as wire
from services.router.core.wire.reply import amended
from services.router.servers.turns import PlainStream
from services.router.telemetry import tracing
from services.router.telemetry.statistics import Statistics
from services.router.unary import classification as classes
from services.router.unary.decompression import unpacked
from services.router.unary.forward import Forwarder, Reply, TritonError
from services.router.unary.lending import Lending
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


class Requests:
    """`max_message`: bytes of one request; `max_metadata`: of a call's, counted as HTTP/2 does.
    `admission`: of all that is sent, whoever sends it."""

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
    ) -> None:
        self._watch = watch
        self._forwarder = forwarder
        self._info = info
        self.admission = admission
        self._statistics = statistics
        self._max_message = max_message
        self._max_metadata = max_metadata
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
        """What holds the caller's memory for a request that goes another way than `answer`; None
        where no tensor lies in any. Raises RegionNotFound, RegionBounds, NotProxied."""
        return None

    async def answer(self, request: Request) -> Reply:
        """Raises TritonError and Rejected with another service's own status, else ShoalError."""
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

    def _explained(self, head: wire.Head, target: Target, reply: Reply) -> Pairs:
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


def malformed(problem: object) -> MalformedMessage:
    return MalformedMessage(message_type="inference.ModelInferRequest", problem=problem)
