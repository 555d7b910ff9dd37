"""Requests that are sent again after a crash."""

import asyncio
import time

from services.router.core.routing.routes import Replica, Target
from services.router.servers import repeats
from services.router.servers.repeats import Repeats

ONE = Replica("t0", Target("one", 1))
OTHER = Replica("t0", Target("other", 1))


async def test_one_unit_at_a_time_and_all_of_it() -> None:
    running = Repeats()
    await running.begin(ONE, None)
    await running.begin(ONE, None)
    await running.begin(OTHER._replace(server="t1"), None)
    waiting = asyncio.create_task(running.begin(OTHER, None))
    running.end(ONE)
    await asyncio.sleep(0)
    assert not waiting.done()
    running.end(ONE)
    await asyncio.wait_for(waiting, 1)
    running.end(OTHER)
    await asyncio.wait_for(running.begin(ONE, None), 1)


async def test_nobody_waits_for_long_nor_past_the_deadline() -> None:
    running = Repeats()
    await running.begin(ONE, None)
    began = time.monotonic()
    await running.begin(OTHER, began + 0.05)
    assert 0.05 <= time.monotonic() - began < repeats.LONGEST_SECONDS
    running.end(ONE)
    running.end(OTHER)


async def test_one_who_leaves_while_waiting_leaves_nothing_behind() -> None:
    running = Repeats()
    await running.begin(ONE, None)
    waiting = asyncio.create_task(running.begin(OTHER, None))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    running.end(ONE)
    await asyncio.wait_for(running.begin(ONE, None), 1)
