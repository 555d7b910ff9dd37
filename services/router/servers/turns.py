"""Requests of a client's stream to models that give one reply each, sent by streams, too."""

import asyncio
from collections.abc import AsyncIterator, Callable, Generator
from typing import Any, Final

import grpc
import structlog

from services.common.idle import IdleTimer
from services.common.tasks import TaskScope
from services.router.core.routing.metadata import Pairs
from services.router.core.routing.routes import Replica
from services.router.core.wire.reply import reply, whole
from services.router.core.wire.verdict import DECOUPLED, code_in_band, cut_off
from shoal.protobuf import Malformed

MODEL_STREAM_INFER: Final = "/inference.GRPCInferenceService/ModelStreamInfer"

# A Triton keeps the model of a stream's first request until the stream ends, and cannot unload it
# (seen on release 24.10). So the first is for no model, and is refused.
OPENING: Final = b""

IDLE_SECONDS: Final = 30.0  # after once to twice as long without a request a call is closed
CLOSING_SECONDS: Final = 2.0  # for what is under way when the Router ends
MOST_CALLS: Final = 16  # of one client's stream; what goes elsewhere goes alone
MOST_IN_ALL: Final = 1024  # calls of all clients' streams
MOST_ASKED: Final = 1024  # replicas that are known to have been asked

_log = structlog.get_logger(__name__)


class PlainRequest:
    """One that is under way, with as much of the face of a call of ModelInfer as who waits for a
    failure needs. `message`: the answer, a serialized ModelStreamInferResponse."""

    __slots__ = ("_callbacks", "_code", "_loop", "_text", "_waiting", "message")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.message = b""
        self._loop = loop
        self._code: grpc.StatusCode | None = None
        self._text = ""
        self._waiting: asyncio.Future[None] | None = None
        self._callbacks: list[Callable[[PlainRequest], None]] = []

    async def code(self) -> grpc.StatusCode:
        """Of one waiter at a time; who does not wait any more leaves the request under way."""
        while self._code is None:
            self._waiting = self._loop.create_future()
            await self._waiting
        return self._code

    async def details(self) -> str:
        """Of one that has ended."""
        return self._text

    def __await__(self) -> Generator[Any, None, bytes]:
        """Raises AioRpcError."""
        code = yield from self.code().__await__()
        if code is not grpc.StatusCode.OK:
            nothing = grpc.aio.Metadata()
            raise grpc.aio.AioRpcError(code, nothing, nothing, details=self._text)
        return self.message

    def add_done_callback(self, callback: Callable[["PlainRequest"], None]) -> None:
        if self._code is None:
            self._callbacks.append(callback)
        else:
            callback(self)

    def end(self, code: grpc.StatusCode, message: bytes = b"", text: str = "") -> None:
        self._code, self.message, self._text = code, message, text
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)
        for callback in self._callbacks:
            callback(self)


class PlainCall:
    """One call of ModelStreamInfer to a replica, with at most one request under way: a Triton that
    has several of them in one stream ends after some ten thousand.

    A decoupled model's replies may be held back until the refusal of the opening is noted as
    written; a plain model's never were, in more than ten thousand openings. So no second refusal is
    waited for. `method`: a stub."""

    def __init__(self, method: Any, metadata: Pairs) -> None:
        self.open = True
        self._opened = False
        self._request: PlainRequest | None = None
        self._message: bytes | None = None  # of the request that is not sent yet
        self._wake: asyncio.Future[None] | None = None
        # Asking for the loop costs a system call each time, before Python 3.12.
        self._loop = asyncio.get_running_loop()
        self._idle = IdleTimer(IDLE_SECONDS, self._unused, busy=lambda: self._request is not None)
        self._call: Any = method(self._requests(), metadata=metadata)

    @property
    def free(self) -> bool:
        """Whether a request may be sent on it now."""
        return self.open and self._request is None

    def send(self, message: bytes) -> PlainRequest:
        self._idle.touch()
        self._message = message
        request = self._request = PlainRequest(self._loop)
        self._awake()
        return request

    def close(self) -> None:
        """Send nothing more. What is under way is let finish, as long as it takes: a reset in the
        middle of a reply can leave a Triton before release 25.06 unable to unload the model."""
        self.open = False
        self._awake()

    async def run(self) -> None:
        """Read the replies until it has ended."""
        code, text = "OK", ""
        try:
            await self._call.read()
            self._opened = True
            self._awake()
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
            code, text = cut_off(code, text)
            self._end(grpc.StatusCode[code], text=text)

    def _replied(self, message: bytes) -> None:
        if whole(message):
            self._end(grpc.StatusCode.OK, message)
            return
        said = reply(message)
        if said.error:
            code = code_in_band(said.error, begun=said.final is not None)
            self._end(grpc.StatusCode[code], text=said.error)
        elif said.final:
            self._end(grpc.StatusCode.OK, message)
        else:  # of several replies
            self.close()
            self._end(grpc.StatusCode.UNIMPLEMENTED, text=DECOUPLED)

    def _end(self, code: grpc.StatusCode, message: bytes = b"", text: str = "") -> None:
        request, self._request = self._request, None
        if request is not None:
            request.end(code, message, text)

    def _unused(self) -> None:
        if self.open:
            self.close()
        else:  # the server has not ended the stream, either
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
                self._wake = self._loop.create_future()
                await self._wake

    def _awake(self) -> None:
        wake, self._wake = self._wake, None
        if wake is not None and not wake.done():
            wake.set_result(None)


class PlainCalls:
    """The calls of all streams. `allowed`: whether there may be any now; `check` is to be called
    when that may have changed."""

    def __init__(self, allowed: Callable[[], bool]) -> None:
        self.allowed = allowed
        self._calls: set[PlainCall] = set()
        self._running = TaskScope("streams in turns")

    async def close(self) -> None:
        """What is under way is let finish for a moment."""
        for call in self._calls:
            call.close()
        await self._running.close(CLOSING_SECONDS)

    def check(self) -> None:
        """Close all if there may be none."""
        if self._calls and not self.allowed():
            for call in self._calls:
                call.close()

    @property
    def room(self) -> bool:
        """Whether there may be one more."""
        return len(self._calls) < MOST_IN_ALL

    def open(self, channel: grpc.aio.Channel, metadata: Pairs) -> PlainCall:
        call = PlainCall(channel.stream_stream(MODEL_STREAM_INFER), metadata)
        self._calls.add(call)
        self._running.start(self._run(call))
        return call

    async def _run(self, call: PlainCall) -> None:
        try:
            await call.run()
        finally:
            self._calls.discard(call)


class PlainStream:
    """Of one client's stream: a call to each replica, from the second request to it on. One request
    alone is cheaper than a stream for it."""

    def __init__(self, calls: PlainCalls) -> None:
        self._calls = calls
        self._asked: set[Replica] = set()
        self._to: dict[Replica, PlainCall] = {}

    def send(
        self, replica: Replica, channel: grpc.aio.Channel, message: bytes, metadata: Pairs
    ) -> PlainRequest | None:
        """None where it has to go alone. `message`: a serialized ModelInferRequest."""
        if not self._calls.allowed():
            return None
        call = self._to.get(replica)
        if call is None or not call.open:
            if not self._worth(replica):
                return None
            call = self._to[replica] = self._calls.open(channel, metadata)
        return call.send(message) if call.free else None

    def part(self) -> None:
        """The client has gone."""
        for call in self._to.values():
            call.close()

    def _worth(self, replica: Replica) -> bool:
        """Whether it was asked before, and there may be one more call."""
        if replica not in self._asked:
            if len(self._asked) >= MOST_ASKED:
                self._asked.clear()
            self._asked.add(replica)
            return False
        if len(self._to) >= MOST_CALLS:
            self._to = {to: call for to, call in self._to.items() if call.open}
        return len(self._to) < MOST_CALLS and self._calls.room
