"""An HTTP request's body, unpacked within a limit."""

import zlib
from collections.abc import AsyncIterator
from typing import Final

_WITH_ANY_HEADER: Final = zlib.MAX_WBITS | 32  # accepts gzip's header and zlib's
ENCODINGS: Final = ("", "identity", "gzip", "deflate")


class TooLarge(Exception):
    """The body is larger than the limit, packed or unpacked."""


class BadEncoding(ValueError):
    """The body does not match its Content-Encoding, or that is unknown."""


async def read(chunks: AsyncIterator[bytes], encoding: str, limit: int) -> bytes:
    """Read a whole body of at most `limit` bytes. Raises TooLarge, BadEncoding."""
    if encoding not in ENCODINGS:
        raise BadEncoding(f"Content-Encoding {encoding!r} is unknown: use gzip, deflate or none")
    packed = bytearray()
    async for chunk in chunks:
        packed += chunk
        if len(packed) > limit:
            raise TooLarge(f"the body has more than {limit} bytes")
    if encoding in ("", "identity"):
        return bytes(packed)
    return _unpacked(bytes(packed), encoding, limit)


def _unpacked(packed: bytes, encoding: str, limit: int) -> bytes:
    unpacker = zlib.decompressobj(_WITH_ANY_HEADER)
    try:
        body = unpacker.decompress(packed, limit + 1)
    except zlib.error as error:
        raise BadEncoding(f"the body is not valid {encoding}: {error}") from error
    if len(body) > limit:
        raise TooLarge(f"the unpacked body has more than {limit} bytes")
    if not unpacker.eof:
        raise BadEncoding(f"the body is not valid {encoding}: it ends too early")
    return body
