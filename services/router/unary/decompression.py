"""Decompresses requests without keeping others waiting."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from services.common.packed import Packed
from services.router.admission.memory import Reservation
from services.router.core.errors import MessageTooLarge

INLINE: Final = 1 << 16  # bytes of output; beyond that, a thread decompresses
PIECE: Final = 1 << 20  # bytes at a time, so that several requests take turns

_thread: Final = ThreadPoolExecutor(1, "unpacking")


async def decompressed(message: bytes, limit: int, reservation: Reservation) -> bytes:
    """Return a `message` that was compressed with gzip or zlib. `reservation` grows by its size.

    Raises zlib.error, MessageTooLarge beyond `limit` bytes, and MemoryTaken."""
    loop = asyncio.get_running_loop()
    reader = Packed(message)
    pieces: list[bytes] = []
    size = 0
    while piece := (
        reader.read(INLINE)
        if size < INLINE
        else await loop.run_in_executor(_thread, reader.read, PIECE)
    ):
        size += len(piece)
        if size > limit:
            raise MessageTooLarge(size=f"more than {limit}", limit=limit)
        reservation.grow(len(piece))
        pieces.append(piece)
    if size <= INLINE:
        return b"".join(pieces)
    return await loop.run_in_executor(_thread, b"".join, pieces)
