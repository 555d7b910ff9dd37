"""What arrives, written in a thread while more of it arrives."""

import asyncio
import contextlib
from collections.abc import Iterable
from typing import Final

from services.common.tasks import TaskScope
from services.registry.storage.blobs import Arriving

# Bytes that are hashed and written at a time, while the next ones arrive.
_WRITTEN_AT_ONCE: Final = 1 << 20


class Writer:
    """Writes chunks in a thread, one batch at a time, while the next batch is gathered."""

    def __init__(self, arriving: Arriving, tasks: TaskScope) -> None:
        self._arriving = arriving
        self._tasks = tasks
        self._gathered: list[bytes] = []
        self._size = 0
        self._writing: asyncio.Task[None] | None = None

    async def add(self, chunk: bytes) -> None:
        self._gathered.append(chunk)
        self._size += len(chunk)
        if self._size >= _WRITTEN_AT_ONCE:
            await self.flush(wait=False)

    async def flush(self, *, wait: bool = True) -> None:
        """Write what was gathered, after what is being written."""
        if self._writing is not None:
            await asyncio.shield(self._writing)
            self._writing = None
        if self._gathered:
            batch, self._gathered, self._size = self._gathered, [], 0
            work = asyncio.to_thread(self._write, batch)
            self._writing = self._tasks.start(work, awaited=True)
        if wait and self._writing is not None:
            await asyncio.shield(self._writing)

    async def settle(self) -> None:
        """Have what was gathered on disk, as far as that goes, and nothing being written."""
        await self._tasks.complete(self._settle())

    async def _settle(self) -> None:
        if self._writing is not None:
            await asyncio.wait((self._writing,))
        if self._gathered:
            with contextlib.suppress(OSError):  # whatever broke off the stream is told
                await asyncio.to_thread(self._write, self._gathered)

    def _write(self, batch: Iterable[bytes]) -> None:
        for chunk in batch:
            self._arriving.add(chunk)
