"""Tasks that belong to one owner."""

import asyncio

import pytest
import structlog

from services.common.tasks import TaskScope

SOON = 10.0  # seconds


async def wait_for_ever() -> None:
    await asyncio.Event().wait()


async def fail() -> None:
    raise RuntimeError("it broke")


async def test_close_cancels_what_still_runs() -> None:
    scope = TaskScope("test")
    task = scope.start(wait_for_ever())
    assert len(scope) == 1
    await scope.close()
    assert task.cancelled()
    assert len(scope) == 0


async def test_close_lets_what_is_nearly_done_finish() -> None:
    scope, begun = TaskScope("test"), asyncio.Event()

    async def answer() -> int:
        await begun.wait()
        return 7

    task = scope.start(answer())
    asyncio.get_running_loop().call_soon(begun.set)
    await scope.close(grace=10)
    assert task.result() == 7


async def test_an_error_is_logged_with_its_owner() -> None:
    scope = TaskScope("somebody")
    with structlog.testing.capture_logs() as logs:
        await asyncio.wait([scope.start(fail())])
    (line,) = logs
    assert (line["event"], line["owner"]) == ("a task failed", "somebody")
    assert isinstance(line["exc_info"], RuntimeError)


async def test_an_error_that_is_awaited_is_not_logged() -> None:
    scope = TaskScope("somebody")
    with structlog.testing.capture_logs() as logs, pytest.raises(RuntimeError, match="it broke"):
        await scope.start(fail(), awaited=True)
    assert logs == []


async def test_one_that_fails_ends_no_other() -> None:
    scope = TaskScope("somebody")
    other = scope.start(wait_for_ever())
    with structlog.testing.capture_logs(), pytest.raises(RuntimeError):
        await scope.start(fail())
    assert not other.done()
    await scope.close()


# --- work that is brought to its end --------------------------------------------------------------


async def abandoned(scope: TaskScope, work: asyncio.Event) -> "asyncio.Task[bool]":
    """A call whose caller has gone in the middle of its work."""
    call = asyncio.create_task(scope.complete(work.wait()))
    await asyncio.sleep(0)  # it has begun
    call.cancel()
    await asyncio.sleep(0)
    assert not call.done()
    return call


async def test_close_waits_for_what_calls_have_left_behind() -> None:
    scope, work = TaskScope("test"), asyncio.Event()
    call = await abandoned(scope, work)
    stopping = asyncio.create_task(scope.close(SOON))
    await asyncio.sleep(0)
    assert not stopping.done()
    work.set()
    async with asyncio.timeout(SOON):
        await stopping
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_but_not_for_ever() -> None:
    scope = TaskScope("test")
    call = await abandoned(scope, asyncio.Event())
    await scope.close(0.01)
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_without_any_close_does_not_wait() -> None:
    async with asyncio.timeout(0.1):
        await TaskScope("test").close(SOON)


async def test_completed_work_returns_or_raises() -> None:
    scope, done = TaskScope("test"), asyncio.Event()
    done.set()
    assert await scope.complete(done.wait())
    with structlog.testing.capture_logs() as logs, pytest.raises(RuntimeError, match="it broke"):
        await scope.complete(fail())
    assert logs == []
