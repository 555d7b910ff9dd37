"""UNAVAILABLE as a model says it, and as gRPC says it of a lost server; the Tritons are real."""

import asyncio
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import text_format
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tests.support.streams import SLOW, Places, Talk, ask, routed, write_models
from tests.support.triton_direct import DirectTriton, two_servers
from tests.support.triton_models import config
from tests.support.waiting import until

pytestmark = pytest.mark.triton

BUSY = "busy"
SECONDS = 20.0

# Says of itself, asked with a negative number, what the request's id says; else how often it did.
_BUSY = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        self.times = 0

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        if pb_utils.get_input_tensor_by_name(request, "INPUT").as_numpy()[0] < 0:
            self.times += 1
            error = pb_utils.TritonError(request.request_id(), pb_utils.TritonError.UNAVAILABLE)
            return pb_utils.InferenceResponse(error=error)
        times = np.array([self.times], np.float32)
        return pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", times)])
"""

OWN = (
    "it has too many users",
    "Stream removed (Socket closed)",
    "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:5432: Failed to "
    "connect to remote host: connect: Connection refused (111)",
    "part is not at ready state",
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_models(tmp_path_factory.mktemp("models"))
    (folder / BUSY / "1").mkdir(parents=True)
    (folder / BUSY / "1" / "model.py").write_text(_BUSY)
    (folder / BUSY / "config.pbtxt").write_text(text_format.MessageToString(config(BUSY)))
    return folder


@pytest.fixture
def servers(models: Path, tmp_path: Path) -> Iterator[dict[str, DirectTriton]]:
    with two_servers(tmp_path, models, (BUSY, SLOW)) as servers:
        yield servers


@asynccontextmanager
async def asked(address: str) -> AsyncIterator[Any]:
    """A stub; `address`: of whoever answers."""
    async with grpc.aio.insecure_channel(address) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


async def failure(stub: Any, request: Any) -> tuple[str, str | None]:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await stub.ModelInfer(request, timeout=SECONDS)
    return error.value.code().name, error.value.details()


async def times(stub: Any) -> float:
    reply = await stub.ModelInfer(ask(BUSY, 1), timeout=SECONDS)
    (raw,) = reply.raw_output_contents
    return float(struct.unpack("<f", raw)[0])


async def test_what_a_model_says_is_the_clients_and_is_asked_for_once(
    servers: dict[str, DirectTriton],
) -> None:
    where = Places({name: server.address for name, server in servers.items()}, {BUSY: ["a"]})
    requests = [ask(BUSY, -1, id_=text) for text in OWN]
    async with (
        routed(where) as router,
        asked(router.address) as shoal,
        asked(servers["a"].address) as alone,
    ):
        for request in requests:
            assert await failure(shoal, request) == await failure(alone, request)
        assert await times(alone) == 2 * len(OWN)
        async with grpc.aio.insecure_channel(servers["a"].address) as channel:
            wanted = await Talk(channel).all(*requests)
        assert await router.talk().all(*requests) == wanted
        assert await times(alone) == 4 * len(OWN)
        assert where.told("broke") == []
        assert where.asked == []
        assert router.counted(BUSY)[:2] == (2 * len(OWN), 2 * len(OWN))


LARGE = [800_000]  # numbers: more than what comes to a server that reads nothing


@pytest.mark.parametrize(
    ("stopped", "shape"),
    [(False, [1]), (True, [1]), (True, LARGE)],
    ids=["at work on it", "before it reads it", "while it is sent"],
)
async def test_what_a_lost_server_had_is_asked_of_another(
    servers: dict[str, DirectTriton], stopped: bool, shape: list[int]
) -> None:
    lost = servers["a"].process
    placed = {SLOW: ["a"], BUSY: ["a"]}
    where = Places({name: server.address for name, server in servers.items()}, placed)
    async with routed(where) as router, asked(router.address) as shoal:
        for model in placed:  # as the Controller knows; the Router's table has a alone
            where.placed[model] = ["a", "b"]
        await shoal.ModelInfer(ask(SLOW, 0), timeout=SECONDS)
        request = ask(SLOW, 0.5) if shape == [1] else large()
        if stopped:
            lost.suspend()
        calls = [shoal.ModelInfer(request, timeout=SECONDS) for _ in range(3)]
        await until(lambda: router.count("a", SLOW) == len(calls))
        lost.kill()
        after = shoal.ModelInfer(ask(BUSY, 1), timeout=SECONDS)
        for call in (*calls, after):
            assert (await call).model_version == "1"
        await until(lambda: where.told("broke"))
        assert {broke.replica.model for broke in where.told("broke")} <= {SLOW, BUSY}
        assert all(broke.repeated for broke in where.told("broke"))
        assert all(one.missed.server == "a" for one in where.asked)


def large() -> Any:
    request = service_pb2.ModelInferRequest(model_name=SLOW)
    request.inputs.add(name="INPUT", datatype="FP32", shape=LARGE)
    request.raw_input_contents.append(bytes(4 * LARGE[0]))
    return request


async def test_a_server_that_has_not_come_back_yet_is_passed_by(
    servers: dict[str, DirectTriton],
) -> None:
    where = Places({name: server.address for name, server in servers.items()}, {BUSY: ["a"]})
    async with routed(where) as router, asked(router.address) as shoal:
        assert await times(shoal) == 0
        servers["a"].process.kill()
        await asyncio.to_thread(servers["a"].process.wait, SECONDS)
        where.placed[BUSY] = ["a", "b"]
        assert await times(shoal) == 0
        assert [one.missed.server for one in where.asked] == ["a"]
