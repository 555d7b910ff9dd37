"""A call of ModelStreamInfer from the Router to a replica, for requests to decoupled models."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any, Final, Protocol

import grpc
import structlog
from opentelemetry import trace

from services.common.idle import IdleTimer
from services.common.tasks import TaskScope
from services.router.control.in_use import InUse
from services.router.control.placement_watch import PlacementWatch
from services.router.control.residents import ResidencyClient
from services.router.core.admission.rate import RetryBudget
from services.router.core.routing.metadata import Pairs
from services.router.core.routing.routes import Replica, Target
from services.router.core.wire.reply import PendingRequests, parse_reply
from services.router.core.wire.request import Sequence, probe
from services.router.servers.cancellation import Cancellations
from services.router.servers.channels import ServerChannels
from services.router.servers.lockstep import MODEL_STREAM_INFER, OPENING, LockstepCalls
from services.router.servers.repeats import Repeats
from services.router.streams.exchange import Exchange
from services.router.waiting import Wakeup
from shoal.protobuf import Malformed

PARTING_SECONDS: Final = 30.0  # for requests under way when their client has gone

CLOSING_SECONDS: Final = 2.0  # for requests under way when the Router stops
IDLE_SECONDS: Final = 30.0  # a call is closed after once to twice as long without a request

# Replies of a decoupled model are held back for ever if they come before Triton has noted that the
# refusal of the opening was written, which may be after it was read here. So probes follow, which
# Triton refuses as well, until the first of them is answered. From then on, everything is written.
OPENING_SECONDS: Final = 0.05  # until the second probe; doubles with each

Pick = Callable[[Target, Sequence | None], Replica | None]

_log = structlog.get_logger(__name__)
_tracer = trace.get_tracer("shoal.router")


class ReplyListener(Protocol):
    """Takes the replies of a call."""

    def replied(self, call: "StreamCall", message: bytes) -> Callable[[], Awaitable[None]] | None:
        """Take a reply. What this returns is called and awaited before the next reply is read.
        Raises Malformed."""

    def ended(
        self, call: "StreamCall", broken: list[Exchange], error: grpc.aio.AioRpcError | None
    ) -> None:
        """Take the end of the call. `broken` are the requests it had under way. `error` is None if
        the server ended it as if all were well."""


class StreamCall:
    """A call to a replica. Each request under way on it holds the replica; the call itself does
    not.

    `method` is a stub of ModelStreamInfer. `cancel` cancels a call to that server, if it bears
    that."""

    def __init__(
        self,
        replica: Replica,
        method: Any,
        metadata: tuple[tuple[str, str | bytes], ...],
        in_use: InUse,
        listener: ReplyListener,
        cancel: Callable[[Any], None],
    ) -> None:
        self.replica = replica
        self._cancel = cancel
        self.pending: PendingRequests[Exchange] = PendingRequests()
        self._in_use = in_use
        self._listener: ReplyListener | None = listener
        self._outgoing: deque[bytes] = deque()
        #: Messages to send once the call is open; None from then on.
        self._before_open: list[bytes] | None = []
        self._work = Wakeup()
        self._closing = False
        self._idle = IdleTimer(IDLE_SECONDS, self.close, busy=lambda: bool(self.pending))
        self._parting: asyncio.TimerHandle | None = None
        self._call: Any = method(self._requests(), metadata=metadata or None)

    @property
    def open(self) -> bool:
        """Whether more requests may be sent on it."""
        return not self._closing

    def send(self, exchange: Exchange, message: bytes) -> None:
        """Send a request."""
        if exchange.span.is_recording():
            exchange.forward = _tracer.start_span(
                "forward",
                context=trace.set_span_in_context(exchange.span),
                kind=trace.SpanKind.CLIENT,
                attributes={"shoal.server": self.replica.server},
            )
        self._idle.touch()
        self._in_use.begin(self.replica)
        if exchange.memory is not None:
            exchange.memory.retain()
        self.pending.add(exchange.id, exchange)
        if self._before_open is None:
            self._outgoing.append(message)
            self._work.wake()
        else:
            self._before_open.append(message)

    def end(self, exchange: Exchange) -> None:
        """Remove a request, which `pending` takes for the one that was answered."""
        self.pending.end(exchange.id)
        self._release(exchange)

    def close(self) -> None:
        """Send nothing more. Requests under way are answered."""
        self._closing = True
        self._idle.stop()
        self._work.wake()

    def abandon(self) -> None:
        """End the call, as nobody wants its replies any more. If its server does not bear
        cancellation, or writes to a caller's memory, requests under way finish within a bound."""
        self._listener = None
        self.close()
        if self._call.done():
            return
        loop = asyncio.get_running_loop()
        self._parting = loop.call_later(PARTING_SECONDS, self._call.cancel)
        if self.pending and all(exchange.memory is None for exchange in self.pending):
            self._cancel(self._call)

    async def run(self) -> None:
        """Read the replies until the call has ended."""
        failure: grpc.aio.AioRpcError | None = None
        try:
            await self._open()
            while (message := await self._call.read()) is not grpc.aio.EOF:
                listener = self._listener
                if listener is None:
                    self._discard(message)
                elif (room := listener.replied(self, message)) is not None:
                    await room()
        except grpc.aio.AioRpcError as error:
            failure = error
        except Malformed as error:
            _log.error("unreadable reply", server=self.replica.server, problem=str(error))
        finally:
            self._call.cancel()
            self._idle.stop()
            if self._parting is not None:
                self._parting.cancel()
            self._before_open = None
            self.close()
            self._ended(failure)

    async def _open(self) -> None:
        """Wait until every later reply is sure to be written."""
        await self._call.read()
        reading = asyncio.ensure_future(self._call.read())
        sent, patience = 0, OPENING_SECONDS
        while not reading.done():
            sent += 1
            self._outgoing.append(probe(*self.replica.target))
            self._work.wake()
            await asyncio.wait((reading,), timeout=patience)
            patience *= 2
        await reading
        for _ in range(1, sent):
            await self._call.read()
        early, self._before_open = self._before_open or [], None
        self._outgoing.extend(early)
        self._work.wake()

    def _ended(self, failure: grpc.aio.AioRpcError | None) -> None:
        broken = sorted(self.pending, key=lambda exchange: exchange.serial)
        self.pending.clear()
        for exchange in broken:
            self._release(exchange)
        if self._listener is not None:
            self._listener.ended(self, broken, failure)

    def _release(self, exchange: Exchange) -> None:
        exchange.forward.end()
        self._in_use.end(self.replica)
        if exchange.memory is not None:
            exchange.memory.release()

    def _discard(self, message: bytes) -> None:
        reply = parse_reply(message)
        exchange = self.pending.oldest(reply.id)
        if exchange is not None and reply.final is not False:
            self.end(exchange)

    async def _requests(self) -> AsyncIterator[bytes]:
        yield OPENING
        while True:
            while self._outgoing:
                yield self._outgoing.popleft()
            if self._closing and self._before_open is None:
                return
            await self._work.wait()


class StreamCalls:
    """The calls of all clients' streams. They outlast their clients while requests are under way.

    `pick` returns the replica for a request, which may belong to a sequence."""

    def __init__(
        self,
        watch: PlacementWatch,
        controller: ResidencyClient,
        channels: ServerChannels,
        cancellations: Cancellations,
        pick: Pick,
        repeats: Repeats,
        budget: RetryBudget,
    ) -> None:
        self.watch = watch
        self.controller = controller
        self.pick = pick
        self.repeats = repeats
        self.budget = budget
        self._channels = channels
        self._cancellations = cancellations
        self._methods: dict[str, Any] = {}
        self._running = TaskScope("calls of streams")
        #: Versions, with their identity, that a Triton says are decoupled.
        self._learned: set[tuple[Target, str]] = set()
        self.lockstep = LockstepCalls(self._none_decoupled)
        watch.listen(lambda _: self.lockstep.check())

    async def close(self) -> None:
        """Close all calls, letting requests finish for a moment."""
        await self.lockstep.close()
        await self._running.close(CLOSING_SECONDS)

    def open(
        self,
        replica: Replica,
        address: str,
        metadata: Pairs,
        listener: ReplyListener,
    ) -> StreamCall:
        """Open a call to a replica, whose replies go to `listener`."""
        method = self._method_of(address)
        cancel = partial(self._cancellations.cancel, address)
        call = StreamCall(replica, method, metadata, self.watch.in_use, listener, cancel)
        self._running.start(call.run())
        self.lockstep.check()
        return call

    def decoupled(self, target: Target) -> bool | None:
        """Return whether the model is decoupled; None if that is not known."""
        entry = self.watch.table.entry(target)
        if entry is None:
            return None
        if self._learned and (target, entry.identity) in self._learned:
            return True
        return entry.decoupled

    def learn(self, target: Target) -> None:
        """Note that a Triton says that the model is decoupled."""
        self._learned.add((target, self.watch.table.identity(target)))
        self.lockstep.check()

    def _none_decoupled(self) -> bool:
        """Return whether no model is decoupled, including those that were withdrawn with requests
        under way."""
        return self.watch.table.none_decoupled and not self._running and not self._learned

    def _method_of(self, address: str) -> Any:
        method = self._methods.get(address)
        if method is None:
            method = self._channels.to(address).stream_stream(MODEL_STREAM_INFER)
            self._methods[address] = method
        return method
