"""The requests of a client's stream to one decoupled version: sent, parked and repeated."""

import asyncio
import random
import time
from typing import Final, NamedTuple

import grpc
import structlog
from opentelemetry import trace

from services.common.errors import ShoalError
from services.router.control.answers import Rejected
from services.router.control.residents import Grant
from services.router.core.attempts import Action, Miss, Progress, Step, next_step
from services.router.core.routing.metadata import Pairs
from services.router.core.routing.routes import Replica, Target
from services.router.core.routing.sequences import ends_sequence
from services.router.core.wire.reply import amended, parse_reply
from services.router.core.wire.request import overridden, overridden_in_stream
from services.router.core.wire.verdict import (
    Verdict,
    called_model,
    code_in_stream,
    verdict_in_stream,
    verdict_of_lost_stream,
)
from services.router.servers.answers import TritonError, server_lost
from services.router.streams.call import StreamCall, StreamCalls
from services.router.streams.exchange import Exchange
from services.router.streams.replies import Replies, WaitForRoom

MOST_ALIKE: Final = 8  # calls to one replica, to keep requests with the same id apart
MOST_CALLS: Final = 64  # of one stream; beyond that, idle ones are closed

_log = structlog.get_logger(__name__)


class Origin(NamedTuple):
    """What a client said when it opened its stream."""

    #: For the next hop.
    metadata: Pairs
    #: Seconds of the monotonic clock, or None.
    deadline: float | None
    #: Whether an error ends the stream.
    strict: bool
    #: The calls of the stream that have not ended, the oldest first.
    calls: dict[StreamCall, None]


class DecoupledRequests:
    """The requests of one stream to one decoupled version.

    Their ids, which are passed on unchanged, tell which reply belongs to which request, so requests
    with the same id use several calls. Requests that wait until the version is resident, or are to
    be repeated, are parked, as are all that come after them."""

    def __init__(
        self, target: Target, calls: StreamCalls, replies: Replies, origin: Origin
    ) -> None:
        self._target = target
        self._calls = calls
        self._replies = replies
        self._origin = origin
        #: Open calls by server.
        self._by_server: dict[str, list[StreamCall]] = {}
        self._granted: Grant | None = None
        self._parked: list[Exchange] = []
        self._placing: asyncio.Task[None] | None = None

    def accept(self, exchange: Exchange) -> None:
        """Send a request, or park it. Raises NoLease."""
        self._calls.budget.requests.add(time.monotonic())
        if exchange.sequence is not None and exchange.sequence.start:
            self._calls.controller.require_lease(self._target)
        if not self._parked:
            call = self._choose_call(exchange)
            if call is not None:
                self._send(call, exchange)
                return
        self._park(exchange)

    def abandon(self) -> None:
        """Stop placing parked requests, as the client is gone."""
        if self._placing is not None:
            self._placing.cancel()
        for exchange in self._parked:
            self._end_repeat(exchange)

    # --- to a replica -----------------------------------------------------------------------------

    def _choose_call(self, exchange: Exchange) -> StreamCall | None:
        """Return the call for a request, or None if there is no replica."""
        replica = self._calls.pick(self._target, exchange.sequence)
        table, granted = self._calls.watch.table, self._granted
        if replica is not None:
            return self._call_to(exchange, replica, table.addresses[replica.server])
        if granted is None or table.revision >= granted.revision:
            return None
        return self._call_to(exchange, granted.replica, granted.address)  # not in the table yet

    def _call_to(self, exchange: Exchange, replica: Replica, address: str) -> StreamCall:
        """Return a call on which no request has the same id, if possible. Requests of a sequence
        keep to one call, for their order."""
        calls = [call for call in self._by_server.get(replica.server, ()) if call.open]
        alone = (call for call in calls if not call.pending.count(exchange.id))
        call = calls[0] if calls and exchange.sequence is not None else next(alone, None)
        if call is not None:
            return call
        return calls[0] if len(calls) >= MOST_ALIKE else self._open(replica, address)

    def _open(self, replica: Replica, address: str) -> StreamCall:
        origin = self._origin
        call = self._calls.open(replica, address, origin.metadata, self)
        self._by_server.setdefault(replica.server, []).append(call)
        origin.calls[call] = None
        if len(origin.calls) > MOST_CALLS:
            idle = next((one for one in origin.calls if not one.pending), call)
            if idle is not call:
                idle.close()
        return call

    def _send(self, call: StreamCall, exchange: Exchange) -> None:
        message, target, sequence = exchange.message, self._target, exchange.sequence
        assert message is not None, "what was answered in part is not sent again"
        renamed = None if target.model == exchange.model else target.model
        if exchange.wants_final is None:
            message = overridden(message, renamed, target.version)
        else:
            message = overridden_in_stream(message, renamed, target.version)
        if sequence is not None:
            exchange.continues = self._calls.watch.sequences.begun(target, sequence)
            self._calls.watch.tie(sequence.id, call.replica)
        call.send(exchange, message)

    # --- until there is one -----------------------------------------------------------------------

    def _park(self, exchange: Exchange) -> None:
        self._parked.append(exchange)
        if len(self._parked) > 1 and exchange.serial < self._parked[-2].serial:
            self._parked.sort(key=lambda one: one.serial)
        if self._placing is None:
            self._placing = asyncio.create_task(self._place_parked())

    async def _place_parked(self) -> None:
        try:
            while True:
                await self._map_again()
                if not self._parked:
                    return
                first = self._parked[0]
                call = None if first.attempts.asks else self._choose_call(first)
                if call is not None:
                    self._send(call, self._parked.pop(0))
                else:
                    await self._pause()
                    await self._ask()
        except Exception as error:
            self._replies.fail(error)
        finally:
            self._placing = None

    async def _ask(self) -> None:
        """Have the Controller name a replica, and send the parked requests there."""
        if not self._parked:
            return
        misses = [one.attempts.missed for one in self._parked if one.attempts.missed is not None]
        try:
            span = self._parked[0].span
            with trace.use_span(span, record_exception=False, set_status_on_exception=False):
                grant = await self._calls.controller.make_resident(
                    self._target, self._origin.deadline, misses[-1] if misses else None
                )
        except (Rejected, ShoalError) as error:
            for exchange in self._unpark():
                exchange.cold = True
                self._replies.refuse(exchange, error)
            return
        for exchange in list(self._parked):
            if exchange.attempts.lost_on is not None and exchange.repeated is None:
                await self._calls.repeats.begin(grant.replica, self._origin.deadline)
                exchange.repeated = grant.replica
        if self._calls.watch.table.outdated(grant.replica, grant.revision):
            for exchange in self._parked:
                self._end_repeat(exchange)
                exchange.attempts = exchange.attempts.withdrawn()
            return
        self._send_parked(grant)

    def _send_parked(self, grant: Grant) -> None:
        """Send the parked requests to the granted replica."""
        self._granted = grant
        for exchange in self._unpark():
            exchange.cold = True
            attempts = exchange.attempts
            tied = self._choose_call(exchange) if exchange.sequence and not attempts.asks else None
            if attempts.lost_on is not None and exchange.repeated is None:
                self._park(exchange)
            else:
                self._send(tied or self._call_to(exchange, grant.replica, grant.address), exchange)
        if grant.use_lease:
            self._calls.watch.started(grant.replica, grant.use_lease)

    async def _map_again(self) -> None:
        """Map callers' memory that a server did not know."""
        unmapped = [one for one in self._parked if one.memory is not None and one.memory.unmapped]
        for exchange in unmapped:
            assert exchange.memory is not None
            try:
                await exchange.memory.map_again()
            except (Rejected, ShoalError) as error:
                self._parked.remove(exchange)
                self._replies.refuse(exchange, error)

    async def _pause(self) -> None:
        """Wait until all parked requests may be sent again."""
        until = max(exchange.again_at for exchange in self._parked)
        pause = until - time.monotonic()
        if pause > 0:
            await asyncio.sleep(pause)

    def _unpark(self) -> list[Exchange]:
        parked, self._parked = self._parked, []
        return parked

    # --- and back ---------------------------------------------------------------------------------

    def replied(self, call: StreamCall, message: bytes) -> WaitForRoom | None:
        """Take a reply that came on `call`. Raises Malformed."""
        reply = parse_reply(message)
        exchange = call.pending.oldest(reply.id)
        if exchange is None:
            self._stray(call)
            return None
        begun, failed = reply.final is not None, bool(reply.error)
        last = reply.final is not False
        memory = exchange.memory
        if memory is not None:
            alone = not begun and call.pending.count(reply.id) == 1
            if alone and memory.note_refusal(reply.error):
                self._end(call, exchange, failed=True)
                self._park(exchange)
                return None
            message = memory.restore_reply(message)
            reply = parse_reply(message)
        meaning = verdict_in_stream(reply.error, begun=begun) if failed else Verdict.ANSWER
        if last and meaning is not Verdict.ANSWER:
            certain = call.pending.count(reply.id) == 1
            called = called_model(reply.error) if meaning is Verdict.NEEDS_PART else ""
            step = self._next_step(exchange, call, meaning, certain, called)
            if step.action is not Action.ANSWER:
                self._end(call, exchange, failed=True)
                call.close()
                self._follow_step(exchange, step, call, reply.error)
                return None
            missed = Miss(call.replica.server, False, called)
            self._calls.controller.report_call(self._target, missed)
        if failed and begun and self._origin.strict:
            self._replies.fail(error_in_stream(reply.error, begun=True))
            return None
        # Triton repeats the version as it was asked for if a reply has no outputs.
        version = exchange.version if reply.bare or (failed and begun) else None
        model = exchange.model if exchange.model != self._target.model else None
        if version is not None or model is not None:
            message = amended(message, model, version)
        exchange.failed = failed = exchange.failed or failed
        if not last:
            return self._replies.pass_on(exchange, message)
        self._end(call, exchange, failed=failed)
        wanted = exchange.wants_final or not reply.bare
        return self._replies.answer(exchange, message if wanted else None, failed=failed)

    def ended(
        self, call: StreamCall, broken: list[Exchange], error: grpc.aio.AioRpcError | None
    ) -> None:
        """Take the end of `call`, which had `broken` under way when it ended with `error`, or
        without one."""
        self._origin.calls.pop(call, None)
        self._by_server[call.replica.server].remove(call)
        code = "OK" if error is None else error.code().name
        text = "it ended the stream" if error is None else error.details() or code
        meaning = verdict_of_lost_stream(code, text)
        steps = [self._next_step(exchange, call, meaning, certain=True) for exchange in broken]
        for loss in {step.loss for step in steps if step.loss is not None}:
            self._calls.watch.report_loss(loss)
        for exchange, step in zip(broken, steps, strict=True):
            self._conclude(exchange, failed=True)
            self._follow_step(exchange, step, call, text)

    def _end(self, call: StreamCall, exchange: Exchange, *, failed: bool) -> None:
        self._conclude(exchange, failed=failed)
        call.end(exchange)

    def _conclude(self, exchange: Exchange, *, failed: bool) -> None:
        self._end_repeat(exchange)
        sequence = exchange.sequence
        if sequence is not None and ends_sequence(
            sequence, begun=exchange.continues, failed=failed
        ):
            self._calls.watch.sequences.end(self._target, sequence.id)

    def _next_step(
        self,
        exchange: Exchange,
        call: StreamCall,
        verdict: Verdict,
        certain: bool,
        called: str = "",
    ) -> Step:
        """Decide what becomes of a request that came back from `call`. `certain` says that it is
        this request, and not another one with the same id."""
        progress = Progress.NONE if certain else Progress.UNCERTAIN
        return next_step(
            verdict,
            Progress.PARTLY if exchange.message is None else progress,
            call.replica,
            exchange.attempts,
            deadline=self._origin.deadline,
            now=time.monotonic(),
            chance=random.random(),
            budget=self._calls.budget,
            called=called,
        )

    def _follow_step(self, exchange: Exchange, step: Step, call: StreamCall, text: str) -> None:
        if step.attempts is None:
            self._replies.refuse(exchange, server_lost(call.replica, text))
            return
        exchange.attempts = step.attempts
        exchange.again_at = time.monotonic() + step.pause
        self._park(exchange)

    def _end_repeat(self, exchange: Exchange) -> None:
        if exchange.repeated is not None:
            self._calls.repeats.end(exchange.repeated)
            exchange.repeated = None

    def _stray(self, call: StreamCall) -> None:
        _log.warning("reply to no request", server=call.replica.server, model=self._target.model)


def error_in_stream(text: str, *, begun: bool) -> TritonError:
    """Return what a Triton said in a stream as the error that it would have given outside one."""
    nothing = grpc.aio.Metadata()
    code = grpc.StatusCode[code_in_stream(text, begun=begun)]
    return TritonError(grpc.aio.AioRpcError(code, nothing, nothing, details=text), cold=False)
