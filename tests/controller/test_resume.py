"""A Router whose stream broke goes on from what it holds."""

import asyncio
from collections.abc import AsyncIterator

from shoal.controller.v1 import placement_pb2 as wire
from tests.support.controller import Alone, controller, entry

EPOCH = 7


def subscription(epoch: int = 0, number: int = 0) -> wire.WatchPlacementsRequest:
    request = wire.WatchPlacementsRequest()
    request.subscribe.router = "r1"
    if epoch:
        request.subscribe.known.epoch, request.subscribe.known.number = epoch, number
    return request


async def first(alone: Alone, request: wire.WatchPlacementsRequest) -> wire.WatchPlacementsResponse:
    async def said() -> AsyncIterator[wire.WatchPlacementsRequest]:
        yield request
        await asyncio.Event().wait()

    call = alone.stub.WatchPlacements(said())
    try:
        async with asyncio.timeout(5):
            answer = await anext(aiter(call))
    finally:
        call.cancel()
    assert isinstance(answer, wire.WatchPlacementsResponse)
    return answer


def models(response: wire.WatchPlacementsResponse) -> list[str]:
    assert response.WhichOneof("message") == "delta"
    return sorted(route.model for route in response.delta.models)


async def test_it_is_told_what_has_changed_since() -> None:
    async with controller(entries=[entry("a", 1), entry("b", 1)], epoch=EPOCH) as alone:
        told = await first(alone, subscription())
        assert told.WhichOneof("message") == "snapshot"
        known = told.revision.number
        alone.loop.catalogue.replace([entry("b", 1, 2), entry("c", 1)], ["models/a"], all_=False)
        alone.loop.catalogue_changed(["a", "b", "c"])
        again = await first(alone, subscription(EPOCH, known))
        assert models(again) == ["b", "c"]
        assert list(again.delta.removed_models) == ["a"]
        assert again.revision.number > known


async def test_it_acknowledges_though_nothing_has_changed() -> None:
    """What was withdrawn before waits for its word: a checkpoint would not be acknowledged."""
    async with controller(entries=[entry("a", 1)], epoch=EPOCH) as alone:
        told = await first(alone, subscription())
        again = await first(alone, subscription(EPOCH, told.revision.number))
        assert models(again) == []
        assert again.revision == told.revision


async def test_it_is_told_everything_by_another_controller() -> None:
    async with controller(entries=[entry("a", 1)], epoch=EPOCH) as alone:
        for epoch in (EPOCH - 1, EPOCH + 1):
            told = await first(alone, subscription(epoch, 1_000_000))
            assert told.WhichOneof("message") == "snapshot"
