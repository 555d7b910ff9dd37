"""`python -m services.registry`: run a Registry, set by its environment, until SIGTERM."""

import asyncio
import sys

from services.common import process
from services.registry.assembly import running
from services.registry.settings import RegistrySettings


async def main(stop: asyncio.Event) -> None:
    async with running(RegistrySettings()):
        await stop.wait()


if __name__ == "__main__":
    sys.exit(process.run("registry", main))
