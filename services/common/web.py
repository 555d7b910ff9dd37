"""An HTTP server inside a service's process."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

import uvicorn
from starlette.types import ASGIApp

from services.common.http1 import HttpLimits, protocol

GRACE_SECONDS: Final = 2


@asynccontextmanager
async def serving(
    app: ASGIApp, listener: socket.socket, limits: HttpLimits | None = None
) -> AsyncIterator[None]:
    """Serve `app` on `listener` inside the `async with`, then let running requests finish."""
    limits = limits or HttpLimits()
    # Otherwise any sender could cause a log line with each bad or surplus request.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    server = _IdleServer(
        uvicorn.Config(
            app,
            http=protocol(limits),
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            proxy_headers=False,  # who calls is what the connection says
            timeout_keep_alive=limits.idle_seconds,  # type: ignore[arg-type]
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
    )
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(server.serve(sockets=[listener]))
        try:
            yield
        finally:
            server.end.set()


class _IdleServer(uvicorn.Server):
    """A server that sleeps until it is to end.

    uvicorn's own wakes ten times a second to check for its end and to format the `date` header. In
    a busy process these wake-ups are expensive: they cost a Router 3 % of its requests per second.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.end = asyncio.Event()

    async def main_loop(self) -> None:
        await self.end.wait()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the process, which says when to stop."""
        yield
