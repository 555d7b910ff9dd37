"""Tasks that belong to one owner."""

import asyncio

import pytest
import structlog

from services.common.tasks import TaskScope


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
