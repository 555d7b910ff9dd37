"""The floor for a gRPC proxy in Python: raw bytes to one Triton and back, and nothing else.

`python -m bench.relay HOST:PORT` prints the address that it listens on. It is tuned as the Router
is, so that what the Router costs beyond it is the Router's own doing.
"""

# ruff: noqa: E402
from services.router.process import tuning

tuning.before_grpc()

import asyncio
import signal
import sys
from typing import Any

import grpc
import uvloop

from bench.workloads import INFER, STREAM_INFER

SERVICE, UNARY = INFER.strip("/").split("/")
STREAMING = STREAM_INFER.rpartition("/")[2]


async def relay(upstream: str) -> None:
    """Relays inference to `upstream` (host:port) until SIGTERM."""
    tuning.process(batch=False)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    options = (*tuning.SERVER_OPTIONS, ("grpc.max_receive_message_length", -1))
    server = grpc.aio.server(options=options)
    async with grpc.aio.insecure_channel(upstream, options=tuning.CHANNEL_OPTIONS) as channel:
        forward: Any = channel.unary_unary(INFER)
        forward_all: Any = channel.stream_stream(STREAM_INFER)

        async def answer(request: bytes, _: object) -> Any:
            return await forward(request)

        async def answer_all(requests: Any, context: Any) -> None:
            call = forward_all(requests)
            while (reply := await call.read()) is not grpc.aio.EOF:
                await context.write(reply)

        handlers: dict[str, Any] = {
            UNARY: grpc.unary_unary_rpc_method_handler(answer),
            STREAMING: grpc.stream_stream_rpc_method_handler(answer_all),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        print(f"127.0.0.1:{port}", flush=True)
        await stop.wait()
        await server.stop(1.0)


if __name__ == "__main__":
    uvloop.run(relay(sys.argv[1]))
