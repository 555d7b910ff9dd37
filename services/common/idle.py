"""What is closed when nobody has used it for a while."""

import asyncio
from collections.abc import Callable


class IdleTimer:
    """Calls `idle` when nothing has been done for `seconds`, and after each further `seconds`.

    It looks at what was done every `seconds`, so `idle` is called after once to twice as long. That
    makes `touch` cost no more than an assignment. Whatever is `busy` when it looks is not idle.
    """

    def __init__(
        self,
        seconds: float,
        idle: Callable[[], None],
        busy: Callable[[], bool] = lambda: False,
    ) -> None:
        self._seconds = seconds
        self._idle = idle
        self._busy = busy
        self._used = True
        # Asking for the loop costs a system call each time, before Python 3.12.
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(seconds, self._look)

    def touch(self) -> None:
        """Note that something is done."""
        self._used = True

    def stop(self) -> None:
        """Call `idle` no more."""
        self._timer.cancel()

    def _look(self) -> None:
        self._timer = self._loop.call_later(self._seconds, self._look)
        if not self._used and not self._busy():
            self._idle()
        self._used = False
