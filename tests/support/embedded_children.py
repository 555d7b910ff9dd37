"""Small real programs for the supervisor to run, and a record of what it reports."""

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path

from services.embedded.part import Event, Part, State

# Prints that it runs, and continues until it is ended.
SERVE = """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
print("up", flush=True)
signal.sigwait({signal.SIGTERM})
print("bye", flush=True)
"""
HANG = """
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("up", flush=True)
while True:
    signal.pause()
"""
DEADLINE_S = 20.0


def part(
    folder: Path,
    name: str,
    code: str = SERVE,
    *,
    says: str = "up",
    start_within: float = DEADLINE_S,
    stop_within: float = DEADLINE_S,
    leftovers: Callable[[int], None] = lambda pid: None,
) -> Part:
    """Return a part that is ready once this process of it has printed `says`."""
    log = folder / f"{name}.log"
    seen = 0

    async def ready() -> None:
        nonlocal seen
        while (count := _count(log, says)) <= seen:  # noqa: ASYNC110  another process writes it
            await asyncio.sleep(0.01)
        seen = count

    return Part(
        name=name,
        command=(sys.executable, "-c", code),
        environment={**os.environ, "PYTHONUNBUFFERED": "1"},
        log=log,
        ready=ready,
        start_within=start_within,
        stop_within=stop_within,
        leftovers=leftovers,
    )


def _count(log: Path, line: str) -> int:
    return log.read_text().splitlines().count(line) if log.exists() else 0


class Told:
    """The events so far; `reached` waits for one."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._news = asyncio.Event()

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        self._news.set()

    def of(self, name: str, state: State) -> list[Event]:
        return [event for event in self.events if (event.part, event.state) == (name, state)]

    async def reached(self, name: str, state: State, times: int = 1) -> Event:
        async with asyncio.timeout(DEADLINE_S):
            while len(found := self.of(name, state)) < times:
                self._news.clear()
                await self._news.wait()
        return found[times - 1]
