"""Configs completed by the fleet's own server, which runs with auto-completion, or does not."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from pydantic import SecretStr
from tritonclient.grpc.model_config_pb2 import ModelConfig

from services.common import channels
from services.controller.assembly import running
from services.controller.core.entities import Unit
from services.controller.settings import ServerSettings, Settings
from services.controller.triton.client import Triton
from services.embedded.readiness import grpc_serving
from shoal.controller.v1 import controller_service_pb2 as wire
from shoal.controller.v1.controller_service_pb2_grpc import ControllerServiceStub
from shoal.registry.v1 import registry_service_pb2 as pb
from shoal.registry.v1 import types_pb2
from tests.support.registry import TENSORS, Registry, registry
from tests.support.triton_direct import triton_direct

pytestmark = pytest.mark.triton

SECONDS = 60.0
CODE = """
class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        {completes}
        config.set_max_batch_size(8)
        return config

    def execute(self, requests):
        return []
"""


def write(repository: Path, name: str, completes: str = "pass", config: str = "") -> None:
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "1" / "model.py").write_text(CODE.format(completes=completes))
    (repository / name / "config.pbtxt").write_text(config or f'backend: "python"\n{TENSORS}')


@asynccontextmanager
async def fleet(folder: Path, *, auto_complete: bool) -> AsyncIterator[tuple[Registry, Any]]:
    """Run a Registry over `folder`/repo, one Triton, and a Controller; give their stubs."""
    async with registry(folder / "data", repositories=(folder / "repo",)) as known:
        (folder / "server").mkdir()
        with triton_direct(
            folder / "server", known.staging, id="t0", auto_complete=auto_complete
        ) as server:
            settings = Settings(
                port=0,
                metrics_port=0,
                registry=known.address,
                servers=[ServerSettings(id="t0", address=server.address)],
                triton_admin_key=SecretStr(server.spec.admin_secret),
            )
            async with Triton("t0", server.address, server.spec.admin_secret) as triton:
                assert await triton.completes_configs() is auto_complete
                assert Unit("shoal-auto-completion", 1) not in await triton.index()
            async with (
                running(settings) as port,
                channels.control(f"127.0.0.1:{port}") as channel,
            ):
                await grpc_serving(f"127.0.0.1:{port}")
                yield known, ControllerServiceStub(channel)


async def nothing_waits(known: Registry) -> None:
    async with asyncio.timeout(SECONDS):
        async for response in known.stub.WatchCompletions(pb.WatchCompletionsRequest()):
            if not response.versions:
                return


async def completed(controller: Any, model: str) -> ModelConfig:
    request = wire.GetModelConfigRequest(model=model, version=1)
    return ModelConfig.FromString((await controller.GetModelConfig(request)).config)


async def test_a_server_that_completes_configs_is_used_for_it(tmp_path: Path) -> None:
    repository = tmp_path / "repo"
    write(repository, "first")
    write(repository, "second")
    write(repository, "raises", 'raise ValueError("it cannot tell")')
    async with fleet(tmp_path, auto_complete=True) as (known, controller):
        # Somebody asks for one; nobody does for the others.
        load = wire.LoadModelRequest(name="models/second")
        await controller.LoadModel(load, timeout=SECONDS)
        await nothing_waits(known)
        for model in ("second", "first"):
            config = await completed(controller, model)
            assert config.max_batch_size == 8
            assert [one.name for one in config.input] == ["IN"]
        failed = await known.version("raises:1")
        assert failed.state == types_pb2.VERSION_STATE_INVALID
        assert failed.invalid_reason.startswith("a server that was asked to complete its config")
        assert "it cannot tell" in failed.invalid_reason


async def test_a_server_that_completes_none_is_not_asked(tmp_path: Path) -> None:
    write(tmp_path / "repo", "m")
    async with fleet(tmp_path, auto_complete=False) as (known, controller):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await controller.LoadModel(wire.LoadModelRequest(name="models/m"), timeout=1)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "waits for a Triton that runs with auto-completion" in str(refused.value.details())
        assert (await known.version("m:1")).state == types_pb2.VERSION_STATE_WAITING
        assert not (await controller.ListReplicas(wire.ListReplicasRequest())).replicas
