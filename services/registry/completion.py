"""Work that is brought to its end even when whoever asked for it has gone."""

import asyncio
import inspect
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from functools import wraps
from typing import Any, Final, TypeVar

T = TypeVar("T")
Servicer = TypeVar("Servicer", bound=type)

_under_way: Final[weakref.WeakSet[asyncio.Future[Any]]] = weakref.WeakSet()


async def finish(work: Coroutine[Any, Any, T]) -> T:
    """Like `await work`, but a cancellation takes effect only once the work is done.

    A call whose client has gone is cancelled anywhere; a commit without its publication, or a
    thread that goes on writing after its lock was given back, would be left behind.
    """
    task = asyncio.ensure_future(work)
    _under_way.add(task)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            if task.cancelled():
                raise
            cancelled = error
        except Exception:
            break  # the task's own, which its result raises
    if cancelled is not None:
        task.exception()  # seen
        raise cancelled
    return task.result()


async def finished(seconds: float) -> None:
    """Until there is no such work any more in this event loop, and for so many seconds at most."""
    loop = asyncio.get_running_loop()
    left = [task for task in _under_way if not task.done() and task.get_loop() is loop]
    if left:
        await asyncio.wait(left, timeout=seconds)


def finishing(servicer: Servicer) -> Servicer:
    """A servicer whose unary calls go on when their client has gone.

    A connection whose caller is cancelled in the middle of a statement keeps its transaction until
    the garbage collector finds it, and with it the one lock that SQLite has for writing.
    """
    for name, method in list(vars(servicer).items()):
        if name[0].isupper() and inspect.iscoroutinefunction(method):
            setattr(servicer, name, _finished(method))
    return servicer


def _finished(
    method: Callable[..., Coroutine[Any, Any, T]],
) -> Callable[..., Awaitable[T]]:
    @wraps(method)
    async def call(*arguments: Any) -> T:
        return await finish(method(*arguments))

    return call
