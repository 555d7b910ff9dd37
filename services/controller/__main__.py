"""`python -m services.controller`: settings from the environment, until SIGTERM."""

import asyncio
import sys
from typing import Final

import structlog

from services.common import process
from services.controller.assembly import running
from services.controller.registry.lease import LeaseLost
from services.controller.settings import Settings

EXIT_LEASE_LOST: Final = 69  # EX_UNAVAILABLE: another Controller acts

_log = structlog.get_logger(__name__)


async def main(stop: asyncio.Event) -> None:
    try:
        async with running(Settings()):
            await stop.wait()
    except* LeaseLost as lost:
        _log.error("another controller acts, start this one again", cause=_cause(lost))
        raise process.Failed(EXIT_LEASE_LOST) from None


def _cause(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error)


if __name__ == "__main__":
    sys.exit(process.run("controller", main))
