"""Work that goes on when whoever asked for it has gone, and who waits for its end."""

import asyncio

import pytest

from services.registry.completion import finish, finished

SOON = 10.0  # seconds


async def abandoned(work: asyncio.Event) -> "asyncio.Task[bool]":
    """A call whose caller has gone in the middle of its work."""
    call = asyncio.create_task(finish(work.wait()))
    await asyncio.sleep(0)  # it has begun
    call.cancel()
    await asyncio.sleep(0)
    assert not call.done()
    return call


async def test_who_stops_waits_for_what_calls_have_left_behind() -> None:
    work = asyncio.Event()
    call = await abandoned(work)
    stopping = asyncio.create_task(finished(SOON))
    await asyncio.sleep(0)
    assert not stopping.done()
    work.set()
    async with asyncio.timeout(SOON):
        await stopping
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_but_not_for_ever() -> None:
    work = asyncio.Event()
    call = await abandoned(work)
    await finished(0.01)
    assert not call.done()
    work.set()
    await finished(SOON)
    await asyncio.gather(call, return_exceptions=True)


async def test_without_any_there_is_no_wait() -> None:
    async with asyncio.timeout(0.1):
        await finished(SOON)
