"""Waiting for what others do, where nothing tells of it."""

import asyncio
import time
from collections.abc import Callable

POLL_SECONDS = 0.02
SOON = 10.0  # seconds


def wait_until(holds: Callable[[], object], seconds: float, what: str) -> None:
    """Until `holds()` is true. Raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds} s: {what}")
        time.sleep(POLL_SECONDS)


async def until(holds: Callable[[], object]) -> None:
    """Until `holds()` is true, which is a state of many parts. Raises TimeoutError."""
    async with asyncio.timeout(SOON):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(POLL_SECONDS)
