"""Compressed messages (gzip or zlib), unpacked within bounds.

gRPC would unpack them in one go, on the thread that serves all of a server's connections: 200 KiB
can become 200 MiB, and nobody else is answered for the second that this takes. So Shoal's servers
have gRPC leave messages as they came.
"""

import zlib
from typing import Final

# The first byte of such a message. As protobuf, the one is invalid, and the other a number in field
# 15, which no message here has.
PACKED: Final = frozenset({b"\x1f", b"\x78"})

_EITHER: Final = zlib.MAX_WBITS | 32  # accepts gzip's header and zlib's
_FEED: Final = 1 << 16  # bytes; each read copies those that are left over


class Packed:
    """The content of a compressed message, piece by piece."""

    def __init__(self, message: bytes) -> None:
        self._left = memoryview(message)
        self._reader = zlib.decompressobj(_EITHER)

    def read(self, most: int) -> bytes:
        """Return the next 1 to `most` bytes, or none at the end.

        Raises zlib.error, also if the end is missing.
        """
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
    """Return the whole content. Raises zlib.error, also if that has more than `limit` bytes."""
    reader = Packed(message)
    pieces = []
    while piece := reader.read(limit + 1):
        pieces.append(piece)
        limit -= len(piece)
        if limit < 0:
            raise zlib.error("too much data")
    return b"".join(pieces)
