"""`python -m services.embedded.collector`: receive traces until SIGTERM."""

import asyncio
import sys

import structlog

from services.common.process import run
from services.embedded.collector.server import collector
from services.embedded.collector.settings import CollectorSettings

_log = structlog.get_logger(__name__)


async def main(stop: asyncio.Event) -> None:
    settings = CollectorSettings()
    async with collector(settings) as running:
        _log.info(
            "receiving traces",
            host=settings.host,
            grpc_port=running.grpc_port,
            http_port=running.http_port,
        )
        await stop.wait()


if __name__ == "__main__":
    sys.exit(run("collector", main))
