"""The Routers that a successor has to wait for are with the Registry before they have a table."""

import asyncio
from collections.abc import Awaitable
from pathlib import Path

from services.controller.registry.followers import MOST, Followers
from services.controller.registry.lease import Lease
from shoal.registry.v1 import registry_service_pb2 as wire
from tests.support.registry import registry

TTL = 30.0  # seconds: nothing here waits for its end
SHORT = 0.2
LONG = 60.0


def followers(*names: str, patience: float = LONG) -> Followers:
    """Those of a Controller that has just taken the lease, with `names` following it."""
    found = Followers(patience)
    found.inherit(reply())
    found.current = lambda: frozenset(names)
    return found


def reply(*names: str) -> wire.HoldControllerLeaseResponse:
    kept = wire.ControllerFollowers(routers=names)
    return wire.HoldControllerLeaseResponse(epoch=2, followers=kept)


async def within(waiting: Awaitable[None]) -> None:
    async with asyncio.timeout(10):
        await waiting


async def at_once(known: Followers, router: str) -> bool:
    """Whether the Router has its table without waiting for a call."""
    waiting = asyncio.ensure_future(known.recorded(router))
    for _ in range(3):
        await asyncio.sleep(0)
    done = waiting.done()
    waiting.cancel()
    return done


async def test_a_router_gets_its_table_once_it_is_named() -> None:
    known = followers("r1")
    waiting = asyncio.create_task(known.recorded("r1"))
    await within(known.wanted(LONG))
    request = wire.HoldControllerLeaseRequest()
    names = known.name(request)
    assert list(request.followers.routers) == ["r1"]
    assert not await at_once(known, "r1"), "the Registry has not answered"
    known.named(names)
    await within(waiting)


async def test_a_router_that_was_named_before_gets_its_table_at_once() -> None:
    known = Followers(LONG)
    known.inherit(reply("r1"))
    assert known.inherited == frozenset({"r1"})
    assert await at_once(known, "r1")
    assert not await at_once(known, "r2")


async def test_nobody_is_named_while_not_all_are_known() -> None:
    known = Followers(LONG)
    known.inherit(wire.HoldControllerLeaseResponse(epoch=2))
    request = wire.HoldControllerLeaseRequest()
    assert known.name(request) is None
    assert not request.HasField("followers")
    assert await at_once(known, "r1"), "a successor waits for all"


async def test_more_routers_than_the_registry_keeps_are_not_named() -> None:
    known = followers(*map(str, range(MOST + 1)))
    request = wire.HoldControllerLeaseRequest()
    known.named(known.name(request))
    assert not request.HasField("followers")
    assert await at_once(known, "1")


async def test_a_call_that_may_have_arrived_late_counts_for_those_it_named() -> None:
    known = followers("r1")
    known.name(wire.HoldControllerLeaseRequest())  # it is not known whether it has arrived
    known.current = lambda: frozenset({"r1", "r2"})
    known.name(wire.HoldControllerLeaseRequest())
    assert not await at_once(known, "r2")
    known.named(known.name(wire.HoldControllerLeaseRequest()))
    assert await at_once(known, "r1")
    assert await at_once(known, "r2")


async def test_without_a_registry_a_router_waits_until_nobody_relies_on_the_names() -> None:
    known = followers("r1", patience=SHORT)
    await within(known.recorded("r1"))
    assert await at_once(known, "r1"), "it has waited for long enough"
    known.current = lambda: frozenset()
    known.name(wire.HoldControllerLeaseRequest())
    assert not await at_once(known, "r1"), "a later call may last longer"


async def test_a_new_incarnation_hears_who_followed_the_one_before(tmp_path: Path) -> None:
    async with registry(tmp_path) as known:
        first = Lease(known.stub, "c", "1", TTL)
        _, fence = await first.acquire()
        assert first.followers.inherited == frozenset(), "there was none before"
        first.followers.current = lambda: frozenset({"r1", "r2"})
        keeping = asyncio.create_task(first.keep(fence))
        await within(first.followers.recorded("r1"))
        keeping.cancel()
        for incarnation in ("2", "3"):
            successor = Lease(known.stub, "c", incarnation, TTL)
            await successor.acquire()
            assert successor.followers.inherited == frozenset({"r1", "r2"})
            assert await at_once(successor.followers, "r2")


async def test_a_successor_of_one_whose_lease_ran_out_knows_nobody(tmp_path: Path) -> None:
    async with registry(tmp_path) as known:
        first, second = (Lease(known.stub, name, name, TTL) for name in ("first", "second"))
        await first.acquire()
        await first.release()
        await second.acquire()
        assert second.followers.inherited is None
