"""CUDA shared memory through a Router, where a GPU's memory is memory of this host."""

import asyncio
import base64
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
import tritonclient.grpc.aio as triton_aio
from tritonclient.grpc import service_pb2

from services.common.caller import Caller
from services.controller.core.entities import Server
from services.router.call import Call
from services.router.core.errors import RegionRefused
from services.router.core.routing.routes import Target
from tests.router.test_shared_memory import (
    LOCAL_PEER,
    SIZE,
    VALUES,
    Memory,
    gate,
    infer,
    mapped,
    memory,
    on,
    output,
    refusal,
    server,
)
from tests.support import controller as controller_harness
from tests.support import router as router_harness
from tests.support.controller import entry
from tests.support.graphics_memory import with_graphics_memory
from tests.support.router import in_a_task, router
from tests.support.triton_direct import DirectTriton
from tests.support.waiting import SOON, until

__all__ = ["gate", "memory", "output", "server"]  # fixtures

pytestmark = [pytest.mark.triton, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def controller(server: DirectTriton) -> AsyncIterator[controller_harness.Alone]:
    async with in_a_task(with_graphics_memory(server.address)) as address:
        acting = controller_harness.controller(
            [Server(server.spec.id, address)],
            [entry("twice", 1), entry("slow", 1)],
            {server.spec.id: server.spec.admin_secret},
        )
        async with in_a_task(acting) as running:
            yield running


@pytest_asyncio.fixture(loop_scope="module")
async def shoal(controller: controller_harness.Alone) -> AsyncIterator[router_harness.Alone]:
    async with router(controller.address, shared_memory=True, grpc_port=5) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def client(shoal: router_harness.Alone) -> AsyncIterator[Any]:
    async with triton_aio.InferenceServerClient(shoal.address) as one:
        yield one
        await one.unregister_cuda_shared_memory()


def handle(memory: Memory) -> bytes:
    """As tritonclient wants it, which hands it over in base64."""
    return base64.b64encode(memory.key.encode())


async def test_tensors_come_and_go_in_the_memory_of_a_gpu(
    server: DirectTriton, client: Any, memory: Memory, output: Memory
) -> None:
    await client.register_cuda_shared_memory("in", handle(memory), 3, SIZE)
    await client.register_cuda_shared_memory("out", handle(output), 3, SIZE)
    result = await infer(client, "in", "out")
    assert output.get() == list(VALUES * 2)
    told = result.get_response().outputs[0].parameters
    assert told["shared_memory_region"].string_param in ("", "out"), "by the caller's own name"
    status = await client.get_cuda_shared_memory_status()
    assert {(r.name, r.device_id, r.byte_size) for r in status.regions.values()} == {
        ("in", 3, SIZE),
        ("out", 3, SIZE),
    }
    assert not (await client.get_system_shared_memory_status()).regions
    names = await mapped(server)
    assert len(names) == 2
    assert all(name.startswith("shoal.5.") for name in names), "no caller can guess them"

    await client.unregister_system_shared_memory()
    await client.unregister_cuda_shared_memory("in")
    assert set((await client.get_cuda_shared_memory_status()).regions) == {"out"}
    assert await refusal(infer(client, "in", "out")) == (
        *("NOT_FOUND", "Unable to find shared memory region: 'in'", "REGION_NOT_FOUND"),
    )
    await client.unregister_cuda_shared_memory()
    assert await mapped(server) == set()


async def test_its_bounds_are_kept(client: Any, memory: Memory) -> None:
    await client.register_cuda_shared_memory("in", handle(memory), 0, SIZE)
    for size, offset in ((SIZE + 4, 0), (SIZE, 4)):
        code, _, reason = await refusal(infer(client, "in", size=size, offset=offset))
        assert (code, reason) == ("INVALID_ARGUMENT", "REGION_BOUNDS")


async def test_it_stays_until_the_last_request_is_over(
    server: DirectTriton, client: Any, shoal: router_harness.Alone, memory: Memory, output: Memory
) -> None:
    await client.register_cuda_shared_memory("in", handle(memory), 0, SIZE)
    await client.register_cuda_shared_memory("out", handle(output), 0, SIZE)
    answer = asyncio.create_task(infer(client, "in", "out", model="slow"))
    await until(lambda: shoal.watch.in_use.in_flight_on(Target("slow", 1)))
    await client.unregister_cuda_shared_memory()
    assert len(await mapped(server)) == 2, "the server still writes to it"
    await answer
    assert output.get() == list(VALUES * 3)
    async with asyncio.timeout(SOON):
        while await mapped(server):  # noqa: ASYNC110  (nobody tells)
            await asyncio.sleep(0.02)


async def test_a_server_that_has_forgotten_it_maps_it_again(
    server: DirectTriton, client: Any, memory: Memory
) -> None:
    await client.register_cuda_shared_memory("in", handle(memory), 0, SIZE)
    # As after a restart.
    everything = service_pb2.SystemSharedMemoryUnregisterRequest()
    await on(server, "SystemSharedMemoryUnregister", everything)
    assert await mapped(server) == set()
    answer = await infer(client, "in")
    assert list(answer.as_numpy("OUTPUT")) == list(VALUES * 2)


async def test_a_handle_of_one_caller_is_no_other_ones(
    client: Any, shoal: router_harness.Alone, memory: Memory
) -> None:
    await client.register_cuda_shared_memory("in", handle(memory), 0, SIZE)
    assert shoal.memory is not None
    request = service_pb2.CudaSharedMemoryRegisterRequest(
        name="in", raw_handle=memory.key.encode(), device_id=0, byte_size=SIZE
    )
    other = Call(Caller("other", "default", frozenset()), LOCAL_PEER, None)
    with pytest.raises(RegionRefused, match="another caller has registered that memory"):
        await shoal.memory.register_cuda(request, other)
