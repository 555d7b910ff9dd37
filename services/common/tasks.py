"""Tasks that belong to an owner, from their start until the owner closes."""

import asyncio
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

import structlog

T = TypeVar("T")

_log = structlog.get_logger(__name__)


class TaskScope:
    """The tasks of one owner, whose name is logged with their errors.

    Unlike an `asyncio.TaskGroup`, it outlives the call that starts a task, and a task that fails
    ends no other. Its error is logged, unless somebody awaits the task.
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

        With `awaited`, whoever awaits the task gets its error, and it is not logged.
        """
        task = asyncio.create_task(work)
        self._tasks[task] = awaited
        task.add_done_callback(self._ended)
        return task

    def cancel(self) -> None:
        """Cancel what runs, without waiting for it."""
        for task in list(self._tasks):
            task.cancel()

    async def complete(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` to its end, even if the caller is cancelled meanwhile; return its result.

        The cancellation takes effect once the work is done. A gRPC call whose client has gone is
        cancelled wherever it stands, which could leave a commit without its publication, or a
        thread that goes on writing after its lock was released.
        """
        task = self.start(work, awaited=True)
        cancelled: asyncio.CancelledError | None = None
        while not task.done():
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError as error:
                if task.cancelled():
                    raise
                cancelled = error
            except Exception:
                break  # the task's own error, which its result raises
        if cancelled is not None:
            raise cancelled
        return task.result()

    async def close(self, grace: float = 0.0) -> None:
        """Let tasks finish for `grace` seconds, then cancel the rest and wait for their end."""
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
