"""Forwards one request to a Triton, by way of the Controller if it is cold."""

import asyncio
import random
import time
from typing import Any, Final, NamedTuple

import grpc
from opentelemetry import trace

from services.common import telemetry
from services.router.control.placement_watch import PlacementWatch
from services.router.control.residents import ResidencyClient
from services.router.core.admission.rate import RetryBudget
from services.router.core.attempts import FIRST, Action, Attempts, Miss, Progress, next_step
from services.router.core.routing.metadata import Pairs
from services.router.core.routing.routes import Replica, Target
from services.router.core.routing.sequences import ends_sequence, home_server
from services.router.core.wire.request import Sequence
from services.router.core.wire.verdict import Verdict, called_model, verdict
from services.router.servers.answers import InferReply, TritonError, server_lost
from services.router.servers.call_metadata import shared_metadata
from services.router.servers.cancellation import Cancellations
from services.router.servers.channels import ServerChannels
from services.router.servers.connection import Connections
from services.router.servers.lockstep import LockstepRequest, LockstepStream
from services.router.servers.repeats import Repeats

_OK: Final = grpc.StatusCode.OK

MODEL_INFER: Final = "/inference.GRPCInferenceService/ModelInfer"

_tracer = trace.get_tracer("shoal.router")


class SentRequest(NamedTuple):
    """A request that was sent. `call` is a running ModelInfer, or a LockstepRequest."""

    replica: Replica
    address: str
    call: Any
    span: trace.Span


class Forwarder:
    """Forwards requests to the servers.

    Streams use its `pick`, `repeats` and `budget` as well. `hedge_after` is the number of seconds
    after which a request is also sent to a second replica, or None for never."""

    def __init__(
        self,
        watch: PlacementWatch,
        controller: ResidencyClient,
        channels: ServerChannels,
        cancellations: Cancellations,
        *,
        hedge_after: float | None = None,
    ) -> None:
        self._watch = watch
        self._controller = controller
        self._channels = channels
        self._cancellations = cancellations
        self._hedge_after = hedge_after
        self._tracing = telemetry.enabled()
        self._connections = Connections()
        #: Stubs by address.
        self._methods: dict[str, Any] = {}
        #: Calls for which nobody waits any more.
        self._detached: set[Any] = set()
        self.repeats = Repeats()
        self.budget = RetryBudget()

    async def close(self) -> None:
        await self._connections.close()

    async def infer(
        self,
        target: Target,
        message: bytes,
        metadata: Pairs,
        deadline: float | None,
        *,
        retry: bool,
        sequence: Sequence | None = None,
        stream: LockstepStream | None = None,
    ) -> InferReply:
        """Have `target` answer `message`, wherever it is or will be. Requests of a `sequence` go
        where that began.

        `deadline` is in seconds of the monotonic clock, or None. `retry` says that the request may
        be sent again if a server breaks off with it, or hedged; never within a sequence. `stream`
        may carry the first attempt. Raises TritonError, ServerLost, and what the Controller refuses
        (Rejected, ShoalError)."""
        self.budget.requests.add(time.monotonic())
        if sequence is not None and sequence.start:
            self._controller.require_lease(target)
        attempts = FIRST[retry and sequence is None]
        cold = begun = False
        while True:
            replica = None if attempts.asks else self.pick(target, sequence)
            if replica is not None:
                address = self._watch.table.addresses[replica.server]
                call, span = self._send(replica, address, message, metadata, stream)
                if self._hedge_after is not None and attempts.repeatable:
                    sent = SentRequest(replica, address, call, span)
                    replica, address, call, span = await self._first_to_end(sent, message, metadata)
            else:
                cold = True
                granted = await self._send_cold(target, message, metadata, deadline, attempts)
                if granted is None:
                    attempts = attempts.withdrawn()
                    continue
                replica, address, call, span = granted
            if sequence is not None:
                begun = self._watch.sequences.begun(target, sequence)
                self._watch.tie(sequence.id, replica)
            try:
                code = await call.code()
            except BaseException:
                self._detach(SentRequest(replica, address, call, span))
                raise
            finally:
                if attempts.lost_on is not None:
                    self.repeats.end(replica)
            refused = code is not _OK
            if sequence is not None and ends_sequence(sequence, begun=begun, failed=refused):
                self._watch.sequences.end(target, sequence.id)
            self._watch.in_use.end(replica)
            if span is not trace.INVALID_SPAN:
                span.end()
            if not refused:
                if isinstance(call, LockstepRequest):
                    return InferReply(call.message, cold, replica.server, streamed=True)
                return InferReply(await call, cold, replica.server)
            text = await call.details() or ""
            own = await self._connections.from_server(self._channels.to(address), code.name, text)
            meaning = verdict(code.name, text, from_server=own)
            called = called_model(text) if meaning is Verdict.NEEDS_PART else ""
            step = next_step(
                meaning,
                Progress.NONE,
                replica,
                attempts,
                deadline=deadline,
                now=time.monotonic(),
                chance=random.random(),
                budget=self.budget,
                called=called,
            )
            if step.loss is not None:
                self._watch.report_loss(step.loss)
            if step.action is Action.ANSWER:
                if called:
                    self._controller.report_call(target, Miss(replica.server, False, called))
                raise TritonError(await _error_of(call), cold=cold)
            if step.attempts is None:
                raise server_lost(replica, text)
            attempts = step.attempts
            await asyncio.sleep(step.pause)

    def pick(self, target: Target, sequence: Sequence | None) -> Replica | None:
        """Return the replica that the sequence is tied to or at home on. Without a sequence, return
        the one of two drawn replicas that has fewer requests in flight."""
        table = self._watch.table
        if sequence is not None and not sequence.start:
            tied = self._watch.sequences.replica(target, sequence.id)
            # This may be a withdrawn one: it is not unloaded until its sequences have ended.
            if tied is not None and tied.server in table.addresses:
                return tied
        replicas = table.ready.get(target)
        if replicas is None:
            return None
        if len(replicas) == 1:
            return replicas[0]
        if sequence is not None:
            return Replica(home_server(table.servers(target), sequence.id), target)
        a, b = random.sample(replicas, 2)
        count = self._watch.in_use.count
        return a if count(a) <= count(b) else b

    async def _send_cold(
        self,
        target: Target,
        message: bytes,
        metadata: Pairs,
        deadline: float | None,
        attempts: Attempts,
    ) -> SentRequest | None:
        """Send the request where the Controller says. Returns None if that replica has been
        withdrawn since."""
        grant = await self._controller.make_resident(target, deadline, attempts.missed)
        repeat = attempts.lost_on is not None
        if repeat:
            await self.repeats.begin(grant.replica, deadline)
        if self._watch.table.outdated(grant.replica, grant.revision):
            if repeat:
                self.repeats.end(grant.replica)
            return None
        call, span = self._send(grant.replica, grant.address, message, metadata)
        if grant.use_lease:
            self._watch.started(grant.replica, grant.use_lease)
        return SentRequest(grant.replica, grant.address, call, span)

    async def _first_to_end(
        self, sent: SentRequest, message: bytes, metadata: Pairs
    ) -> SentRequest:
        """Return the call that ends first: `sent`, or the same request at another replica, to which
        it is sent if this takes long. Nobody waits for the other one."""
        waits = {asyncio.ensure_future(sent.call.code()): sent}
        try:
            done, _ = await asyncio.wait(waits, timeout=self._hedge_after)
            if not done and (other := self._hedge(sent.replica, message, metadata)) is not None:
                waits[asyncio.ensure_future(other.call.code())] = other
            if not done:
                done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            first = waits.pop(done.pop())
        finally:
            for wait, unheard in waits.items():
                wait.cancel()
                self._detach(unheard)
        return first

    def _hedge(self, replica: Replica, message: bytes, metadata: Pairs) -> SentRequest | None:
        """Send the request to the replica with the least in flight other than `replica`. Returns
        None if there is no other, or the budget is spent."""
        table, in_use = self._watch.table, self._watch.in_use
        others = [one for one in table.ready.get(replica.target, ()) if one != replica]
        if not others or not self.budget.hedge(time.monotonic()):
            return None
        other = min(others, key=in_use.count)
        address = table.addresses[other.server]
        return SentRequest(other, address, *self._send(other, address, message, metadata))

    def _send(
        self,
        replica: Replica,
        address: str,
        message: bytes,
        metadata: Pairs,
        stream: LockstepStream | None = None,
    ) -> tuple[Any, trace.Span]:
        """Start a call, which counts as in flight until it has ended."""
        method = self._methods.get(address)
        if method is None:
            method = self._open_method(address)
        span: trace.Span = trace.INVALID_SPAN
        call: Any = None
        if self._tracing and trace.get_current_span().is_recording():
            span = _tracer.start_span(
                "forward",
                kind=trace.SpanKind.CLIENT,
                attributes={"shoal.server": replica.server, "server.address": address},
            )
            call = method(message, metadata=(*metadata, *telemetry.propagation(span)))
        elif stream is not None:  # traced requests have calls of their own
            call = stream.send(replica, self._channels.to(address), message, metadata)
        if call is None:
            call = method(message, metadata=shared_metadata(metadata))
        self._watch.in_use.begin(replica)
        return call, span

    def _detach(self, sent: SentRequest) -> None:
        """Leave a call for which nobody waits any more. If its server does not bear cancellation,
        it runs to its end there, and counts as in flight until then."""
        # gRPC cancels a call that nobody refers to. The callback creates a reference cycle, which
        # keeps the messages until the garbage collector runs, so not every call gets one.
        self._detached.add(sent.call)

        def ended(_: Any) -> None:
            self._detached.discard(sent.call)
            self._watch.in_use.end(sent.replica)
            sent.span.end()

        sent.call.add_done_callback(ended)
        self._cancellations.cancel(sent.address, sent.call)

    def _open_method(self, address: str) -> Any:
        method = self._methods[address] = self._channels.to(address).unary_unary(MODEL_INFER)
        return method


async def _error_of(call: Any) -> grpc.aio.AioRpcError:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error
    raise AssertionError("a failed call gave an answer")
