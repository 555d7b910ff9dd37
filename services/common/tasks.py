"""Tasks that belong to somebody, from their start until their owner closes."""

import asyncio
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

import structlog

T = TypeVar("T")

_log = structlog.get_logger(__name__)


class TaskScope:
    """The tasks of one owner.

    Unlike an `asyncio.TaskGroup` it outlives the call that starts a task, and one that fails ends
    no other: its error is logged with the owner's name, unless whoever holds the task awaits it.

    `owner` names who started the tasks, for the log.
    """

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._tasks: dict[asyncio.Task[Any], bool] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Iterator[asyncio.Task[Any]]:
        return iter(list(self._tasks))

    def start(self, work: Coroutine[Any, Any, T], *, awaited: bool = False) -> asyncio.Task[T]:
        """Run `work` as a task and keep it until it has ended.

        `awaited` says that somebody awaits the task, who hears of its error there.
        """
        task = asyncio.create_task(work)
        self._tasks[task] = awaited
        task.add_done_callback(self._ended)
        return task

    def cancel(self) -> None:
        """Cancel what runs, without waiting for it."""
        for task in list(self._tasks):
            task.cancel()

    async def close(self, grace: float = 0.0) -> None:
        """Let tasks finish for `grace` seconds, then cancel the rest and wait until it is gone."""
        if self._tasks and grace > 0:
            await asyncio.wait(list(self._tasks), timeout=grace)
        left = list(self._tasks)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        awaited = self._tasks.pop(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None and not awaited:
            _log.error("a task failed", owner=self._owner, exc_info=error)
