"""Several Router processes on one port: the parent that starts them and keeps them running.

The kernel spreads connections over the processes that listen on a port with SO_REUSEPORT. Any
program of the same user could join them. The parent therefore first makes sure that nobody listens,
and then keeps the port bound, without listening, while workers come and go.

Each worker reads a pipe from its parent. A line is the number of live workers; the end of the pipe
is the end of the parent."""

import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import structlog
from prometheus_client import Gauge

from services.common import process, programs
from services.common.ports import reserve
from services.router.settings import Settings
from services.router.waiting import within

FIRST_DELAY: Final = 0.5  # seconds before a dead worker is restarted; doubles each time
MAX_DELAY: Final = 30.0
STEADY_SECONDS: Final = 5.0  # of life, after which a death counts as the first
KILL_AFTER: Final = 3.0  # seconds after the workers' own drain and grace

# Exit statuses that a restarted worker would end with again.
_FINAL: Final = frozenset({process.EXIT_PORT_TAKEN, process.EXIT_BAD_SETTINGS})

ALIVE: Final = Gauge("shoal_router_workers", "Processes that share this Router's ports.")
ALIVE.set(1)

_LONGEST_SOCKET_PATH: Final = 107  # bytes; unix(7)
_SHORT_TMP: Final = "/tmp"  # noqa: S108  the folder in it has a random name and is ours alone

_log = structlog.get_logger(__name__)


class Workers:
    """The worker processes of one Router."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._alive: dict[int, asyncio.subprocess.Process] = {}
        self._stopping = asyncio.Event()
        self._failed: int | None = None

    async def run(self, stop: asyncio.Event) -> None:
        """Run the workers until `stop` is set. Raises PortTaken, OSError, process.Failed."""
        settings = self._settings
        with ExitStack() as stack:
            grpc_port = stack.enter_context(reserve(settings.own_host, settings.grpc_port))
            http_port = stack.enter_context(reserve(settings.own_host, settings.http_port))
            folder = stack.enter_context(socket_folder(settings.workers))
            environment = {
                "SHOAL_ROUTER_GRPC_PORT": str(grpc_port.getsockname()[1]),
                "SHOAL_ROUTER_HTTP_PORT": str(http_port.getsockname()[1]),
                "SHOAL_ROUTER_WORKER_SOCKETS": str(folder),
            }
            async with asyncio.TaskGroup() as tasks:
                for index in range(settings.workers):
                    tasks.create_task(self._keep_running(index, environment))
                await _first_set(stop, self._stopping)
                self._stopping.set()
                await self._stop_all()
        if self._failed is not None:
            raise process.Failed(self._failed)

    async def _keep_running(self, index: int, environment: dict[str, str]) -> None:
        """Run one worker, restarting it until the end."""
        delay = FIRST_DELAY
        while not self._stopping.is_set():
            began = time.monotonic()
            status = await self._run_once(index, environment)
            if self._stopping.is_set():
                return
            if status in _FINAL:
                self._failed = status
                self._stopping.set()
                return
            if time.monotonic() - began > STEADY_SECONDS:
                delay = FIRST_DELAY
            _log.error("worker died, restarting it", worker=index, status=status, delay=delay)
            await within(delay, self._stopping.wait())
            delay = min(MAX_DELAY, 2 * delay)

    async def _run_once(self, index: int, environment: dict[str, str]) -> int:
        """Run a worker until it ends. Returns its exit status, negative for a signal."""
        child = await asyncio.create_subprocess_exec(
            *programs.module("services.router"),
            env={
                **programs.environment(os.environ),
                **environment,
                "SHOAL_ROUTER_WORKER": str(index),
            },
            stdin=asyncio.subprocess.PIPE,
        )
        self._alive[index] = child
        self._tell_count()
        try:
            return await child.wait()
        finally:
            if child.returncode is None:
                child.kill()
            del self._alive[index]
            self._tell_count()

    def _tell_count(self) -> None:
        """Tell all workers how many of them are alive."""
        for child in self._alive.values():
            if child.stdin is not None and not child.stdin.is_closing():
                child.stdin.write(b"%d\n" % len(self._alive))

    async def _stop_all(self) -> None:
        """Ask all workers to stop, and kill those that do not in time."""
        for child in self._alive.values():
            child.send_signal(signal.SIGTERM)
        try:
            settings = self._settings
            async with asyncio.timeout(settings.drain + settings.stop_grace + KILL_AFTER):
                for child in list(self._alive.values()):
                    await child.wait()
        except TimeoutError:
            for child in self._alive.values():
                child.kill()


async def follow_parent(stop: asyncio.Event, counted: Callable[[int], None]) -> None:
    """Tell `counted` how many workers are alive, and set `stop` when the parent is gone. Runs in a
    worker."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        alive = int(line)
        ALIVE.set(alive)
        counted(alive)
    stop.set()


@contextmanager
def socket_folder(workers: int) -> Iterator[Path]:
    """Make a folder for the workers' sockets. Where the paths in TMPDIR would be too long for
    sockets, it is in /tmp."""
    for parent in (None, _SHORT_TMP):
        with tempfile.TemporaryDirectory(prefix="shoal-router-", dir=parent) as made:
            folder = Path(made)
            longest = socket_of(folder, workers)
            if parent is not None or len(os.fsencode(longest)) <= _LONGEST_SOCKET_PATH:
                yield folder
                return


def socket_of(folder: Path, worker: int) -> Path:
    """Return the socket on which a worker answers the others."""
    return folder / f"{worker}.sock"


async def _first_set(*events: asyncio.Event) -> None:
    """Return when the first of the events is set."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
