"""Repeats of requests after a server broke off with them: one version at a time on each server.

When a server crashes, most of the requests it had are innocent. If all were repeated on the same
server at once, the request that crashed the first server would crash the second as well, and use up
the others' only repeat, and nobody could tell which request it was."""

import asyncio
import time
from collections import Counter
from typing import Final

from services.router.core.routing.routes import Replica, Target
from services.router.waiting import within

LONGEST_SECONDS: Final = 2.0  # that a slow model's repeat may keep others waiting


class Repeats:
    """The repeats that run now, by server."""

    def __init__(self) -> None:
        self._running: dict[str, Counter[Target]] = {}
        self._ended: dict[str, asyncio.Event] = {}

    async def begin(self, replica: Replica, deadline: float | None) -> None:
        """Start a repeat once none of another version runs on that server, or after
        `LONGEST_SECONDS`, or at the `deadline` (seconds of the monotonic clock). It runs until
        `end`."""
        until = time.monotonic() + LONGEST_SECONDS
        if deadline is not None:
            until = min(until, deadline)
        while self._others(replica) and (left := until - time.monotonic()) > 0:
            ended = self._ended.setdefault(replica.server, asyncio.Event())
            if not await within(left, ended.wait()):
                break
        self._running.setdefault(replica.server, Counter())[replica.target] += 1

    def end(self, replica: Replica) -> None:
        """End a repeat."""
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
