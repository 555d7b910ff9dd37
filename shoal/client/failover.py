"""Several Controllers behind one stub: each call goes to the one that acts.

Each Controller is asked for its health first: a standby refuses calls, and a process that was
stopped keeps its connections open and never answers. Where no Controller is serving, one that
answered is called anyway, because its refusal says which one acts.
"""

import time
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from typing import Any, Final

import grpc
import grpc.aio

from shoal.client import health
from shoal.client.operations import run, run_async

HEALTH_SECONDS: Final = 1.0  # for one answer


class SeveralChannels:
    """One channel, as stubs see it, made of the channels to several Controllers."""

    def __init__(self, channels: Sequence[Any]) -> None:
        self._channels = channels
        self._checks = [channel.unary_unary(health.CHECK) for channel in channels]
        self._last = 0

    def unary_unary(self, *about: Any, **more: Any) -> Any:
        return _Method(self.serving, self._methods("unary_unary", about, more))

    def unary_stream(self, *about: Any, **more: Any) -> Any:
        return _Method(self.serving, self._methods("unary_stream", about, more))

    def stream_stream(self, *about: Any, **more: Any) -> Any:
        return _Method(self.serving, self._methods("stream_stream", about, more))

    def close(self) -> Any:
        for channel in self._channels:
            channel.close()

    def serving(self) -> Any:
        """Return the index of the channel to call."""
        return run(self._choice(), self._health)

    def _health(self, place: int) -> Any:
        try:
            return self._checks[place](b"", timeout=HEALTH_SECONDS)
        except grpc.RpcError:
            return None

    def _choice(self) -> Generator[int, bytes | None, int]:
        """Yield the index of each channel to check; is sent the answer, None where there is none.

        Returns the index of the channel to call.
        """
        answering = None
        for place in sorted(range(len(self._checks)), key=lambda place: place != self._last):
            answer = yield place
            if answer == health.SERVING:
                self._last = place
                return place
            if answer is not None:
                answering = place
        return self._last if answering is None else answering

    def _methods(self, kind: str, about: Any, more: Any) -> list[Any]:
        return [getattr(channel, kind)(*about, **more) for channel in self._channels]


class SeveralAsyncChannels(SeveralChannels):
    """`SeveralChannels` for grpc.aio."""

    def unary_unary(self, *about: Any, **more: Any) -> Any:
        return _AsyncMethod(self.serving, self._methods("unary_unary", about, more))

    def unary_stream(self, *about: Any, **more: Any) -> Any:
        return _AsyncStreams(self.serving, self._methods("unary_stream", about, more))

    def stream_stream(self, *about: Any, **more: Any) -> Any:
        return _AsyncStreams(self.serving, self._methods("stream_stream", about, more))

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()

    async def serving(self) -> int:
        return await run_async(self._choice(), self._health)

    async def _health(self, place: int) -> Any:
        try:
            return await self._checks[place](b"", timeout=HEALTH_SECONDS)
        except grpc.RpcError:
            return None


class _Method:
    """A method of all Controllers, of which each call goes to the one that acts."""

    def __init__(self, serving: Callable[[], Any], methods: Sequence[Any]) -> None:
        self._serving = serving
        self._methods = methods

    def __call__(self, request: Any, timeout: float | None = None, **more: Any) -> Any:
        began = time.monotonic()
        method = self._methods[self._serving()]
        return method(request, timeout=_left(timeout, began), **more)


class _AsyncMethod(_Method):
    async def __call__(self, request: Any, timeout: float | None = None, **more: Any) -> Any:
        began = time.monotonic()
        method = self._methods[await self._serving()]
        return await method(request, timeout=_left(timeout, began), **more)


class _AsyncStreams(_Method):
    def __call__(self, request: Any, timeout: float | None = None, **more: Any) -> Any:
        return _AsyncStream(self._serving, self._methods, request, timeout, more)


class _AsyncStream:
    """A stream that begins with its first read, because only then the Controller can be chosen."""

    def __init__(
        self,
        serving: Callable[[], Any],
        methods: Sequence[Any],
        request: Any,
        timeout: float | None,
        more: Any,
    ) -> None:
        self._serving = serving
        self._methods = methods
        self._about = (request, timeout, more)
        self._call: Any = None

    async def __aiter__(self) -> AsyncIterator[Any]:
        request, timeout, more = self._about
        began = time.monotonic()
        method = self._methods[await self._serving()]
        self._call = method(request, timeout=_left(timeout, began), **more)
        async for response in self._call:
            yield response

    def cancel(self) -> bool:
        return self._call is not None and bool(self._call.cancel())


def _left(timeout: float | None, began: float) -> float | None:
    return None if timeout is None else max(timeout - (time.monotonic() - began), 0.001)
