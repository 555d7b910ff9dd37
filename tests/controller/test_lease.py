"""The right to act: when a Controller stops by itself, and who is given it next."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from services.controller.core import events as ev
from services.controller.loop import EngineLoop
from services.controller.registry.lease import MARGIN, PAUSE, Fence, Lease, LeaseLost
from shoal.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from tests.support.registry import Registry, registry

TTL = 10.0
SHORT = 0.3  # seconds, where a real Registry keeps the time


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def fence(clock: Clock) -> Fence:
    fence = Fence(TTL, clock)
    fence.granted(clock.now)
    return fence


def live(fence: Fence, clock: Clock, seconds: float) -> list[bool]:
    """Let the process run for so long, and look ten times a second."""
    seen = []
    for _ in range(round(seconds * 10)):
        clock.now += 0.1
        seen.append(fence.is_open())
    return seen


# --- the fence ------------------------------------------------------------------------------------


def test_without_a_ttl_it_is_always_open() -> None:
    assert Fence().is_open()


def test_it_closes_a_margin_before_the_lease_ends(fence: Fence, clock: Clock) -> None:
    certain = TTL * (1 - MARGIN)
    assert all(live(fence, clock, certain - 0.1))
    assert not any(live(fence, clock, 1.0))


def test_it_closes_at_the_first_look_after_a_pause(fence: Fence, clock: Clock) -> None:
    clock.now += 3 * TTL
    assert not fence.is_open()


def test_a_pause_within_the_lease_is_none(fence: Fence, clock: Clock) -> None:
    clock.now += TTL * PAUSE + 1
    assert fence.is_open()


def test_it_stays_open_while_the_registry_is_away(fence: Fence, clock: Clock) -> None:
    assert all(live(fence, clock, 3.0))
    fence.unanswered()
    assert all(live(fence, clock, 5 * TTL))


def test_a_pause_while_the_registry_is_away_closes_it(fence: Fence, clock: Clock) -> None:
    fence.unanswered()
    assert all(live(fence, clock, 2 * TTL))
    clock.now += TTL * PAUSE + 0.1
    assert not fence.is_open()
    fence.unanswered()
    assert not any(live(fence, clock, TTL)), "only an answer opens it"
    fence.granted(clock.now)
    assert fence.is_open()


def test_a_question_that_failed_across_the_pause_does_not_open_it(
    fence: Fence, clock: Clock
) -> None:
    clock.now += 3 * TTL
    fence.unanswered()
    assert not any(live(fence, clock, 1.0))


def test_an_answer_from_before_the_pause_does_not_open_it(fence: Fence, clock: Clock) -> None:
    asked = clock.now
    clock.now += 3 * TTL
    fence.granted(asked)
    assert not fence.is_open()
    fence.granted(asked)
    assert not fence.is_open()


def test_a_later_epoch_closes_it_while_the_registry_is_away(fence: Fence, clock: Clock) -> None:
    fence.overtaken()
    assert fence.is_open(), "the Registry would have said so"
    fence.unanswered()
    fence.overtaken()
    assert not any(live(fence, clock, TTL))
    fence.granted(clock.now)
    assert fence.is_open()


async def test_who_waits_goes_on_once_it_is_open(fence: Fence, clock: Clock) -> None:
    clock.now += 3 * TTL
    waiting = asyncio.create_task(fence.wait_open())
    await asyncio.sleep(0)
    assert not waiting.done()
    fence.granted(clock.now)
    async with asyncio.timeout(5):
        await waiting


# --- the lease ------------------------------------------------------------------------------------


@pytest.fixture
async def known(tmp_path: Path) -> AsyncIterator[Registry]:
    async with registry(tmp_path) as running:
        yield running


async def keeping_ends(lease: Lease, fence: Fence) -> str:
    """Why `lease` cannot be kept."""
    with pytest.raises(LeaseLost) as lost:
        async with asyncio.timeout(10):
            await lease.keep(fence)
    return str(lost.value)


async def test_the_next_one_acts_when_the_first_lets_go(known: Registry) -> None:
    first, second = (Lease(known.stub, name, name, TTL) for name in ("first", "second"))
    epoch, fence = await first.acquire()
    assert fence.is_open()
    waiting = asyncio.create_task(second.acquire())
    async with asyncio.timeout(10):
        while second.held_by != "first":  # noqa: ASYNC110  (told by the Registry's answer alone)
            await asyncio.sleep(0.01)
    assert "first has the controller lease" in second.waits_for
    await first.release()
    async with asyncio.timeout(TTL / 2):
        assert (await waiting)[0] == epoch + 1


async def test_one_that_was_replaced_ends(known: Registry) -> None:
    first, second = (Lease(known.stub, name, name, SHORT) for name in ("first", "second"))
    _, fence = await first.acquire()
    _, seconds = await second.acquire()
    keeper = asyncio.create_task(second.keep(seconds))
    assert "second" in await keeping_ends(first, fence)
    assert not keeper.done()
    keeper.cancel()


async def test_one_that_was_replaced_by_one_that_is_gone_ends(known: Registry) -> None:
    first, second = (Lease(known.stub, name, name, SHORT) for name in ("first", "second"))
    epoch, fence = await first.acquire()
    await second.acquire()
    await second.release()
    assert f"others acted since epoch {epoch}" in await keeping_ends(first, fence)


async def test_one_whose_lease_ran_out_untaken_goes_on(known: Registry) -> None:
    lease = Lease(known.stub, "first", "first", SHORT)
    _, fence = await lease.acquire()
    await asyncio.sleep(2 * SHORT)  # as a process does that was stopped
    assert not fence.is_open()
    keeper = asyncio.create_task(lease.keep(fence))
    async with asyncio.timeout(10):
        await fence.wait_open()
    assert not keeper.done()
    keeper.cancel()


async def test_one_on_standby_says_when_it_cannot_ask() -> None:
    async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
        lease = Lease(RegistryServiceStub(channel), "first", "first", TTL)
        waiting = asyncio.create_task(lease.acquire())
        async with asyncio.timeout(10):
            while "the Registry does not say who has" not in lease.waits_for:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert not waiting.done()
        waiting.cancel()


# --- the loop behind the fence --------------------------------------------------------------------


class Heard:
    """Where the engine is: what it was told, in order."""

    def __init__(self) -> None:
        self.events: list[ev.Event] = []

    def handle(self, event: ev.Event, now: float) -> list[ev.Instruction]:
        self.events.append(event)
        return []

    def next_wake(self) -> None:
        return None


async def test_events_wait_in_order_while_the_fence_is_closed(fence: Fence, clock: Clock) -> None:
    heard: Any = Heard()
    nothing: Any = None
    loop = EngineLoop(heard, nothing, nothing, nothing, nothing, nothing, nothing, fence=fence)
    joined, gone = ev.RouterJoined("r", frozenset()), ev.WaiterGone(1)
    loop.feed(joined)
    clock.now += 3 * TTL
    lost = ev.ServerLost("t0", "it is gone", True)
    loop.feed(gone)
    loop.feed(ev.RouterAcked("r", 1))
    loop.feed(lost)
    assert heard.events == [joined]
    fence.granted(clock.now)
    loop.feed(gone)
    assert heard.events == [joined, gone, ev.RouterAcked("r", 1), lost, gone]
