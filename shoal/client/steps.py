"""Operations of the client, apart from whether threads or asyncio carry them out.

An operation is a generator: it yields a Call, is sent the reply or thrown CallFailed, and returns
what its caller gets. `carried_out` makes of its calls attempts and pauses, which are all that the
two clients have to know how to do.
"""

import math
import random
import sys
import time
from collections.abc import Awaitable, Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeVar

from shoal.client.errors import CallFailed

MIN_PAUSE: Final = 0.01  # seconds
GROWTH: Final = 1.5  # of the pause, with each further refusal
JITTER: Final = 0.25  # at most so much is added, so that those who were refused together spread

# The request may have been carried out, so whether to repeat it is for the caller to say.
_NEVER_REPEATED: Final = frozenset({"SERVER_LOST"})

Headers = Mapping[str, str | bytes]
Metadata = tuple[tuple[str, str | bytes], ...]

_T = TypeVar("_T")
_Step = TypeVar("_Step")


@dataclass(frozen=True, slots=True)
class Call:
    """One unary call. `timeout`: seconds for all its tries, None: the client's own."""

    service: str  # as in `connect`, or "inference"
    method: str
    request: Any
    timeout: float | None = None
    headers: Headers | None = None
    repeatable: bool = True


class Attempt(NamedTuple):
    """`timeout`: seconds, None: no limit."""

    call: Call
    timeout: float | None
    metadata: Metadata


class Pause(NamedTuple):
    seconds: float


Operation = Generator[Call | Pause, Any, _T]


class Limits(NamedTuple):
    """`timeout`: seconds for a call that sets none. `retries`: of a call, at most."""

    timeout: float
    retries: int


def carried_out(operation: Operation[_T], limits: Limits) -> Generator[Attempt | Pause, Any, _T]:
    """The operation, each call repeated as its refusals offer. Raises what the operation raises."""
    try:
        step = next(operation)
        while True:
            try:
                reply = yield from _answered(step, limits)
            except CallFailed as error:
                step = operation.throw(error)
            else:
                step = operation.send(reply)
    except StopIteration as end:
        result: _T = end.value
        return result


def run(steps: Generator[_Step, Any, _T], do: Callable[[_Step], Any]) -> _T:
    """Has `do` do each step, and returns what the steps return."""
    try:
        step = next(steps)
        while True:
            try:
                reply = do(step)
            except CallFailed as error:
                step = steps.throw(error)
            else:
                step = steps.send(reply)
    except StopIteration as end:
        result: _T = end.value
        return result


async def run_async(steps: Generator[_Step, Any, _T], do: Callable[[_Step], Awaitable[Any]]) -> _T:
    """As `run`."""
    try:
        step = next(steps)
        while True:
            try:
                reply = await do(step)
            except CallFailed as error:
                step = steps.throw(error)
            else:
                step = steps.send(reply)
    except StopIteration as end:
        result: _T = end.value
        return result


def _answered(step: Call | Pause, limits: Limits) -> Generator[Attempt | Pause, Any, Any]:
    if isinstance(step, Pause):
        return (yield step)
    tries = Tries(
        limits.timeout if step.timeout is None else step.timeout,
        limits.retries if step.repeatable else 0,
    )
    metadata = metadata_of(step.headers)
    while True:
        try:
            return (yield Attempt(step, tries.left(), metadata))
        except CallFailed as error:
            pause = tries.pause(error)
        yield Pause(pause)


class Tries:
    """What is left of a call's time and of its repeats. `timeout`: seconds, None: no limit."""

    def __init__(self, timeout: float | None, retries: int) -> None:
        self._deadline = math.inf if timeout is None else time.monotonic() + timeout
        self._retries = retries
        self._refused = 0

    def left(self) -> float | None:
        """Seconds, None: no limit."""
        if self._deadline == math.inf:
            return None
        return max(self._deadline - time.monotonic(), 0.001)

    def pause(self, error: CallFailed) -> float:
        """Seconds to wait before the next try.

        Raises the error itself where it offers none, or where it would come too late.
        """
        self._refused += 1
        if (
            error.retry_after is None
            or error.reason in _NEVER_REPEATED
            or self._refused > self._retries
        ):
            raise error
        draw = random.random()
        wait = pause(error.retry_after, self._refused, draw)
        if time.monotonic() + wait >= self._deadline:
            raise error
        return wait


def pause(retry_after: float, refused: int, draw: float) -> float:
    """Seconds to wait after the refusal number `refused`, 1 the first; `draw` in [0, 1).

    Never shorter than what the service asked for.
    """
    grown = max(retry_after, MIN_PAUSE) * GROWTH ** (refused - 1)
    return float(grown * (1 + JITTER * draw))


def metadata_of(headers: Headers | None) -> Metadata:
    """The caller's headers, and the trace context of the span that is current, where one is."""
    given = {name.lower(): value for name, value in (headers or {}).items()}
    return tuple({**_trace_context(), **given}.items())


def _trace_context() -> dict[str, str]:
    """W3C traceparent and tracestate, by OpenTelemetry's API where the program uses it."""
    if "opentelemetry.trace" not in sys.modules:
        return {}
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier
