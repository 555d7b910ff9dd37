"""What a call's metadata says, and what of it the next hop may see."""

from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Final, NamedTuple

EXPLAIN: Final = "x-shoal-explain"  # with any value: trailers say who answered, and why

_OWN: Final = "x-shoal-"
# Triton's control key and our own identity headers are ours alone; the rest of these belong to one
# hop only, or are set anew for the next. A content-length would be wrong for the longer message.
_STRIPPED: Final = (
    *("grpc-", "triton-grpc-protocol-", _OWN),
    *("content-length", "user-agent", "trace"),
)
SAME_CALLERS: Final = 128  # what they say is mostly what they said last time
_ENTRY_BYTES: Final = 32  # that an entry counts besides its text: RFC 9113, 6.5.2

Metadata = Collection[tuple[str, str | bytes]]
Pairs = tuple[tuple[str, str | bytes], ...]


class Said(NamedTuple):
    """`given`: all of it. `onward`: what the next hop may see. `own`: what begins with `x-shoal-`,
    by name; of several entries the first. `size`: bytes, counted as HTTP/2 does."""

    given: Pairs
    onward: Pairs
    own: Mapping[str, str | bytes]
    size: int


@lru_cache(maxsize=SAME_CALLERS)
def read(metadata: Pairs) -> Said:
    onward: list[tuple[str, str | bytes]] = []
    own: dict[str, str | bytes] = {}
    size = _ENTRY_BYTES * len(metadata)
    for entry in metadata:
        key, value = entry
        size += len(key) + len(value)
        if not key.startswith(_STRIPPED):
            onward.append(entry)
        elif key.startswith(_OWN):
            own.setdefault(key, value)
    return Said(metadata, tuple(onward), own, size)


def forwarded(metadata: Metadata) -> Pairs:
    """What the next hop may see."""
    return tuple([entry for entry in metadata if not entry[0].startswith(_STRIPPED)])
