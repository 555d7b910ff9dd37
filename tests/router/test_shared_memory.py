"""Tensors in shared memory through a Router: real memory, a real Triton."""

import asyncio
import os
import secrets
import struct
import subprocess
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.grpc import model_config_pb2, service_pb2
from tritonclient.utils import shared_memory

from services.common.caller import Caller
from services.common.status import error_info
from services.controller.core.entities import Server
from services.controller.triton.client import ADMIN_KEY_HEADER
from services.router.call import Call
from services.router.core.errors import NotProxied, RegionRefused
from services.router.core.routing.routes import Target
from services.router.memory import regions as router_shared_memory
from services.router.memory.regions import FOLDER, backend_regions
from tests.support import controller as controller_harness
from tests.support import router as router_harness
from tests.support.controller import entry
from tests.support.router import in_a_task, router
from tests.support.triton_direct import DirectTriton, triton_direct, triton_python
from tests.support.triton_models import config, write, write_program
from tests.support.waiting import POLL_SECONDS, SOON, until

pytestmark = [pytest.mark.triton, pytest.mark.asyncio(loop_scope="module")]

VALUES = np.array([1.0, -2.5, 3.0, 4.0], np.float32)
SIZE = VALUES.nbytes
LOCAL_PEER = "ipv4:127.0.0.1:4711"

# Replies with its input times 1, 2 and 3.
MANY = """
import time
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            x = pb_utils.get_input_tensor_by_name(request, "INPUT").as_numpy()
            for number in (1, 2, 3):
                output = pb_utils.Tensor("OUTPUT", x * number)
                sender.send(pb_utils.InferenceResponse([output]))
                time.sleep(0.2)
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""

# Says that it is there, and waits for its gate.
HELD = """
import pathlib, time
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        x = pb_utils.get_input_tensor_by_name(requests[0], "INPUT").as_numpy()
        pathlib.Path({here!r}).touch()
        while not pathlib.Path({gate!r}).exists():
            time.sleep(0.01)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", x)])]
"""


def decoupled(name: str) -> model_config_pb2.ModelConfig:
    made = config(name)
    made.model_transaction_policy.decoupled = True
    return made


class Gate:
    """That requests to a model wait at."""

    def __init__(self, folder: Path) -> None:
        self._open = folder / "open"
        self._somebody = folder / "somebody"
        self.program = HELD.format(here=str(self._somebody), gate=str(self._open))

    def open(self) -> None:
        self._open.touch()

    def close(self) -> None:
        """After everybody has gone."""
        self._open.unlink()
        self._somebody.unlink()

    def somebody(self) -> bool:
        """Whether a request has come to it."""
        return self._somebody.exists()


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Gate:
    return Gate(tmp_path_factory.mktemp("gate"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, gate: Gate) -> Iterator[DirectTriton]:
    models = tmp_path_factory.mktemp("models")
    write(models, "twice", answer="x * 2")
    write(models, "slow", answer="(time.sleep(0.5), x * 3)[1]")
    write_program(models, decoupled("many"), MANY)
    write_program(models, config("held"), gate.program)
    subprocess.run([triton_python(), "-m", "compileall", "-q", models], check=True)
    with triton_direct(
        tmp_path_factory.mktemp("server"), models, id=f"t0-{secrets.token_hex(4)}"
    ) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def controller(server: DirectTriton) -> AsyncIterator[controller_harness.Alone]:
    acting = controller_harness.controller(
        [Server(server.spec.id, server.address)],
        [
            entry("twice", 1),
            entry("slow", 1),
            entry("held", 1),
            entry("many", 1, config=decoupled("many").SerializeToString(), decoupled=True),
        ],
        {server.spec.id: server.spec.admin_secret},
    )
    async with in_a_task(acting) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shoal(controller: controller_harness.Alone) -> AsyncIterator[router_harness.Alone]:
    async with in_a_task(router(controller.address, shared_memory=True)) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def client(shoal: router_harness.Alone) -> AsyncIterator[Any]:
    async with triton_aio.InferenceServerClient(shoal.address) as one:
        yield one
        await one.unregister_system_shared_memory()


class Memory:
    """A client's region, as tritonclient makes it."""

    def __init__(self, size: int) -> None:
        self.key = f"/test-{uuid.uuid4().hex}"
        self.size = size
        self._handle = shared_memory.create_shared_memory_region("x", self.key, size)
        self.there = True

    def put(self, values: np.ndarray, offset: int = 0) -> None:
        shared_memory.set_shared_memory_region(self._handle, [values], offset)

    def get(self, offset: int = 0) -> list[float]:
        return list(shared_memory.get_contents_as_numpy(self._handle, np.float32, [4], offset))

    def truncate(self, size: int) -> None:
        os.truncate(FOLDER / self.key.strip("/"), size)

    def close(self) -> None:
        if self.there:
            shared_memory.destroy_shared_memory_region(self._handle)
            self.there = False


@pytest.fixture
def memory() -> Iterator[Memory]:
    made = Memory(4096)
    made.put(VALUES)
    yield made
    made.close()


@pytest.fixture
def output() -> Iterator[Memory]:
    made = Memory(4096)
    yield made
    made.close()


async def infer(
    client: Any,
    region: str,
    into: str | None = None,
    *,
    model: str = "twice",
    size: int = SIZE,
    offset: int = 0,
) -> Any:
    tensor = triton.InferInput("INPUT", [size // 4], "FP32")
    tensor.set_shared_memory(region, size, offset)
    outputs = None
    if into is not None:
        outputs = [triton.InferRequestedOutput("OUTPUT")]
        outputs[0].set_shared_memory(into, size)
    return await client.infer(model, [tensor], outputs=outputs)


async def requests(
    model: str, region: str, into: str | None = None
) -> AsyncIterator[dict[str, Any]]:
    """One, for tritonclient's stream."""
    tensor = triton.InferInput("INPUT", [SIZE // 4], "FP32")
    tensor.set_shared_memory(region, SIZE)
    outputs = []
    if into is not None:
        outputs = [triton.InferRequestedOutput("OUTPUT")]
        outputs[0].set_shared_memory(into, SIZE)
    yield {"model_name": model, "inputs": [tensor], "outputs": outputs}


async def refusal(call: Any) -> tuple[str, str, str]:
    """Code, text and reason of a call that must fail."""
    try:
        answer = await call
    except triton.InferenceServerException as error:
        cause = error.__cause__ or error.__context__
        assert isinstance(cause, grpc.aio.AioRpcError)
    except grpc.aio.AioRpcError as error:
        cause = error
    else:
        raise AssertionError(f"it was answered: {answer}")
    info = error_info(tuple(cause.trailing_metadata() or ()))
    return cause.code().name, cause.details() or "", info.reason if info is not None else ""


async def on(server: DirectTriton, method: str, request: Any) -> Any:
    """The server's own answer to an administrator."""
    async with grpc.aio.insecure_channel(server.address) as channel:
        call: Any = channel.unary_unary(
            f"/inference.GRPCInferenceService/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=getattr(service_pb2, f"{method}Response").FromString,
        )
        return await call(request, metadata=((ADMIN_KEY_HEADER, server.spec.admin_secret),))


async def mapped(server: DirectTriton) -> set[str]:
    """What the server maps, by its own names."""
    request = service_pb2.SystemSharedMemoryStatusRequest()
    return set((await on(server, "SystemSharedMemoryStatus", request)).regions)


async def until_unmapped(server: DirectTriton) -> None:
    async with asyncio.timeout(SOON):
        while await mapped(server):  # noqa: ASYNC110  (nobody tells)
            await asyncio.sleep(POLL_SECONDS)


async def forget(server: DirectTriton) -> None:
    """As after a restart."""
    everything = service_pb2.SystemSharedMemoryUnregisterRequest()
    await on(server, "SystemSharedMemoryUnregister", everything)
    assert await mapped(server) == set()


# --- what a stock client does ---------------------------------------------------------------------


async def test_tensors_come_and_go_in_shared_memory(
    client: Any, memory: Memory, output: Memory
) -> None:
    await client.register_system_shared_memory("in", memory.key, SIZE)
    await client.register_system_shared_memory("out", output.key, SIZE)
    result = await infer(client, "in", "out")
    assert output.get() == list(VALUES * 2)
    told = result.get_response().outputs[0].parameters
    assert told["shared_memory_region"].string_param in ("", "out"), "by the caller's own name"
    status = await client.get_system_shared_memory_status()
    assert {(r.name, r.key, r.offset, r.byte_size) for r in status.regions.values()} == {
        ("in", memory.key, 0, SIZE),
        ("out", output.key, 0, SIZE),
    }
    await client.unregister_system_shared_memory("in")
    assert set((await client.get_system_shared_memory_status()).regions) == {"out"}
    assert await refusal(infer(client, "in", "out")) == (
        *("NOT_FOUND", "Unable to find shared memory region: 'in'", "REGION_NOT_FOUND"),
    )


async def test_they_do_in_a_stream_too(client: Any, memory: Memory, output: Memory) -> None:
    await client.register_system_shared_memory("in", memory.key, SIZE)
    await client.register_system_shared_memory("out", output.key, SIZE)
    answers = [pair async for pair in client.stream_infer(requests("twice", "in", "out"))]
    assert [error for _, error in answers] == [None]
    assert output.get() == list(VALUES * 2)


async def test_they_do_in_a_stream_with_several_replies(
    server: DirectTriton, client: Any, memory: Memory, output: Memory
) -> None:
    await client.register_system_shared_memory("in", memory.key, SIZE)
    await client.register_system_shared_memory("out", output.key, SIZE, 64)
    found = []
    async for result, error in client.stream_infer(requests("many", "in", "out")):
        assert error is None
        told = result.get_output("OUTPUT").parameters
        assert told["shared_memory_region"].string_param in ("", "out"), "by the caller's own name"
        found.append(output.get(64))
    assert found == [list(VALUES * number) for number in (1, 2, 3)]
    await client.unregister_system_shared_memory()
    assert await mapped(server) == set()


async def test_a_stream_is_refused_what_is_not_there(
    server: DirectTriton, client: Any, memory: Memory
) -> None:
    """In band; and the next request is answered."""
    await client.register_system_shared_memory("in", memory.key, SIZE)

    async def both() -> AsyncIterator[dict[str, Any]]:
        for region in ("nothing", "in"):
            async for one in requests("many", region):
                yield one

    answers = [pair async for pair in client.stream_infer(both())]
    refused, *rest = [error for _, error in answers]
    assert str(refused) == "Unable to find shared memory region: 'nothing'"
    assert rest == [None, None, None]


async def test_the_plain_client_does_it_too(
    shoal: router_harness.Alone, memory: Memory, output: Memory
) -> None:
    def work() -> None:
        with triton.InferenceServerClient(shoal.address) as plain:
            plain.register_system_shared_memory("in", memory.key, SIZE)
            plain.register_system_shared_memory("out", output.key, SIZE)
            tensor = triton.InferInput("INPUT", [4], "FP32")
            tensor.set_shared_memory("in", SIZE)
            wanted = triton.InferRequestedOutput("OUTPUT")
            wanted.set_shared_memory("out", SIZE)
            plain.infer("twice", [tensor], outputs=[wanted])
            plain.unregister_system_shared_memory()

    await asyncio.to_thread(work)
    assert output.get() == list(VALUES * 2)


async def test_what_is_unregistered_is_unmapped(
    server: DirectTriton, client: Any, memory: Memory
) -> None:
    await client.register_system_shared_memory("in", memory.key, SIZE)
    (name,) = await mapped(server)
    assert memory.key.strip("/") not in name
    await client.unregister_system_shared_memory("in")
    assert await mapped(server) == set()


async def test_two_regions_of_one_memory(server: DirectTriton, client: Any, memory: Memory) -> None:
    memory.put(VALUES * 10, 100)
    await client.register_system_shared_memory("low", memory.key, 64)
    await client.register_system_shared_memory("high", memory.key, 64, 100)
    assert len(await mapped(server)) == 1, "it is mapped once"
    await infer(client, "low", "high")
    assert memory.get(100) == list(VALUES * 2)
    answer = await infer(client, "high")
    assert list(answer.as_numpy("OUTPUT")) == list(VALUES * 4)
    answer = await infer(client, "low", offset=4, size=8)
    assert list(answer.as_numpy("OUTPUT")) == list(VALUES[1:3] * 2)


async def test_a_server_that_has_forgotten_it_maps_it_again(
    server: DirectTriton, client: Any, memory: Memory
) -> None:
    await client.register_system_shared_memory("in", memory.key, SIZE)
    await forget(server)
    answer = await infer(client, "in")
    assert list(answer.as_numpy("OUTPUT")) == list(VALUES * 2)


async def test_and_so_it_does_for_a_stream(
    server: DirectTriton, client: Any, memory: Memory, output: Memory
) -> None:
    await client.register_system_shared_memory("in", memory.key, SIZE)
    await client.register_system_shared_memory("out", output.key, SIZE)
    for _ in range(2):
        await forget(server)
        answers = [pair async for pair in client.stream_infer(requests("many", "in", "out"))]
        assert [error for _, error in answers] == [None, None, None]
        assert output.get() == list(VALUES * 3)
    assert len(await mapped(server)) == 2
    await client.unregister_system_shared_memory()
    assert await mapped(server) == set()


async def test_memory_stays_mapped_under_a_request(
    server: DirectTriton, shoal: router_harness.Alone, client: Any, memory: Memory, output: Memory
) -> None:
    await client.register_system_shared_memory("in", memory.key, SIZE)
    await client.register_system_shared_memory("out", output.key, SIZE)
    leaver = asyncio.create_task(infer(client, "in", "out", model="slow"))
    stayer = asyncio.create_task(infer(client, "in", "out", model="slow"))
    target = Target("slow", 1)
    await until(lambda: shoal.watch.in_use.in_flight_on(target) == 2)
    leaver.cancel()
    await client.unregister_system_shared_memory()
    assert len(await mapped(server)) == 2, "the server still writes to it"
    await stayer
    assert output.get() == list(VALUES * 3)
    await until_unmapped(server)


async def test_and_under_the_replies_to_a_stream(
    server: DirectTriton, shoal: router_harness.Alone, client: Any, memory: Memory, output: Memory
) -> None:
    """Also when nobody hears them."""
    await client.register_system_shared_memory("in", memory.key, SIZE)
    await client.register_system_shared_memory("out", output.key, SIZE)
    answers = client.stream_infer(requests("many", "in", "out"))
    await anext(answers)
    answers.cancel()
    await client.unregister_system_shared_memory()
    assert len(await mapped(server)) == 2, "the server still writes to it"
    await until_unmapped(server)
    assert output.get() == list(VALUES * 3)
    assert not shoal.watch.in_use.in_flight_on(Target("many", 1))


@asynccontextmanager
async def held(server: DirectTriton, client: Any, region: str, gate: Gate) -> AsyncIterator[None]:
    """The server uses its own `region` for a request that the Router knows nothing of."""
    tensor = triton.InferInput("INPUT", [SIZE // 4], "FP32")
    gate.open()
    await client.infer("held", [tensor.set_data_from_numpy(VALUES)])  # so that it is loaded
    gate.close()
    tensor.set_shared_memory(region, SIZE)
    async with triton_aio.InferenceServerClient(server.address) as direct:
        asking = asyncio.create_task(direct.infer("held", [tensor]))
        try:
            await until(gate.somebody)
            yield
        finally:
            gate.open()
            await asking


async def test_a_server_that_does_not_let_go_at_once_is_asked_again(
    server: DirectTriton, client: Any, memory: Memory, gate: Gate
) -> None:
    """Until a moment after its answer Triton does not."""
    await client.register_system_shared_memory("in", memory.key, SIZE)
    (name,) = await mapped(server)
    async with held(server, client, name, gate):
        unregistering = asyncio.create_task(client.unregister_system_shared_memory("in"))
        async with asyncio.timeout(SOON):
            while (await client.get_system_shared_memory_status()).regions:  # noqa: ASYNC110
                await asyncio.sleep(POLL_SECONDS)
        assert await mapped(server) == {name}
    await unregistering
    assert await mapped(server) == set()


async def test_what_a_server_does_not_let_go_of_is_not_registered_anew(
    server: DirectTriton,
    client: Any,
    memory: Memory,
    output: Memory,
    gate: Gate,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """But other memory is."""
    monkeypatch.setattr(router_shared_memory, "LETTING_GO_SECONDS", 0.0)
    await client.register_system_shared_memory("in", memory.key, SIZE)
    (name,) = await mapped(server)
    async with held(server, client, name, gate):
        await client.unregister_system_shared_memory("in")
        code, _, reason = await refusal(
            client.register_system_shared_memory("again", memory.key, SIZE)
        )
        assert (code, reason) == ("UNAVAILABLE", "REGION_IN_USE")
        await client.register_system_shared_memory("other", output.key, SIZE)
    async with asyncio.timeout(SOON):
        while True:
            with suppress(triton.InferenceServerException):
                await client.register_system_shared_memory("again", memory.key, SIZE)
                break
            await asyncio.sleep(POLL_SECONDS)
    answer = await infer(client, "again")
    assert list(answer.as_numpy("OUTPUT")) == list(VALUES * 2)


# --- what is refused ------------------------------------------------------------------------------


async def test_a_name_is_taken_once_as_in_triton(client: Any, memory: Memory) -> None:
    await client.register_system_shared_memory("in", memory.key, SIZE)
    assert await refusal(client.register_system_shared_memory("in", memory.key, SIZE)) == (
        *("ALREADY_EXISTS", "shared memory region 'in' already in manager", "REGION_EXISTS"),
    )


async def test_memory_that_is_not_there_is_refused_as_in_triton(
    server: DirectTriton, shoal: router_harness.Alone
) -> None:
    request = service_pb2.SystemSharedMemoryRegisterRequest(
        name="in", key="/test-nothing", byte_size=16
    )
    code, text, reason = await refusal(shoal.stub.SystemSharedMemoryRegister(request))
    own = await refusal(on(server, "SystemSharedMemoryRegister", request))
    assert (code, text) == own[:2]
    assert reason == "REGION_UNOPENED"


@pytest.mark.parametrize(("size", "offset"), [(4097, 0), (4096, 1), (2**63, 0), (1, 2**63)])
async def test_more_than_there_is_cannot_be_registered(
    client: Any, memory: Memory, size: int, offset: int
) -> None:
    code, text, reason = await refusal(
        client.register_system_shared_memory("in", memory.key, size, offset)
    )
    assert (code, reason) == ("INVALID_ARGUMENT", "REGION_REFUSED")
    assert text.startswith("failed to register shared memory region 'in': invalid args")


@pytest.mark.parametrize(
    ("size", "offset", "part"), [(SIZE, 32, "offset"), (SIZE, 20, "offset + byte size")]
)
async def test_a_tensor_beyond_its_region_is_refused_as_in_triton(
    server: DirectTriton, client: Any, memory: Memory, size: int, offset: int, part: str
) -> None:
    await client.register_system_shared_memory("in", memory.key, 32)
    refused = await refusal(infer(client, "in", size=size, offset=offset))
    assert refused == (
        *("INVALID_ARGUMENT", f"Invalid {part} for shared memory region: 'in'", "REGION_BOUNDS"),
    )
    other = service_pb2.SystemSharedMemoryRegisterRequest(name="in", key=memory.key, byte_size=32)
    await client.unregister_system_shared_memory("in")
    await on(server, "SystemSharedMemoryRegister", other)
    try:
        async with triton_aio.InferenceServerClient(server.address) as direct:
            own = await refusal(infer(direct, "in", size=size, offset=offset))
    finally:
        await on(
            server,
            "SystemSharedMemoryUnregister",
            service_pb2.SystemSharedMemoryUnregisterRequest(name="in"),
        )
    assert refused[:2] == own[:2]


async def test_memory_that_was_made_shorter_is_not_touched(client: Any, memory: Memory) -> None:
    await client.register_system_shared_memory("in", memory.key, 4096)
    await infer(client, "in")
    memory.truncate(8)
    code, _, reason = await refusal(infer(client, "in"))
    assert (code, reason) == ("INVALID_ARGUMENT", "REGION_BOUNDS")


async def test_a_models_own_memory_cannot_be_registered(
    server: DirectTriton, client: Any, memory: Memory
) -> None:
    await client.register_system_shared_memory("in", memory.key, SIZE)
    await infer(client, "in")
    regions = await asyncio.to_thread(backend_regions)
    own = {name for name in regions if name.startswith(server.spec.shm_prefix)}
    assert own
    for key in own:
        code, text, reason = await refusal(client.register_system_shared_memory("x", key, 16))
        assert (code, reason) == ("INVALID_ARGUMENT", "REGION_REFUSED")
        assert "a model's own memory" in text


@pytest.mark.parametrize("key", ["", "/", "..", "/../shm/x", "/a/b", "sem.x"])
async def test_keys_that_are_no_names(client: Any, key: str) -> None:
    code, _, reason = await refusal(client.register_system_shared_memory("x", key, 16))
    assert (code, reason) == ("INVALID_ARGUMENT", "REGION_REFUSED")


async def test_the_servers_own_names_mean_nothing(
    server: DirectTriton, client: Any, memory: Memory
) -> None:
    await client.register_system_shared_memory("in", memory.key, SIZE)
    (name,) = await mapped(server)
    code, text, _ = await refusal(infer(client, name))
    assert (code, text) == ("NOT_FOUND", f"Unable to find shared memory region: '{name}'")


async def test_another_caller_sees_nothing_of_it(
    shoal: router_harness.Alone, client: Any, memory: Memory
) -> None:
    await client.register_system_shared_memory("in", memory.key, SIZE)
    assert shoal.memory is not None
    other = Call(Caller("other", "default", frozenset()), LOCAL_PEER, None)
    status = await shoal.memory.system_status(service_pb2.SystemSharedMemoryStatusRequest(), other)
    assert not status.regions
    request = service_pb2.SystemSharedMemoryRegisterRequest(
        name="in", key=memory.key, byte_size=SIZE
    )
    with pytest.raises(RegionRefused, match="another caller"):
        await shoal.memory.register_system(request, other)
    await shoal.memory.unregister_system(service_pb2.SystemSharedMemoryUnregisterRequest(), other)
    assert set((await client.get_system_shared_memory_status()).regions) == {"in"}


async def test_cuda_memory_goes_the_same_way(
    server: DirectTriton, shoal: router_harness.Alone
) -> None:
    """No GPU has given out such a handle, and Triton says so."""
    request = service_pb2.CudaSharedMemoryRegisterRequest(
        name="gpu", raw_handle=bytes(64), device_id=0, byte_size=64
    )
    ours = await refusal(shoal.stub.CudaSharedMemoryRegister(request))
    assert ours == await refusal(on(server, "CudaSharedMemoryRegister", request))
    status = await shoal.stub.CudaSharedMemoryStatus(service_pb2.CudaSharedMemoryStatusRequest())
    assert not status.regions
    unknown = service_pb2.CudaSharedMemoryStatusRequest(name="gpu")
    code, text, _ = await refusal(shoal.stub.CudaSharedMemoryStatus(unknown))
    own = await refusal(on(server, "CudaSharedMemoryStatus", unknown))
    assert (code, text) == own[:2]


@pytest.mark.parametrize("kind", ["System", "Cuda"])
async def test_regions_that_are_not_there(
    server: DirectTriton, shoal: router_harness.Alone, kind: str
) -> None:
    status = getattr(service_pb2, f"{kind}SharedMemoryStatusRequest")(name="none")
    ours = await refusal(getattr(shoal.stub, f"{kind}SharedMemoryStatus")(status))
    assert ours[:2] == (await refusal(on(server, f"{kind}SharedMemoryStatus", status)))[:2]
    gone = getattr(service_pb2, f"{kind}SharedMemoryUnregisterRequest")(name="none")
    await getattr(shoal.stub, f"{kind}SharedMemoryUnregister")(gone)
    await on(server, f"{kind}SharedMemoryUnregister", gone)


# --- where it is not for --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("peer", "more"),
    [
        ("ipv4:10.1.2.3:4711", {}),
        (LOCAL_PEER, {"proxies": ("127.0.0.1",)}),
        (LOCAL_PEER, {"several": True}),
    ],
)
async def test_only_callers_on_this_host_share_memory(
    controller: controller_harness.Alone, memory: Memory, peer: str, more: dict[str, Any]
) -> None:
    async with router(controller.address, shared_memory=True, grpc_port=2, **more) as running:
        assert running.memory is not None
        request = service_pb2.SystemSharedMemoryRegisterRequest(
            name="in", key=memory.key, byte_size=SIZE
        )
        call = Call(Caller("somebody", "default", frozenset()), peer, None)
        with pytest.raises(NotProxied):
            await running.memory.register_system(request, call)


async def test_servers_elsewhere_share_no_memory() -> None:
    server = Server("far", "192.0.2.1:8001")
    async with (
        controller_harness.controller([server], [], {"far": "x"}) as alone,
        router(alone.address, shared_memory=True) as running,
    ):
        request = service_pb2.SystemSharedMemoryStatusRequest()
        code, text, reason = await refusal(running.stub.SystemSharedMemoryStatus(request))
        assert (code, reason) == ("UNIMPLEMENTED", "NOT_PROXIED")
        assert "far" in text


async def test_it_is_off_unless_it_is_asked_for(
    controller: controller_harness.Alone, server: DirectTriton, memory: Memory
) -> None:
    async with router(controller.address, grpc_port=3) as running:
        for kind in ("System", "Cuda"):
            for verb in ("Status", "Register", "Unregister"):
                method = f"{kind}SharedMemory{verb}"
                request = getattr(service_pb2, f"{method}Request")()
                code, text, reason = await refusal(getattr(running.stub, method)(request))
                assert (code, reason) == ("UNIMPLEMENTED", "NOT_PROXIED")
                assert "SHOAL_ROUTER_SHARED_MEMORY" in text


async def test_what_an_earlier_router_has_left_is_unmapped(
    controller: controller_harness.Alone, server: DirectTriton, memory: Memory, output: Memory
) -> None:
    @asynccontextmanager
    async def again() -> AsyncIterator[Any]:
        async with (
            router(controller.address, shared_memory=True, grpc_port=4) as running,
            triton_aio.InferenceServerClient(running.address) as one,
        ):
            yield one

    before = await mapped(server)
    async with again() as one:
        await one.register_system_shared_memory("in", memory.key, SIZE)
    left = await mapped(server) - before
    assert len(left) == 1
    async with again() as one:
        await one.register_system_shared_memory("in", output.key, SIZE)
        assert not left & await mapped(server)
        await one.unregister_system_shared_memory()
    assert await mapped(server) == before


async def test_requests_that_only_mention_it_pass_as_they_are(
    shoal: router_harness.Alone, client: Any
) -> None:
    request = service_pb2.ModelInferRequest(model_name="twice", id="shared_memory_region")
    request.inputs.add(name="INPUT", datatype="FP32", shape=[2])
    request.raw_input_contents.append(struct.pack("<2f", 1.0, 2.0))
    answer = await shoal.stub.ModelInfer(request)
    assert answer.id == "shared_memory_region"
    assert struct.unpack("<2f", answer.raw_output_contents[0]) == (2.0, 4.0)


@pytest.mark.parametrize("wrong", ["region", "offset", "size", "no size"])
async def test_a_tensor_that_does_not_say_where_it_lies_is_refused_as_in_triton(
    server: DirectTriton, shoal: router_harness.Alone, client: Any, memory: Memory, wrong: str
) -> None:
    await client.register_system_shared_memory("in", memory.key, SIZE)
    request = service_pb2.ModelInferRequest(model_name="twice")
    parameters = request.inputs.add(name="INPUT", datatype="FP32", shape=[4]).parameters
    parameters["shared_memory_region"].string_param = "in"
    parameters["shared_memory_byte_size"].int64_param = SIZE
    match wrong:
        case "region":
            parameters["shared_memory_region"].int64_param = 1
        case "offset":
            parameters["shared_memory_offset"].string_param = "0"
        case "size":
            parameters["shared_memory_byte_size"].string_param = "16"
        case "no size":
            del parameters["shared_memory_byte_size"]
    await infer(client, "in")  # it is resident
    code, text, _ = await refusal(shoal.stub.ModelInfer(request))
    own = await refusal(on(server, "ModelInfer", request))
    assert code == "INVALID_ARGUMENT"
    assert (code, text) == own[:2]


async def test_bytes_that_only_mention_it_are_refused_as_ever(shoal: router_harness.Alone) -> None:
    async with grpc.aio.insecure_channel(shoal.address) as channel:
        call: Any = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        code, _, reason = await refusal(call(b"\xff\xff shared_memory_region"))
    assert (code, reason) == ("INVALID_ARGUMENT", "MALFORMED_MESSAGE")
