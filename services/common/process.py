"""How a service's process begins and ends."""

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable

import structlog
import uvloop

from services.common import logs, telemetry
from services.common.rpc import PortTaken

EXIT_PORT_TAKEN = 75  # EX_TEMPFAIL: another program holds the port

_log = structlog.get_logger(__name__)


def run(service: str, main: Callable[[asyncio.Event], Awaitable[None]]) -> int:
    """Run `main(stop)` until it returns; SIGTERM and SIGINT set `stop`. Returns the exit status."""
    logs.configure(service)
    telemetry.configure(service)
    status = 0
    try:
        uvloop.run(_until_stopped(main))
    except* PortTaken as group:
        for error in _leaves(group):
            _log.error("cannot start", error=str(error))
        status = EXIT_PORT_TAKEN
    finally:
        telemetry.shutdown()
    return status


async def _until_stopped(main: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(NotImplementedError):
            loop.add_signal_handler(number, stop.set)
    await main(stop)


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found.extend(_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    return found
