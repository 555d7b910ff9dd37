"""How a service's process starts and ends."""

import asyncio
import contextlib
import gc
import signal
from collections.abc import Awaitable, Callable

import structlog
import uvloop
from prometheus_client import REGISTRY
from pydantic import ValidationError

from services.common import logs, metrics, telemetry
from services.common.ports import PortTaken
from services.common.variables import BadVariable

EXIT_PORT_TAKEN = 75  # EX_TEMPFAIL: another program holds the port
EXIT_BAD_SETTINGS = 78  # EX_CONFIG


class Failed(Exception):
    """The process is to end with `status`; the reason has been logged."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


_log = structlog.get_logger(__name__)


def run(service: str, main: Callable[[asyncio.Event], Awaitable[None]]) -> int:
    """Run `main(stop)` until it returns; SIGTERM and SIGINT set `stop`. Returns the exit status."""
    try:
        logs.configure(service)
        telemetry.configure(service)
    except BadVariable as error:
        _log.error("cannot start", error=str(error))
        return EXIT_BAD_SETTINGS
    status = 0
    try:
        uvloop.run(_until_stopped(main))
    except* PortTaken as group:
        _say_why(group)
        status = EXIT_PORT_TAKEN
    except* ValidationError as group:
        _say_why(group)
        status = EXIT_BAD_SETTINGS
    except* Failed as group:
        status = next(error.status for error in _leaves(group) if isinstance(error, Failed))
    finally:
        telemetry.shutdown()
    # Before it exits, Python scans all objects once more, for up to a second, unless frozen.
    gc.freeze()
    return status


def _say_why(group: BaseExceptionGroup[BaseException]) -> None:
    for error in _leaves(group):
        _log.error("cannot start", error=str(error))


async def _until_stopped(main: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(NotImplementedError):
            loop.add_signal_handler(number, stop.set)
    REGISTRY.register(metrics.PythonObjects(loop))
    await main(stop)


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found.extend(_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    return found
