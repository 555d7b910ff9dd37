"""The metadata of calls to servers, in the form that gRPC wants."""

from collections.abc import Iterator
from functools import lru_cache

import grpc

from services.router.core.routing.metadata import SAME_CALLERS, Pairs


class SharedMetadata(grpc.aio.Metadata):
    """Metadata shared by all calls with the same entries.

    gRPC makes such an object for each call from whatever it is given, even from nothing, but takes
    this one as it is."""

    def __init__(self, pairs: Pairs) -> None:
        super().__init__(*pairs)
        self._pairs = pairs

    def __bool__(self) -> bool:
        return True  # gRPC replaces metadata that is false

    def __len__(self) -> int:
        return len(self._pairs)

    def __iter__(self) -> Iterator[tuple[str, str | bytes]]:
        return iter(self._pairs)


@lru_cache(maxsize=SAME_CALLERS)
def shared_metadata(pairs: Pairs) -> SharedMetadata:
    """Return the metadata object for these entries."""
    return SharedMetadata(pairs)
