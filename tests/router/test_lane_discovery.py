"""What proxies are told of their configuration, and in which order."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from services.router.lane.discovery import Discovery
from services.router.lane.resources import CLUSTER, LISTENER, ROUTES
from tests.support.grpc_servers import listening
from tests.support.lane_proxy import KINDS, proxy
from tests.support.waiting import until


@asynccontextmanager
async def serving(discovery: Discovery) -> AsyncIterator[str]:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((discovery.handlers(),))
    async with listening(server) as address:
        yield address


def offered(*kinds: str) -> Discovery:
    discovery = Discovery()
    for kind in kinds or KINDS:
        offer(discovery, kind, b"first")
    return discovery


def offer(discovery: Discovery, kind: str, content: bytes) -> int:
    return discovery.offer(kind, lambda: {"a": content, "b": content + b" b"})


async def test_clusters_come_first_and_the_rest_once_they_are_accepted() -> None:
    async with serving(offered()) as address, proxy(address, accepting=False) as one:
        await one.subscribe(CLUSTER, ROUTES, LISTENER)
        await one.until_told(1)
        await one.silent()
        assert one.kinds() == [CLUSTER]
        await one.accept(one.told[0])
        await one.until_told(3)
        assert one.kinds() == [CLUSTER, LISTENER, ROUTES]


async def test_one_answer_is_outstanding_and_only_the_newest_follows_it() -> None:
    discovery = offered()
    async with serving(discovery) as address, proxy(address, accepting=False) as one:
        await one.subscribe(ROUTES)
        await one.until_told(1)
        for content in (b"second", b"third", b"fourth"):
            offer(discovery, ROUTES, content)
        await one.silent()
        assert len(one.told) == 1
        await one.accept(one.told[0])
        await one.until_told(2)
        assert one.last(ROUTES) == [b"fourth", b"fourth b"]
        assert not discovery.current(ROUTES)
        await one.accept(one.told[1])
        await until(lambda: discovery.current(ROUTES))


async def test_what_is_refused_is_not_sent_again_until_it_changes() -> None:
    discovery = offered()
    async with serving(discovery) as address, proxy(address, accepting=False) as one:
        await one.subscribe(ROUTES)
        await one.until_told(1)
        await one.refuse(one.told[0], "it is wrong")
        await until(lambda: discovery.refused == 1)
        await one.silent()
        assert len(one.told) == 1
        assert not discovery.current(ROUTES)
        offer(discovery, ROUTES, b"right")
        await one.until_told(2)
        await one.accept(one.told[1])
        await until(lambda: discovery.current(ROUTES))


async def test_clusters_that_were_refused_hold_nothing_up() -> None:
    discovery = offered()
    async with serving(discovery) as address, proxy(address, accepting=False) as one:
        await one.subscribe(CLUSTER)
        await one.until_told(1)
        await one.subscribe(ROUTES)
        await one.silent()
        assert one.kinds() == [CLUSTER]
        await one.refuse(one.told[0], "it is wrong")
        await one.until_told(2)
        assert one.kinds() == [CLUSTER, ROUTES]


async def test_only_the_resources_that_are_asked_for_are_sent() -> None:
    discovery = offered()
    async with serving(discovery) as address, proxy(address, accepting=False) as one:
        await one.subscribe(ROUTES, names=["b"])
        await one.until_told(1)
        assert one.last(ROUTES) == [b"first b"]
        await one.accept(one.told[0], names=["a", "b"])
        await one.until_told(2)
        assert one.last(ROUTES) == [b"first", b"first b"]


async def test_an_answer_to_what_was_overtaken_counts_for_nothing() -> None:
    discovery = offered()
    async with serving(discovery) as address, proxy(address, accepting=False) as one:
        await one.subscribe(ROUTES)
        await one.until_told(1)
        await one.accept(one.told[0])
        offer(discovery, ROUTES, b"second")
        await one.until_told(2)
        await one.accept(one.told[0])
        await one.silent()
        assert not discovery.current(ROUTES)


async def test_everything_is_current_once_all_proxies_have_accepted_it() -> None:
    discovery = offered()
    assert discovery.current(ROUTES), "nobody is there"
    async with serving(discovery) as address, proxy(address, "one") as one:
        await one.subscribe(*KINDS)
        await one.until_told(3)
        async with proxy(address, "other", accepting=False) as other:
            await other.subscribe(ROUTES)
            await other.until_told(1)
            await until(lambda: len(discovery) == 2)
            assert not discovery.current(ROUTES)
            await other.accept(other.told[0])
            await until(lambda: discovery.current(ROUTES))
            offer(discovery, ROUTES, b"second")
            await other.until_told(2)
            assert not discovery.current(ROUTES)
        await until(lambda: len(discovery) == 1 and discovery.current(ROUTES))


async def test_a_proxy_that_comes_back_is_told_everything_again() -> None:
    discovery = offered()
    async with serving(discovery) as address:
        for _ in range(2):
            async with proxy(address) as one:
                await one.subscribe(*KINDS)
                await one.until_told(3)
                assert sorted(one.kinds()) == sorted(KINDS)
            await until(lambda: len(discovery) == 0)
