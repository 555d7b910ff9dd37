"""Operations of the client, independent of whether threads or asyncio carry them out.

An operation is a generator. It yields a `Call`, is sent the reply or thrown a `CallFailed`, and
returns what its caller gets. `attempts` turns an operation's calls into attempts and pauses, which
are all that the two clients need to know how to carry out: `run` drives them for one, `run_async`
for the other.
"""

import inspect
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from shoal.client.errors import CallFailed
from shoal.client.headers import Headers, Metadata, metadata_of
from shoal.client.retries import Limits, Tries

_T = TypeVar("_T")
_Step = TypeVar("_Step")


@dataclass(frozen=True, slots=True)
class Call:
    """One unary call.

    `timeout` is in seconds and covers all attempts; None means the client's own.
    """

    service: str  # "registry", "controller" or "router" as in `connect`, or "inference"
    method: str
    request: Any
    timeout: float | None = None
    headers: Headers | None = None
    repeatable: bool = True


class Attempt(NamedTuple):
    """One attempt of a call. `timeout` is in seconds; None means no limit."""

    call: Call
    timeout: float | None
    metadata: Metadata


class Pause(NamedTuple):
    """A wait before the next step."""

    seconds: float


class Work(NamedTuple):
    """Work on this machine that takes long, such as reading files."""

    do: Callable[[], Any]


Step = Call | Pause | Work
Operation = Generator[Step, Any, _T]


def attempts(
    operation: Operation[_T], limits: Limits
) -> Generator[Attempt | Pause | Work, Any, _T]:
    """Carry out an operation, repeating each call as far as its refusals allow.

    Returns what the operation returns, and raises what it raises.
    """
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
    """Have `do` carry out each step, and return what the steps return."""
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
    """Do the same as `run` for asyncio."""
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


def described(method: _T, operation: Callable[..., Any]) -> _T:
    """Give a client's method the name, docstring and signature of its operation.

    This is what help() and editors show.
    """
    shown = inspect.signature(operation)
    self = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    about: Any = method
    about.__name__ = about.__qualname__ = operation.__name__
    about.__doc__ = operation.__doc__
    about.__signature__ = shown.replace(
        parameters=(self, *shown.parameters.values()), return_annotation=inspect.Signature.empty
    )
    return method


def _answered(step: Step, limits: Limits) -> Generator[Attempt | Pause | Work, Any, Any]:
    if isinstance(step, Pause | Work):
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
