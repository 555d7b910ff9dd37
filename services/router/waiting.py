"""Bounded waits, and waking a task that waits for work."""

import asyncio
import contextlib
from collections.abc import Awaitable


async def within(seconds: float, wait: Awaitable[object]) -> bool:
    """Return whether `wait` finished within `seconds`. It is cancelled if it did not."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await wait
            return True
    return False


class Wakeup:
    """Wakes the one task that waits for work.

    It does less than an `asyncio.Event` because every request of a stream passes through it."""

    __slots__ = ("_loop", "_waiting")

    def __init__(self) -> None:
        # Asking for the loop costs a system call each time, before Python 3.12.
        self._loop = asyncio.get_running_loop()
        self._waiting: asyncio.Future[None] | None = None

    def wait(self) -> asyncio.Future[None]:
        """Return a future that the next `wake` completes. Only the newest future is completed."""
        self._waiting = self._loop.create_future()
        return self._waiting

    def wake(self) -> None:
        """Wake the waiting task. A call while nobody waits has no effect."""
        waiting = self._waiting
        if waiting is not None and not waiting.done():
            waiting.set_result(None)
