"""Requests that are sent again after a server broke off with them: one unit at a time on a server.

When a server crashes, most of what breaks off is innocent. Were it all repeated on the same server
at once, the request that crashed the first would take the innocent ones' only repeat away with the
second, and nobody could say whose it was.
"""

import asyncio
import time
from collections import Counter
from typing import Final

from services.router.core.routing.routes import Replica, Target

LONGEST_SECONDS: Final = 2.0  # a slow model's repeat keeps the others waiting no longer


class Repeats:
    """What is repeated now, by server."""

    def __init__(self) -> None:
        self._running: dict[str, Counter[Target]] = {}
        self._ended: dict[str, asyncio.Event] = {}

    async def begin(self, replica: Replica, deadline: float | None) -> None:
        """Returns when no repeat of another unit runs there, after `LONGEST_SECONDS`, or at the
        `deadline` (seconds of the monotonic clock); it runs from then on, until `end`."""
        until = time.monotonic() + LONGEST_SECONDS
        if deadline is not None:
            until = min(until, deadline)
        while self._others(replica) and (left := until - time.monotonic()) > 0:
            ended = self._ended.setdefault(replica.server, asyncio.Event())
            try:
                async with asyncio.timeout(left):
                    await ended.wait()
            except TimeoutError:
                break
        self._running.setdefault(replica.server, Counter())[replica.target] += 1

    def end(self, replica: Replica) -> None:
        running = self._running[replica.server]
        running[replica.target] -= 1
        if running[replica.target]:
            return
        del running[replica.target]
        if not running:
            del self._running[replica.server]
        if (ended := self._ended.pop(replica.server, None)) is not None:
            ended.set()

    def _others(self, replica: Replica) -> bool:
        return any(target != replica.target for target in self._running.get(replica.server, ()))
