"""Conversions that take long, beside what else there is to do."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar, TypeVarTuple

Found = TypeVar("Found")
Given = TypeVarTuple("Given")

LARGE: Final = 1 << 20  # bytes of JSON, or of what becomes JSON: some 20 ms

# One at a time: they are Python, and each would slow down all else once more.
_thread: Final = ThreadPoolExecutor(1, "json")


async def apart(size: int, convert: Callable[[*Given], Found], *given: *Given) -> Found:
    """What `convert` makes of what is `given`, `size` bytes in all. For more than LARGE a thread
    does it, which gives way to others every 5 ms, unless it is within one call of a library."""
    if size <= LARGE:
        return convert(*given)
    return await asyncio.get_running_loop().run_in_executor(_thread, convert, *given)
