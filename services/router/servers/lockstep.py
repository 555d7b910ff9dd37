"""Streams to servers that carry one request at a time, for models that are not decoupled.

Requests of a client's stream to such models take these streams, since a message on a stream costs
less than a call of its own."""

import asyncio
from collections.abc import AsyncIterator, Callable, Generator
from typing import Any, Final

import grpc
import structlog

from services.common.idle import IdleTimer
from services.common.tasks import TaskScope
from services.router.core.routing.metadata import Pairs
from services.router.core.routing.routes import Replica
from services.router.core.wire.reply import is_only_reply, parse_reply
from services.router.core.wire.verdict import DECOUPLED, code_in_stream, status_of_lost_stream
from services.router.waiting import Wakeup
from shoal.protobuf import Malformed

MODEL_STREAM_INFER: Final = "/inference.GRPCInferenceService/ModelStreamInfer"

# A Triton holds the model of a stream's first request until the stream ends, and cannot unload it
# (seen on release 24.10). The first request therefore names no model, and is refused.
OPENING: Final = b""

IDLE_SECONDS: Final = 30.0  # a call is closed after once to twice as long without a request
CLOSING_SECONDS: Final = 2.0  # for requests under way when the Router stops
MOST_CALLS: Final = 16  # of one client's stream; other requests have calls of their own
MOST_IN_ALL: Final = 1024  # calls for all clients' streams
MOST_ASKED: Final = 1024  # replicas remembered as asked before

_log = structlog.get_logger(__name__)


class LockstepRequest:
    """A request under way. It has as much of the interface of a ModelInfer call as those need who
    wait for one.

    `cancel` cancels it at the server, with the call that carries it."""

    __slots__ = ("_callbacks", "_code", "_loop", "_text", "_waiting", "cancel", "message")

    def __init__(self, loop: asyncio.AbstractEventLoop, cancel: Callable[[], object]) -> None:
        #: The answer, a serialized ModelStreamInferResponse.
        self.message = b""
        self.cancel = cancel
        self._loop = loop
        self._code: grpc.StatusCode | None = None
        self._text = ""
        self._waiting: asyncio.Future[None] | None = None
        self._callbacks: list[Callable[[LockstepRequest], None]] = []

    async def code(self) -> grpc.StatusCode:
        """Return the status code once the request has ended. Only one task may wait at a time; if
        it stops waiting, the request stays under way."""
        while self._code is None:
            self._waiting = self._loop.create_future()
            await self._waiting
        return self._code

    async def details(self) -> str:
        """Return the status text of a request that has ended."""
        return self._text

    def __await__(self) -> Generator[Any, None, bytes]:
        """Return the answer. Raises AioRpcError."""
        code = yield from self.code().__await__()
        if code is not grpc.StatusCode.OK:
            nothing = grpc.aio.Metadata()
            raise grpc.aio.AioRpcError(code, nothing, nothing, details=self._text)
        return self.message

    def add_done_callback(self, callback: Callable[["LockstepRequest"], None]) -> None:
        """Call `callback` when the request has ended."""
        if self._code is None:
            self._callbacks.append(callback)
        else:
            callback(self)

    def end(self, code: grpc.StatusCode, message: bytes = b"", text: str = "") -> None:
        """End the request and wake whoever waits for it."""
        self._code, self.message, self._text = code, message, text
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)
        for callback in self._callbacks:
            callback(self)


class LockstepCall:
    """A call of ModelStreamInfer to a replica with at most one request under way. With several
    requests at a time in one stream, a Triton crashes after some ten thousand.

    Triton may hold back a decoupled model's replies until it has noted that the refusal of the
    opening was written. It never held back other models' replies in more than ten thousand
    openings, so no second refusal is awaited. `method` is a stub."""

    def __init__(self, method: Any, metadata: Pairs) -> None:
        self.open = True
        self._opened = False
        self._request: LockstepRequest | None = None
        self._message: bytes | None = None  # to be sent
        self._work = Wakeup()
        # Asking for the loop costs a system call each time, before Python 3.12.
        self._loop = asyncio.get_running_loop()
        self._idle = IdleTimer(IDLE_SECONDS, self._on_idle, busy=lambda: self._request is not None)
        self._call: Any = method(self._requests(), metadata=metadata)

    @property
    def free(self) -> bool:
        """Whether a request may be sent on it now."""
        return self.open and self._request is None

    def send(self, message: bytes) -> LockstepRequest:
        """Send a request. The call must be `free`."""
        self._idle.touch()
        self._message = message
        request = self._request = LockstepRequest(self._loop, self._cancel)
        self._work.wake()
        return request

    def close(self) -> None:
        """Send nothing more. The request under way may finish, however long it takes: resetting the
        stream in the middle of a reply can leave a Triton before release 25.06 unable to unload the
        model."""
        self.open = False
        self._work.wake()

    def _cancel(self) -> None:
        self._call.cancel()

    async def run(self) -> None:
        """Read the replies until the call has ended."""
        code, text = "OK", ""
        try:
            await self._call.read()
            self._opened = True
            self._work.wake()
            while (message := await self._call.read()) is not grpc.aio.EOF:
                self._replied(message)
        except grpc.aio.AioRpcError as error:
            code, text = error.code().name, error.details() or ""
        except Malformed as error:
            _log.error("unreadable reply", problem=str(error))
        finally:
            self._message = None
            self.close()
            self._call.cancel()
            self._idle.stop()
            code, text = status_of_lost_stream(code, text)
            self._end_request(grpc.StatusCode[code], text=text)

    def _replied(self, message: bytes) -> None:
        if is_only_reply(message):
            self._end_request(grpc.StatusCode.OK, message)
            return
        reply = parse_reply(message)
        if reply.error:
            code = code_in_stream(reply.error, begun=reply.final is not None)
            self._end_request(grpc.StatusCode[code], text=reply.error)
        elif reply.final:
            self._end_request(grpc.StatusCode.OK, message)
        else:  # one of several replies
            self.close()
            self._end_request(grpc.StatusCode.UNIMPLEMENTED, text=DECOUPLED)

    def _end_request(self, code: grpc.StatusCode, message: bytes = b"", text: str = "") -> None:
        request, self._request = self._request, None
        if request is not None:
            request.end(code, message, text)

    def _on_idle(self) -> None:
        if self.open:
            self.close()
        else:  # closed before, but the server has not ended the stream
            self._call.cancel()

    async def _requests(self) -> AsyncIterator[bytes]:
        yield OPENING
        while True:
            if self._opened and self._message is not None:
                message, self._message = self._message, None
                yield message
            elif not self.open and self._message is None:
                return
            else:
                await self._work.wait()


class LockstepCalls:
    """The lockstep calls of all clients' streams.

    `allowed` says whether there may be any now. Call `check` when that may have changed."""

    def __init__(self, allowed: Callable[[], bool]) -> None:
        self.allowed = allowed
        self._calls: set[LockstepCall] = set()
        self._running = TaskScope("lockstep streams")

    async def close(self) -> None:
        """Close all calls, letting requests finish for a moment."""
        for call in self._calls:
            call.close()
        await self._running.close(CLOSING_SECONDS)

    def check(self) -> None:
        """Close all calls if there may be none."""
        if self._calls and not self.allowed():
            for call in self._calls:
                call.close()

    @property
    def has_room(self) -> bool:
        """Whether there may be one more call."""
        return len(self._calls) < MOST_IN_ALL

    def open(self, channel: grpc.aio.Channel, metadata: Pairs) -> LockstepCall:
        """Open a call."""
        call = LockstepCall(channel.stream_stream(MODEL_STREAM_INFER), metadata)
        self._calls.add(call)
        self._running.start(self._run(call))
        return call

    async def _run(self, call: LockstepCall) -> None:
        try:
            await call.run()
        finally:
            self._calls.discard(call)


class LockstepStream:
    """The lockstep calls of one client's stream: one to each replica, from the second request to it
    on. A single request is cheaper as a call of its own than with a new stream."""

    def __init__(self, calls: LockstepCalls) -> None:
        self._calls = calls
        self._asked: set[Replica] = set()
        self._by_replica: dict[Replica, LockstepCall] = {}

    def send(
        self, replica: Replica, channel: grpc.aio.Channel, message: bytes, metadata: Pairs
    ) -> LockstepRequest | None:
        """Send a serialized ModelInferRequest. Returns None if it needs a call of its own."""
        if not self._calls.allowed():
            return None
        call = self._by_replica.get(replica)
        if call is None or not call.open:
            if not self._may_open(replica):
                return None
            call = self._by_replica[replica] = self._calls.open(channel, metadata)
        return call.send(message) if call.free else None

    def abandon(self) -> None:
        """Close the calls, as the client is gone."""
        for call in self._by_replica.values():
            call.close()

    def _may_open(self, replica: Replica) -> bool:
        """Return whether the replica was asked before, and there is room for one more call."""
        if replica not in self._asked:
            if len(self._asked) >= MOST_ASKED:
                self._asked.clear()
            self._asked.add(replica)
            return False
        if len(self._by_replica) >= MOST_CALLS:
            self._by_replica = {to: call for to, call in self._by_replica.items() if call.open}
        return len(self._by_replica) < MOST_CALLS and self._calls.has_room
