"""Calls that run to their end even when their client has gone."""

import inspect
from collections.abc import Awaitable, Callable, Coroutine
from functools import wraps
from typing import Any, Protocol, TypeVar

from services.common.tasks import TaskScope

T = TypeVar("T")
Servicer = TypeVar("Servicer", bound=type)


class _Owner(Protocol):
    tasks: TaskScope


def completing_calls(servicer: Servicer) -> Servicer:
    """Decorate a servicer so that its unary calls run to their end in its `tasks`.

    A connection whose call is cancelled in the middle of a statement keeps its transaction until
    the garbage collector finds it, and with it SQLite's only lock for writing.
    """
    for name, method in list(vars(servicer).items()):
        if name[0].isupper() and inspect.iscoroutinefunction(method):
            setattr(servicer, name, _completed(method))
    return servicer


def _completed(
    method: Callable[..., Coroutine[Any, Any, T]],
) -> Callable[..., Awaitable[T]]:
    @wraps(method)
    async def call(servicer: _Owner, *arguments: Any) -> T:
        return await servicer.tasks.complete(method(servicer, *arguments))

    return call
