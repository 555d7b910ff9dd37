"""What the metadata of a call says, and which of it goes on to the next hop."""

from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Final, NamedTuple

EXPLAIN: Final = "x-shoal-explain"  # whatever its value, trailers say who answered and why

_OWN: Final = "x-shoal-"
# Triton's control key and Shoal's identity headers must not come from callers. The others belong to
# one hop, or are set anew for the next; a content-length would be wrong for the longer message.
_STRIPPED: Final = (
    *("grpc-", "triton-grpc-protocol-", _OWN),
    *("content-length", "user-agent", "trace"),
)
SAME_CALLERS: Final = 128  # most calls repeat the metadata of an earlier one
_ENTRY_BYTES: Final = 32  # overhead of an entry, in RFC 9113, 6.5.2

Metadata = Collection[tuple[str, str | bytes]]
Pairs = tuple[tuple[str, str | bytes], ...]


class CallerMetadata(NamedTuple):
    """The metadata of a call as its caller sent it."""

    #: All entries.
    pairs: Pairs
    #: The entries for the next hop.
    onward: Pairs
    #: The first entry of each name that begins with `x-shoal-`.
    shoal: Mapping[str, str | bytes]
    #: Bytes, counted as HTTP/2 does.
    size: int


@lru_cache(maxsize=SAME_CALLERS)
def read_metadata(metadata: Pairs) -> CallerMetadata:
    """Sort the metadata of a call."""
    onward: list[tuple[str, str | bytes]] = []
    shoal: dict[str, str | bytes] = {}
    size = _ENTRY_BYTES * len(metadata)
    for entry in metadata:
        key, value = entry
        size += len(key) + len(value)
        if not key.startswith(_STRIPPED):
            onward.append(entry)
        elif key.startswith(_OWN):
            shoal.setdefault(key, value)
    return CallerMetadata(metadata, tuple(onward), shoal, size)


def forwarded(metadata: Metadata) -> Pairs:
    """Return the entries for the next hop."""
    return tuple([entry for entry in metadata if not entry[0].startswith(_STRIPPED)])
