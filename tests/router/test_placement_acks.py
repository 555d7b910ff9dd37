"""When the Controller learns that nothing new is sent to a replica, and that it is drained."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager

from services.router.core.routing.routes import Replica
from services.router.core.routing.table import Change
from tests.support.controllers import TARGET, Router, Scripted, following
from tests.support.waiting import until

ON_T0 = Replica("t0", TARGET)
SILENCE = 0.3  # seconds, longer than the scripted Controller takes to hear what was sent


class Slow:
    """A listener that has to be waited for, once for each change, until it is let go."""

    def __init__(self) -> None:
        self.heard: list[Change] = []
        self.waits: list[asyncio.Future[None]] = []

    def __call__(self, change: Change | None) -> Awaitable[None] | None:
        if change is None:
            return None
        self.heard.append(change)
        self.waits.append(asyncio.get_running_loop().create_future())
        return self.waits[-1]


@asynccontextmanager
async def listening_to(*slow: Slow) -> AsyncIterator[tuple[Router, Scripted]]:
    acting = Scripted(1)
    acting.servers = {"t0": "127.0.0.1:1"}
    acting.placed = ["t0"]
    async with following(acting) as router:
        await until(lambda: acks(acting) == [1])
        for listener in slow:
            router.watch.listen(listener)
        yield router, acting


def acks(acting: Scripted) -> list[int]:
    return [ack.revision.number for ack in acting.told("ack")]


def drained(acting: Scripted) -> list[int]:
    told = [one for one in acting.told("drained") if one.replica.model == TARGET.model]
    return [one.revision.number for one in told]


async def withdraw(router: Router, acting: Scripted, slow: Slow) -> None:
    acting.placed = []
    await until(lambda: len(slow.waits) == 1)
    assert not router.watch.table.holds(ON_T0)


async def test_a_revision_is_acknowledged_once_all_listeners_go_by_it() -> None:
    one, other = Slow(), Slow()
    async with listening_to(one, other) as (router, acting):
        await withdraw(router, acting, one)
        one.waits[0].set_result(None)
        await asyncio.sleep(SILENCE)
        assert acks(acting) == [1]
        assert drained(acting) == []
        other.waits[0].set_result(None)
        await until(lambda: drained(acting))
        assert acks(acting) == [1, 2]
        kinds = [message.WhichOneof("message") for message in acting.heard]
        assert kinds.index("drained") > len(kinds) - 1 - kinds[::-1].index("ack")


async def test_revisions_are_acknowledged_in_order() -> None:
    slow = Slow()
    async with listening_to(slow) as (router, acting):
        await withdraw(router, acting, slow)
        acting.placed = ["t0"]
        await until(lambda: len(slow.waits) == 2)
        slow.waits[1].set_result(None)
        await asyncio.sleep(SILENCE)
        assert acks(acting) == [1]
        slow.waits[0].set_result(None)
        await until(lambda: acks(acting) == [1, 2, 3])
        assert drained(acting) == [], "it is back"


async def test_a_listener_that_fails_holds_nothing_up() -> None:
    slow = Slow()
    async with listening_to(slow) as (router, acting):
        await withdraw(router, acting, slow)
        slow.waits[0].set_exception(RuntimeError("the proxy is broken"))
        await until(lambda: acks(acting) == [1, 2])


async def test_what_begins_before_the_acknowledgement_drains_after_it() -> None:
    """The proxy's journal tells late of a request that it sent by the routes before."""
    slow = Slow()
    async with listening_to(slow) as (router, acting):
        await withdraw(router, acting, slow)
        router.watch.in_use.begin(ON_T0)
        router.watch.in_use.end(ON_T0)
        router.watch.in_use.begin(ON_T0)
        await asyncio.sleep(SILENCE)
        assert drained(acting) == []
        slow.waits[0].set_result(None)
        await until(lambda: acks(acting) == [1, 2])
        await asyncio.sleep(SILENCE)
        assert drained(acting) == []
        router.watch.in_use.end(ON_T0)
        await until(lambda: drained(acting) == [2])


async def test_a_controller_that_comes_back_hears_what_is_still_in_use() -> None:
    slow = Slow()
    async with listening_to(slow) as (router, acting):
        router.watch.in_use.begin(ON_T0)
        await withdraw(router, acting, slow)
        acting.frozen.set()
        await until(lambda: router.watch.acting is None)
        slow.waits[0].set_result(None)
        acting.frozen.clear()
        await until(lambda: router.follows(acting))
        await until(lambda: len(acting.told("subscribe")) > 1)
        assert [ref.server for ref in acting.told("subscribe")[-1].in_use] == ["t0"]
        assert drained(acting) == []
        slow.waits[-1].set_result(None)
        router.watch.in_use.end(ON_T0)
        await until(lambda: drained(acting))
