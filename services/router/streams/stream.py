"""A client's stream of inference requests, to any number of models."""

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final

from opentelemetry import trace
from opentelemetry.context import Context

from services.common import telemetry
from services.common.caller import Caller
from services.common.errors import ShoalError
from services.common.packed import PACKED
from services.common.tasks import TaskScope
from services.router.admission.memory import reserve
from services.router.control.answers import Rejected
from services.router.control.placement_watch import PlacementWatch
from services.router.core.admission.priority import HEADER
from services.router.core.attempts import FIRST
from services.router.core.errors import MessageTooLarge
from services.router.core.routing.metadata import CallerMetadata, Pairs
from services.router.core.routing.routes import Target
from services.router.core.routing.sequences import policy_draw
from services.router.core.wire import request as wire
from services.router.core.wire.reply import (
    ReplyOrder,
    as_stream_reply,
    failure,
    parse_reply,
    refusal,
    split,
)
from services.router.core.wire.verdict import is_decoupled, was_begun
from services.router.servers.answers import TritonError
from services.router.servers.lockstep import MODEL_STREAM_INFER, LockstepStream
from services.router.streams.call import StreamCalls
from services.router.streams.decoupled import DecoupledRequests, Origin, error_in_stream
from services.router.streams.exchange import Exchange
from services.router.streams.replies import Replies, Write
from services.router.telemetry.statistics import Statistics
from services.router.unary.inference import Request, UnaryInference, malformed
from shoal.protobuf import Malformed

# Asks that an error of a model end the stream with its status. It is not passed on, since any
# Triton before release 26.04 may crash because of it.
STRICT: Final = ("triton_grpc_error", "true")
_TRACE: Final = ("traceparent", "tracestate")

Work = asyncio.Task[None]

_tracer = trace.get_tracer("shoal.router")


class Streams:
    """Opens clients' streams.

    `calls` are for decoupled models. `inference` answers requests to all other models, each by
    itself. A Triton that has streams to models of both kinds crashes within a thousand requests
    (seen on release 24.10, and by its source so does 26.09), because it still writes to the state
    of a request that it already uses for another. `max_message` bounds the bytes of one request."""

    def __init__(
        self,
        watch: PlacementWatch,
        calls: StreamCalls,
        inference: UnaryInference,
        statistics: Statistics,
        *,
        max_message: int,
    ) -> None:
        self.watch = watch
        self.calls = calls
        self.inference = inference
        self.statistics = statistics
        self.max_message = max_message

    def open(self, metadata: Pairs, deadline: float | None, caller: Caller) -> "Stream":
        """Open a stream. `metadata` is the caller's, unchanged. `deadline` is in seconds of the
        monotonic clock, or None. Raises MetadataTooLarge."""
        return Stream(self, self.inference.checked_metadata(metadata), deadline, caller)

    async def responses(self, request: Request) -> AsyncGenerator[bytes, None]:
        """Yield serialized ModelInferResponses to one request: none or any number.

        Raises TritonError and Rejected with another service's own status, otherwise ShoalError."""
        stream = Stream(self, request.metadata, request.deadline, request.caller, raising=True)
        replies: asyncio.Queue[bytes] = asyncio.Queue(maxsize=1)
        running = asyncio.create_task(stream.run(_only(request.message), replies.put))
        try:
            while True:
                getting = asyncio.ensure_future(replies.get())
                await asyncio.wait((getting, running), return_when=asyncio.FIRST_COMPLETED)
                if running.done() and replies.empty() and not getting.done():
                    getting.cancel()
                    break
                yield _response(await getting)
            await running
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


class Stream:
    """One client's stream, whatever protocol it uses. `raising` says that any refusal ends it."""

    def __init__(
        self,
        streams: Streams,
        metadata: CallerMetadata,
        deadline: float | None,
        caller: Caller,
        *,
        raising: bool = False,
    ) -> None:
        strict = STRICT in metadata.pairs
        onward = tuple(item for item in metadata.onward if item[0] != STRICT[0])
        self._streams = streams
        self._metadata = metadata._replace(onward=onward)
        self._caller = caller
        self._raising = raising
        self._parent: Context | None = None
        self._traced: bool | None = False  # None: decided for each request
        if telemetry.enabled():
            self._parent = telemetry.parent_context(metadata.pairs)
            self._traced = None if self._parent is None else telemetry.sampled(self._parent)
        if self._traced:
            onward = (*onward, *(item for item in metadata.pairs if item[0] in _TRACE))
        self._origin = Origin(onward, deadline, strict, {})
        admission = streams.inference.admission
        self._replies = Replies(streams.statistics, admission, strict=strict, raising=raising)
        # Errors in a stream have no code, but these streams end with one.
        self._lockstep = None if strict or raising else LockstepStream(streams.calls.lockstep)
        self._decoupled: dict[Target, DecoupledRequests] = {}
        self._orders: dict[tuple[str, str], ReplyOrder[Exchange]] = {}
        self._sequences: dict[tuple[str, int | str], Work] = {}
        self._tasks = TaskScope("a client's stream")
        self._serial = 0

    async def run(self, requests: AsyncIterator[bytes], write: Write) -> None:
        """Answer serialized ModelInferRequests with serialized ModelStreamInferResponses until
        there are no more requests and all replies are written.

        Raises the error that ends the stream for clients that ask for that (TritonError,
        ServerLost). A cancellation means that the client is gone: what is under way finishes
        without it."""
        self._tasks.start(self._read(requests))
        try:
            await self._replies.write(write)
        finally:
            self._tasks.cancel()
            self._replies.abandon()
            for sent in self._decoupled.values():
                sent.abandon()
            for call in self._origin.calls:
                call.abandon()
            if self._lockstep is not None:
                self._lockstep.abandon()

    async def _read(self, requests: AsyncIterator[bytes]) -> None:
        try:
            async for message in requests:
                if message[:1] in PACKED:
                    await self._decompress(message)
                else:
                    self._accept(message)
                if self._replies.full():
                    await self._replies.until_space()
            self._replies.complete()
        except Exception as error:
            self._replies.fail(error)

    async def _decompress(self, message: bytes) -> None:
        refused = None
        try:
            message = await self._streams.inference.decompressed(message)
        except ShoalError as error:
            refused = error
        self._accept(message, refused)

    def _accept(self, message: bytes, refused: ShoalError | None = None) -> None:
        self._serial += 1
        exchange = Exchange(self._serial, message)
        self._replies.begin(exchange)
        streams = self._streams
        try:
            if refused is not None:
                raise refused
            if len(message) > streams.max_message:
                raise MessageTooLarge(size=len(message), limit=streams.max_message)
            exchange.held = reserve(streams.inference.admission.memory_budget, len(message))
            head = wire.head(message)
            exchange.model, exchange.version, exchange.id = head.model, head.version, head.id
            sequence = exchange.sequence = head.sequence
            table = streams.watch.table
            target, _, retry, _ = table.resolve(
                head.model, head.version, policy_draw(sequence, random.random())
            )
            exchange.attempts = FIRST[retry]
        except Malformed as error:
            self._refuse(exchange, malformed(error))
            return
        except ShoalError as error:
            self._refuse(exchange, error)
            return
        if self._traced is not False:
            self._trace(exchange, target)
        decoupled = streams.calls.decoupled(target)
        if not decoupled:
            drawn = not head.version and table.routes[head.model].arms
            self._keep_order(exchange, (head.model, "" if drawn else str(target.version)))
        before = None
        if sequence is not None:
            before = self._sequences.get((head.model, sequence.id))
        work = self._tasks.start(self._answer(exchange, target, head, decoupled, before))
        if sequence is not None:
            self._follow_sequence((head.model, sequence.id), work)

    async def _answer(
        self,
        exchange: Exchange,
        target: Target,
        head: wire.Head,
        decoupled: bool | None,
        before: Work | None,
    ) -> None:
        """Answer a request. `before` is the work on the previous request of its sequence."""
        try:
            if before is not None:
                await asyncio.wait((before,))
            if decoupled or not await self._answer_one(exchange, head):
                await self._answer_many(exchange, target, head)
        except Exception as error:
            self._replies.fail(error)

    async def _answer_one(self, exchange: Exchange, head: wire.Head) -> bool:
        """Answer a request with one reply. Returns False if there may be several."""
        assert exchange.message is not None
        message, deadline = exchange.message, self._origin.deadline
        request = Request(message, self._metadata, deadline, self._caller, head, self._lockstep)
        span, inference = exchange.span, self._streams.inference
        try:
            if span is trace.INVALID_SPAN:
                answer = await inference.answer(request)
            else:
                with trace.use_span(span, record_exception=False, set_status_on_exception=False):
                    answer = await inference.answer(request)
        except TritonError as failed:
            text = failed.error.details() or ""
            if is_decoupled(failed.error.code().name, text):
                return False
            self._answer_failed(exchange, failed, text)
        except (Rejected, ShoalError) as error:
            self._replies.refuse(exchange, error)
        else:
            message = answer.message if answer.streamed else as_stream_reply(answer.message)
            self._replies.answer(exchange, message, failed=False)
        return True

    def _answer_failed(self, exchange: Exchange, error: TritonError, text: str) -> None:
        if exchange.span.is_recording():
            exchange.span.set_status(trace.StatusCode.ERROR, text)
        if self._raising or (self._origin.strict and was_begun(text)):
            self._replies.fail(error)
            return
        if was_begun(text):
            message = failure(exchange.id, text, exchange.model, exchange.version)
        else:
            message = refusal(exchange.id, text)
        self._replies.answer(exchange, message, failed=True)

    async def _answer_many(self, exchange: Exchange, target: Target, head: wire.Head) -> None:
        """Have a request answered with any number of replies, once its turn to be sent has come."""
        streams, message = self._streams, exchange.message
        assert message is not None
        if exchange.order is not None:
            streams.calls.learn(target)
            self._replies.leave_order(exchange)
        exchange.target = target
        admission = streams.inference.admission
        try:
            if head.classes:
                await streams.inference.check_classes(message, target)
            sequence = head.sequence
            if sequence is not None:
                sequence = await streams.inference.checked_sequence(sequence, target)
                exchange.attempts = FIRST[exchange.attempts.repeatable and sequence is None]
            exchange.sequence = sequence
            exchange.wants_final = wire.asks_for_final_reply(message)
            exchange.memory = streams.inference.lend(message, self._caller)
            if exchange.memory is not None:
                exchange.message = exchange.memory.message
            ticket = admission.enter(
                self._caller.tenant,
                target,
                priority_header=self._metadata.shoal.get(HEADER),
                priority_parameter=head.priority,
                deadline=self._origin.deadline,
                size=exchange.size,
                continues=sequence is not None and not sequence.start,
            )
            if ticket.turn is not None:
                await admission.wait_turn(ticket)
            exchange.ticket = ticket
            self._decoupled_requests(target).accept(exchange)
        except Malformed as error:
            self._replies.refuse(exchange, malformed(error))
        except (Rejected, ShoalError) as error:
            self._replies.refuse(exchange, error)

    def _refuse(self, exchange: Exchange, error: ShoalError) -> None:
        named = exchange.model, exchange.version
        if named in self._orders:
            self._keep_order(exchange, named)
        self._replies.refuse(exchange, error)

    def _keep_order(self, exchange: Exchange, named: tuple[str, str]) -> None:
        """Keep the order of replies among all requests for that model and version, the version
        being "" for any that a traffic policy draws."""
        order = self._orders.get(named)
        if order is None:
            order = self._orders[named] = ReplyOrder()
        order.join(exchange)
        exchange.order = order

    def _follow_sequence(self, sequence: tuple[str, int | str], work: Work) -> None:
        def ended(_: Work) -> None:
            if self._sequences.get(sequence) is work:
                del self._sequences[sequence]

        self._sequences[sequence] = work
        work.add_done_callback(ended)

    def _decoupled_requests(self, target: Target) -> DecoupledRequests:
        requests = self._decoupled.get(target)
        if requests is None:
            requests = DecoupledRequests(target, self._streams.calls, self._replies, self._origin)
            self._decoupled[target] = requests
        return requests

    def _trace(self, exchange: Exchange, target: Target) -> None:
        """Start a span for the request if the stream's trace is sampled."""
        if self._traced or telemetry.sampled(None):
            exchange.span = _tracer.start_span(
                MODEL_STREAM_INFER.strip("/"),
                context=self._parent,
                kind=trace.SpanKind.SERVER,
                attributes={"shoal.model": target.model, "shoal.version": target.version},
            )
            if exchange.id:
                exchange.span.set_attribute("shoal.request_id", exchange.id)


async def _only(message: bytes) -> AsyncIterator[bytes]:
    yield message


def _response(message: bytes) -> bytes:
    """Return the ModelInferResponse in a reply. Raises TritonError."""
    error, rest = split(message)
    if error:
        raise error_in_stream(error, begun=parse_reply(message).final is not None)
    return rest
