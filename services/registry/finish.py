"""Work that is brought to its end even when whoever asked for it has gone."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def finish(work: Coroutine[Any, Any, T]) -> T:
    """Like `await work`, but a cancellation takes effect only once the work is done.

    A call whose client has gone is cancelled anywhere; a commit without its publication, or a
    thread that goes on writing after its lock was given back, would be left behind.
    """
    task = asyncio.ensure_future(work)
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
