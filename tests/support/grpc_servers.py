"""gRPC servers of tests."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc


@asynccontextmanager
async def listening(server: grpc.aio.Server) -> AsyncIterator[str]:
    """`host:port` where it answers, until the end; then what is under way is cut off."""
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)
