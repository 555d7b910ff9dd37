"""Messages as gzip or zlib write them, read within bounds.

gRPC would do that on the thread on which all connections of a server are served, and in one go: out
of 200 KiB may come 200 MiB, and nobody else is answered for the second that it takes. So Shoal's
servers tell it to leave messages as they came.
"""

import zlib
from typing import Final

# How such a message begins. As protobuf, the first is nothing, and the other a number in field 15,
# which none of our messages has.
PACKED: Final = frozenset({b"\x1f", b"\x78"})

_EITHER: Final = zlib.MAX_WBITS | 32  # gzip's header or zlib's, whichever there is
_FEED: Final = 1 << 16  # bytes; what is not used of them is copied by each read


class Packed:
    """What `message` holds, piece by piece."""

    def __init__(self, message: bytes) -> None:
        self._left = memoryview(message)
        self._reader = zlib.decompressobj(_EITHER)

    def read(self, most: int) -> bytes:
        """Of what comes next at least one byte and at `most` so many; none after the end.

        Raises zlib.error, also where the end is missing."""
        while not self._reader.eof:
            feed: bytes | memoryview = self._reader.unconsumed_tail
            if not feed:
                feed, self._left = self._left[:_FEED], self._left[_FEED:]
            if piece := self._reader.decompress(feed, most):
                return piece
            if not feed:
                raise zlib.error("incomplete data")
        return b""


def unpacked(message: bytes, limit: int) -> bytes:
    """All of it. Raises zlib.error, also where it is more than `limit` bytes."""
    reader = Packed(message)
    pieces = []
    while piece := reader.read(limit + 1):
        pieces.append(piece)
        limit -= len(piece)
        if limit < 0:
            raise zlib.error("too much data")
    return b"".join(pieces)
