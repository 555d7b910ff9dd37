"""Functions that wait until a process answers. They never give up."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.common import channels

_POLL: Final = 0.1  # seconds between two attempts
_ANSWER: Final = 2.0  # seconds for one answer

# inference.ServerLiveResponse{live: true}
_LIVE: Final = b"\x08\x01"


async def grpc_serving(address: str) -> None:
    """Wait until grpc.health.v1 reports SERVING for the whole server."""
    async with channels.control(address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError):
                answer = await health.Check(
                    health_pb2.HealthCheckRequest(), timeout=_ANSWER, wait_for_ready=True
                )
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    return
            await asyncio.sleep(_POLL)


async def one_of_several(address: str, ready: Sequence[Callable[[], Awaitable[None]]]) -> None:
    """Wait until grpc.health.v1 answers at `address`, and one of `ready` returns.

    Of several Controllers one serves, and the others stand by.
    """
    async with channels.control(address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError):
                request = health_pb2.HealthCheckRequest()
                await health.Check(request, timeout=_ANSWER, wait_for_ready=True)
                break
            await asyncio.sleep(_POLL)
    waits = [asyncio.ensure_future(one()) for one in ready]
    try:
        done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for one in done:
            one.result()
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)


async def triton_live(address: str) -> None:
    """Wait until Triton's ServerLive reports that it is live."""
    async with channels.control(address) as channel:
        server_live: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            "/inference.GRPCInferenceService/ServerLive"
        )
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError):
                if await server_live(b"", timeout=_ANSWER, wait_for_ready=True) == _LIVE:
                    return
            await asyncio.sleep(_POLL)


async def http_ok(host: str, port: int, path: str) -> None:
    """Wait until GET `path` is answered with 200."""
    while True:
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_ANSWER):
                if await _status(host, port, path) == b"200":
                    return
        await asyncio.sleep(_POLL)


async def _status(host: str, port: int, path: str) -> bytes:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(f"GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
        line = await reader.readline()
    finally:
        writer.close()
    words = line.split()
    return words[1] if len(words) > 1 else b""
