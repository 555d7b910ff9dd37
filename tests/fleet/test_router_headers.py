"""What the Router lets through of headers and trailers, from clients to servers and back."""

import asyncio
import json
import os
import struct
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2

from services.embedded.ports import pick
from shoal.controller.v1 import placement_pb2
from tests.conformance import models
from tests.support.controllers import Scripted, serving
from tests.support.grpc_servers import listening
from tests.support.triton_direct import DirectTriton, triton_direct

pytestmark = pytest.mark.triton

TOLD = models.copies("told")[0]  # answers what it sees of a request
BACK = "back"  # answers with headers that no Triton sends
SERVICE = "/inference.GRPCInferenceService"

SECRET = ("triton-grpc-protocol-admin-key", "the-key")
OURS = ("x-shoal-subject", "somebody")
KEPT = ("x-request-id", "7")


class Two(Scripted):
    """Each model on a server of its own."""

    def _snapshot(self) -> placement_pb2.WatchPlacementsResponse:
        message = placement_pb2.WatchPlacementsResponse(revision=self._revision())
        for model in (TOLD, BACK):
            route = message.snapshot.models.add(model=model, default_version=1)
            route.versions.add(version=1, servable=True, servers=[model])
            message.snapshot.servers.add(server=model, address=self.servers[model])
        return message


@asynccontextmanager
async def giving_back() -> AsyncIterator[str]:
    """The address of a server that sends what the Router must keep to itself. A request with an
    id is refused."""

    async def infer(message: bytes, context: Any) -> bytes:
        request = service_pb2.ModelInferRequest.FromString(message)
        headers = (SECRET, OURS, KEPT)
        await context.send_initial_metadata(headers)
        context.set_trailing_metadata(headers)
        if request.id:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, request.id, headers)
        reply = service_pb2.ModelInferResponse(model_name=BACK, model_version="1")
        return bytes(reply.SerializeToString())

    server = grpc.aio.server()
    method: Any = {"ModelInfer": grpc.unary_unary_rpc_method_handler(infer)}
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(SERVICE.strip("/"), method)]
    )
    async with listening(server) as address:
        yield address


@asynccontextmanager
async def routing(controller: Scripted) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to a Router process."""
    grpc_port, http_port = pick(2)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.router"),
        env={
            **os.environ,
            "SHOAL_ROUTER_GRPC_PORT": str(grpc_port),
            "SHOAL_ROUTER_HTTP_PORT": str(http_port),
            "SHOAL_ROUTER_CONTROLLER": controller.address,
            "OTEL_SDK_DISABLED": "true",
        },
    )
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
            async with asyncio.timeout(20):
                await channel.channel_ready()
            yield channel
    finally:
        process.terminate()
        await process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DirectTriton]:
    """A Triton that shows its models every header."""
    repository = tmp_path_factory.mktemp("models")
    models.write(repository)
    folder = tmp_path_factory.mktemp("server")
    pattern = ("--grpc-header-forward-pattern=.*",)
    with triton_direct(folder, repository, extra_args=pattern) as running:
        running.load(TOLD)
        yield running


def request(model: str, id_: str = "") -> bytes:
    made = service_pb2.ModelInferRequest(model_name=model, id=id_)
    made.inputs.add(name="ANY", datatype="INT32", shape=[1])
    made.raw_input_contents.append(struct.pack("<i", 1))
    return bytes(made.SerializeToString())


def seen(response: Any) -> dict[str, Any]:
    """The parameters that the model saw, which its headers are among."""
    (content,) = response.raw_output_contents
    found: dict[str, Any] = json.loads(content[4:])
    return dict(found["parameters"])


def headers(call: Any) -> set[tuple[str, str]]:
    return {(key, value) for key, value in call if not key.startswith(("grpc-", "user-agent"))}


async def test_headers_go_on_and_errors_bring_some_back_none_of_the_control_plane(
    server: DirectTriton,
) -> None:
    controller = Two(1)
    async with giving_back() as back:
        controller.servers = {TOLD: server.address, BACK: back}
        async with serving(controller), routing(controller) as channel:
            infer: Any = channel.unary_unary(f"{SERVICE}/ModelInfer")
            stream: Any = channel.stream_stream(f"{SERVICE}/ModelStreamInfer")
            sent = (SECRET, OURS, KEPT, ("x-shoal-roles", "admin"))

            reply = await infer(request(TOLD), metadata=sent, timeout=10)
            assert_only_kept(seen(service_pb2.ModelInferResponse.FromString(reply)))

            replies = stream(iter([request(TOLD)]), metadata=sent, timeout=10)
            (message,) = [message async for message in replies]
            parsed = service_pb2.ModelStreamInferResponse.FromString(message)
            assert_only_kept(seen(parsed.infer_response))

            call = infer(request(BACK), timeout=10)
            await call
            assert headers(await call.initial_metadata()) == set()
            assert headers(await call.trailing_metadata()) == set()

            call = infer(request(BACK, "refused"), timeout=10)
            with pytest.raises(grpc.aio.AioRpcError, match="refused"):
                await call
            assert headers(await call.initial_metadata()) <= {KEPT}
            assert headers(await call.trailing_metadata()) == {KEPT}


def assert_only_kept(parameters: dict[str, Any]) -> None:
    assert parameters[KEPT[0]] == KEPT[1], "other headers arrive"
    ours = [name for name in parameters if name.startswith(("triton-grpc-protocol-", "x-shoal-"))]
    assert ours == []
    assert not [name for name in parameters if name.startswith(("grpc-", "trace"))]
