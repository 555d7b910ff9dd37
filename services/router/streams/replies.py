"""Returns replies to the client of a stream, in order and no faster than it takes them."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

from opentelemetry import trace

from services.common.errors import ShoalError
from services.router.admission.admission import Admission
from services.router.control.answers import Rejected
from services.router.core.errors import ServerLost
from services.router.core.wire.reply import refusal
from services.router.process.tuning import MIB
from services.router.streams.exchange import Exchange
from services.router.telemetry.statistics import Statistics
from services.router.waiting import Wakeup

MOST_PENDING: Final = 1024  # requests of one stream
MOST_PENDING_BYTES: Final = 64 * MIB  # of requests that may be repeated
MOST_UNSENT_BYTES: Final = MIB  # of replies that the client has not read yet
MOST_EXPECTED_BYTES: Final = (
    128 * MIB
)  # of replies to come, if each were as large as the largest so far

Write = Callable[[bytes], Awaitable[None]]
WaitForRoom = Callable[[], Awaitable[None]]


class Replies:
    """The requests of one stream that wait for a reply, and the replies on their way to the client.

    What a method that takes a reply returns is to be called and awaited before the next reply is
    read from the same source. `strict` says that the loss of a server ends the stream, as errors do
    at Triton for clients that ask for that. `raising` says that any refusal does."""

    def __init__(
        self, statistics: Statistics, admission: Admission, *, strict: bool, raising: bool = False
    ) -> None:
        self._statistics = statistics
        self._admission = admission
        self._strict = strict
        self._raising = raising
        self._pending: set[Exchange] = set()
        #: Bytes of the requests that may have to be repeated.
        self._kept_bytes = 0
        self._unsent: deque[bytes] = deque()
        self._unsent_bytes = 0
        #: Bytes of replies that wait for their turn.
        self._held_bytes = 0
        #: Bytes of the largest reply so far.
        self._largest = 0
        self._complete = False
        self._failure: BaseException | None = None
        self._work = Wakeup()
        #: Set when there may be space for another request.
        self._freed = asyncio.Event()
        #: Set while there is room for another reply.
        self._room = asyncio.Event()
        self._room.set()

    # --- requests ---------------------------------------------------------------------------------

    def begin(self, exchange: Exchange) -> None:
        """Add a request."""
        self._pending.add(exchange)
        self._kept_bytes += exchange.size

    def full(self) -> bool:
        """Return whether to stop reading requests for now."""
        pending = len(self._pending)
        return (
            pending >= MOST_PENDING
            or self._kept_bytes >= MOST_PENDING_BYTES
            or self._unsent_bytes >= MOST_UNSENT_BYTES
            or (pending > 0 and self._held_bytes + pending * self._largest >= MOST_EXPECTED_BYTES)
        )

    async def until_space(self) -> None:
        """Wait until more requests may be read."""
        while self.full():
            self._freed.clear()
            await self._freed.wait()

    def complete(self) -> None:
        """Note that the client sends no more requests."""
        self._complete = True
        self._work.wake()

    def abandon(self) -> None:
        """Fail all requests, as the client is gone."""
        for exchange in list(self._pending):
            self._end(exchange, failed=True, abandoned=True)
        self._room.set()

    # --- replies ----------------------------------------------------------------------------------

    def pass_on(self, exchange: Exchange, message: bytes) -> WaitForRoom | None:
        """Pass on a part of a reply, with more to come."""
        self._release(exchange)
        self._push(message)
        return self._backpressure()

    def answer(
        self, exchange: Exchange, message: bytes | None, *, failed: bool
    ) -> WaitForRoom | None:
        """End a request with the last part of its reply, or with None if all of it was passed
        on."""
        self._end(exchange, failed=failed)
        order = exchange.order
        if order is None:
            if message is not None:
                self._push(message)
            else:
                self._work.wake()
            return self._backpressure()
        assert message is not None, "what keeps an order has one reply"
        out = order.answer(exchange, message)
        if out:
            self._push(out[0])
            if len(out) > 1:
                self._push_held(out[1:])
        else:
            self._held_bytes += len(message)
            self._largest = max(self._largest, len(message))
        return self._backpressure()

    def leave_order(self, exchange: Exchange) -> None:
        """Let a request keep nobody waiting any longer, and wait for nobody."""
        if exchange.order is not None:
            self._push_held(exchange.order.leave(exchange))
            exchange.order = None

    def refuse(self, exchange: Exchange, error: ShoalError | Rejected) -> None:
        """Answer a request, in its turn, with an error's text, as Triton does. The stream goes
        on."""
        if self._raising or (isinstance(error, ServerLost) and self._strict):
            self.fail(error)
            return
        text = error.message if isinstance(error, ShoalError) else str(error)
        if exchange.span.is_recording():
            exchange.span.set_status(trace.StatusCode.ERROR, text)
            if isinstance(error, ShoalError):
                exchange.span.set_attribute("shoal.error.reason", error.reason)
        self.answer(exchange, refusal(exchange.id, text), failed=True)

    def fail(self, failure: BaseException) -> None:
        """End the stream with `failure` once everything passed on is written."""
        self._failure = self._failure or failure
        self._work.wake()

    async def write(self, write: Write) -> None:
        """Write replies until the last one is out. Raises the error that `fail` was given."""
        while True:
            while self._unsent:
                message = self._unsent.popleft()
                await write(message)
                self._unsent_bytes -= len(message)
                if self._unsent_bytes < MOST_UNSENT_BYTES:
                    self._room.set()
                    self._freed.set()
            if self._failure is not None:
                raise self._failure
            if self._complete and not self._pending:
                return
            await self._work.wait()

    # --- inside -----------------------------------------------------------------------------------

    def _push(self, message: bytes) -> None:
        size = len(message)
        self._unsent.append(message)
        self._unsent_bytes += size
        if size > self._largest:
            self._largest = size
        self._work.wake()

    def _backpressure(self) -> WaitForRoom | None:
        """Return what to await if the client is behind."""
        if self._unsent_bytes < MOST_UNSENT_BYTES:
            return None
        for exchange in self._pending:  # their client holds them up, and must not hold up others
            self._leave_admission(exchange)
        self._room.clear()
        return self._until_room

    async def _until_room(self) -> None:
        await self._room.wait()

    def _push_held(self, messages: list[bytes]) -> None:
        for message in messages:
            self._held_bytes -= len(message)
            self._push(message)

    def _release(self, exchange: Exchange) -> None:
        """Note that a request will not be repeated, since a part of its reply was passed on. From
        now on only its client holds it up."""
        if exchange.message is not None:
            exchange.message = None
            self._leave_admission(exchange)
            self._kept_bytes -= exchange.size
            self._admission.memory_budget.give(exchange.held)
            self._freed.set()

    def _leave_admission(self, exchange: Exchange, *, abandoned: bool = False) -> None:
        """Let a request go on outside of admission, for however long. That says nothing about the
        model."""
        ticket, exchange.ticket = exchange.ticket, None
        if ticket is not None:
            self._admission.leave(ticket, answered=False, abandoned=abandoned)

    def _end(self, exchange: Exchange, *, failed: bool, abandoned: bool = False) -> None:
        self._leave_admission(exchange, abandoned=abandoned)
        self._release(exchange)
        self._pending.discard(exchange)
        if exchange.memory is not None:
            exchange.memory.release()
        self._freed.set()
        if exchange.target is not None:
            seconds = time.monotonic() - exchange.began
            self._statistics.add(exchange.target, seconds, failed=failed, cold=exchange.cold)
            exchange.span.set_attribute("shoal.cold", exchange.cold)
        exchange.span.end()
