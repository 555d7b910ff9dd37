"""A Router that stops: it says that it is not ready, still answers, and only then refuses."""

import asyncio
import http.client
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from services.common import programs
from services.common.status import error_info
from services.embedded.ports import LOOPBACK, pick
from services.embedded.readiness import grpc_serving
from shoal.controller.v1.controller_service_pb2_grpc import add_ControllerServiceServicer_to_server
from tests.support.grpc_servers import listening
from tests.support.scripted_triton import ScriptedTriton, scripted
from tests.support.streams import ECHO, SECONDS, Places, ask, routed

DRAIN = 1.5


@asynccontextmanager
async def process(controller: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str, str]]:
    """Run a Router in a process of its own. Yields it with its gRPC and HTTP addresses."""
    grpc_port, http_port = pick(2)
    router = await asyncio.create_subprocess_exec(
        *programs.module("services.router"),
        env={
            **programs.environment(os.environ),
            "SHOAL_ROUTER_GRPC_PORT": str(grpc_port),
            "SHOAL_ROUTER_HTTP_PORT": str(http_port),
            "SHOAL_ROUTER_CONTROLLER": controller,
            "SHOAL_ROUTER_DRAIN": str(DRAIN),
            "OTEL_SDK_DISABLED": "true",
        },
        stderr=sys.stderr,
    )
    try:
        async with asyncio.timeout(30):
            await grpc_serving(f"{LOOPBACK}:{grpc_port}")
        yield router, f"{LOOPBACK}:{grpc_port}", f"{LOOPBACK}:{http_port}"
    finally:
        with suppress(ProcessLookupError):
            router.kill()
        await router.wait()


def status(address: str, path: str) -> int:
    """Return the status of a GET."""
    with closing(http.client.HTTPConnection(address, timeout=SECONDS)) as connection:
        connection.request("GET", path)
        return connection.getresponse().status


async def test_it_is_not_ready_before_it_refuses() -> None:
    server = grpc.aio.server()
    async with scripted(ScriptedTriton()) as triton:
        triton.answering.set()
        where = Places({"a": triton.address}, {ECHO: ["a"]}, decoupled=frozenset())
        add_ControllerServiceServicer_to_server(where, server)
        async with (
            listening(server) as controller,
            process(controller) as (router, address, web),
            grpc.aio.insecure_channel(address) as channel,
        ):
            stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            health: Any = health_pb2_grpc.HealthStub(channel)

            async def ready() -> list[bool]:
                state = await health.Check(health_pb2.HealthCheckRequest(), timeout=SECONDS)
                server = await stub.ServerReady(service_pb2.ServerReadyRequest(), timeout=SECONDS)
                model = service_pb2.ModelReadyRequest(name=ECHO)
                return [
                    state.status == health_pb2.HealthCheckResponse.SERVING,
                    server.ready,
                    (await stub.ModelReady(model, timeout=SECONDS)).ready,
                    await asyncio.to_thread(status, web, "/v2/health/ready") == 200,
                    await asyncio.to_thread(status, web, f"/v2/models/{ECHO}/ready") == 200,
                ]

            assert all(await ready())
            router.terminate()
            async with asyncio.timeout(DRAIN):
                while any(await ready()):
                    pass
                live = await stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=SECONDS)
                assert live.live
                for _ in range(20):
                    await stub.ModelInfer(ask(ECHO, 1), timeout=SECONDS)
            async with asyncio.timeout(DRAIN + SECONDS):
                assert await router.wait() == 0


@pytest.mark.parametrize("method", ["SystemSharedMemoryStatus", "CudaSharedMemoryRegister"])
async def test_what_is_not_proxied_says_so(method: str) -> None:
    async with routed(Places({}, {})) as router:
        stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(router.channel)
        request = getattr(service_pb2, f"{method}Request")()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await getattr(stub, method)(request, timeout=SECONDS)
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
        info = error_info(tuple(refused.value.trailing_metadata() or ()))
        assert info is not None
        assert info.reason == "NOT_PROXIED"
        assert method in (refused.value.details() or "")


@pytest.mark.parametrize(("given", "name"), [({}, "triton"), ({"server_name": "shoal"}, "shoal")])
async def test_the_name_of_the_server_is_a_setting(given: dict[str, str], name: str) -> None:
    async with routed(Places({}, {}), **given) as router:
        stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(router.channel)
        found = await stub.ServerMetadata(service_pb2.ServerMetadataRequest(), timeout=SECONDS)
        assert found.name == name
