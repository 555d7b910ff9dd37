"""A real Triton whose GPU memory is memory of this host.

No machine here has a GPU, and a Triton without one refuses each handle. So this stands between a
Router and a real Triton: a handle is the key of a region in `/dev/shm`, and what is said of CUDA
memory is said to the server of system memory. Names, life, and what requests find in a region are
the real server's own.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import grpc
from tritonclient.grpc import service_pb2

from tests.support.grpc_servers import listening

SERVICE: Final = "/inference.GRPCInferenceService/"


def _registration(request: bytes) -> Any:
    asked = service_pb2.CudaSharedMemoryRegisterRequest.FromString(request)
    return service_pb2.SystemSharedMemoryRegisterRequest(
        name=asked.name, key=asked.raw_handle.decode(), byte_size=asked.byte_size
    )


def _status(reply: bytes) -> bytes:
    found = service_pb2.SystemSharedMemoryStatusResponse.FromString(reply)
    told = service_pb2.CudaSharedMemoryStatusResponse()
    for name, region in found.regions.items():
        told.regions[name].name = name
        told.regions[name].byte_size = region.byte_size
    return told.SerializeToString()


def _same(message: bytes) -> bytes:
    return message


# What is asked instead, how the request is written for it, and how the reply is read. (Requests to
# unregister, and those for a status, have the same one field for both kinds of memory.)
_INSTEAD: Final[dict[str, tuple[str, Callable[[bytes], bytes], Callable[[bytes], bytes]]]] = {
    "CudaSharedMemoryRegister": (
        "SystemSharedMemoryRegister",
        lambda request: bytes(_registration(request).SerializeToString()),
        _same,
    ),
    "CudaSharedMemoryUnregister": ("SystemSharedMemoryUnregister", _same, _same),
    "CudaSharedMemoryStatus": ("SystemSharedMemoryStatus", _same, _status),
}


class _Handler(grpc.GenericRpcHandler):
    def __init__(self, server: grpc.aio.Channel) -> None:
        self._server = server

    def service(self, details: Any) -> Any:
        name = details.method.rpartition("/")[2]
        instead, write, read = _INSTEAD.get(name, (name, _same, _same))
        ask: Any = self._server.unary_unary(SERVICE + instead)

        async def answer(request: bytes, context: Any) -> bytes:
            try:
                return read(await ask(write(request), metadata=details.invocation_metadata))
            except grpc.aio.AioRpcError as error:
                await context.abort(error.code(), error.details())
                raise AssertionError from error

        return grpc.unary_unary_rpc_method_handler(answer)


@asynccontextmanager
async def with_graphics_memory(server: str) -> AsyncIterator[str]:
    """Both are `host:port`. Streams are not passed on."""
    front = grpc.aio.server()
    async with grpc.aio.insecure_channel(server) as channel:
        front.add_generic_rpc_handlers((_Handler(channel),))
        async with listening(front) as address:
            yield address
