"""Calls of Triton's own protocol that go to every server."""

import asyncio
from collections.abc import Mapping
from typing import Final

import grpc

from services.common.errors import InvalidField
from services.controller.core.entities import Health, Server
from services.controller.core.errors import ServerNotFound
from services.controller.triton.client import Triton
from shoal.controller.v1 import controller_service_pb2 as wire

CALL_SECONDS: Final = 5.0  # for one server

METHODS: Final = {
    wire.SERVER_CALL_TRACE_SETTING: "TraceSetting",
    wire.SERVER_CALL_LOG_SETTINGS: "LogSettings",
    wire.SERVER_CALL_SYSTEM_SHARED_MEMORY_STATUS: "SystemSharedMemoryStatus",
    wire.SERVER_CALL_SYSTEM_SHARED_MEMORY_REGISTER: "SystemSharedMemoryRegister",
    wire.SERVER_CALL_SYSTEM_SHARED_MEMORY_UNREGISTER: "SystemSharedMemoryUnregister",
    wire.SERVER_CALL_CUDA_SHARED_MEMORY_STATUS: "CudaSharedMemoryStatus",
    wire.SERVER_CALL_CUDA_SHARED_MEMORY_REGISTER: "CudaSharedMemoryRegister",
    wire.SERVER_CALL_CUDA_SHARED_MEMORY_UNREGISTER: "CudaSharedMemoryUnregister",
}


async def call(
    servers: Mapping[str, Server], tritons: Mapping[str, Triton], request: wire.CallServersRequest
) -> wire.CallServersResponse:
    """Call the servers that `request` names, or all; return their answers by id.

    A server that cannot be reached counts as one that answers UNAVAILABLE. Raises InvalidField,
    ServerNotFound.
    """
    method = METHODS.get(request.call)
    if method is None:
        raise InvalidField(field="call", problem=f"{request.call} is not a call")
    for server in request.servers:
        if server not in tritons:
            raise ServerNotFound(server=server, servers=", ".join(sorted(tritons)) or "none")
    async with asyncio.TaskGroup() as tasks:
        asked = [
            tasks.create_task(_answer(servers[server], tritons[server], method, request.request))
            for server in sorted(request.servers or tritons)
        ]
    return wire.CallServersResponse(answers=[task.result() for task in asked])


async def _answer(server: Server, triton: Triton, method: str, request: bytes) -> wire.ServerAnswer:
    answer = wire.ServerAnswer(server=server.id)
    if server.health is Health.UNREACHABLE:
        answer.code = grpc.StatusCode.UNAVAILABLE.value[0]
        answer.text = f"it is unreachable: {server.reason}"
        return answer
    try:
        answer.response = await triton.ask(method, request, CALL_SECONDS)
    except grpc.aio.AioRpcError as error:
        answer.code = error.code().value[0]
        answer.text = error.details() or error.code().name
    return answer
