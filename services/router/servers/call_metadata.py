"""The metadata of calls to servers, as gRPC wants it."""

from collections.abc import Iterator
from functools import lru_cache

import grpc

from services.router.core.routing.metadata import SAME_CALLERS, Pairs


class Onward(grpc.aio.Metadata):
    """gRPC makes such an object for each call, of whatever it is given and also of nothing; but
    this one it takes as it is. So that all calls that say the same can have one."""

    def __init__(self, pairs: Pairs) -> None:
        super().__init__(*pairs)
        self._pairs = pairs

    def __bool__(self) -> bool:
        return True  # what is false gRPC replaces

    def __len__(self) -> int:
        return len(self._pairs)

    def __iter__(self) -> Iterator[tuple[str, str | bytes]]:
        return iter(self._pairs)


@lru_cache(maxsize=SAME_CALLERS)
def onward(pairs: Pairs) -> Onward:
    return Onward(pairs)
