"""A real Registry on a free port, tiny models on disk, and errors taken apart."""

from collections.abc import AsyncIterator, Awaitable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import onnx
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from onnx import TensorProto, helper

from services.common.status import DETAILS_KEY, error_info
from services.registry.api.servicer import NAME
from services.registry.assembly import running
from services.registry.settings import RegistrySettings
from shoal.registry.v1 import registry_service_pb2 as pb
from shoal.registry.v1 import registry_service_pb2_grpc as pb_grpc
from shoal.registry.v1 import types_pb2 as types

TENSORS = """
input { name: "IN" data_type: TYPE_FP32 dims: [ 1 ] }
output { name: "OUT" data_type: TYPE_FP32 dims: [ 1 ] }
"""
PYTHON_CONFIG = f'backend: "python"\n{TENSORS}'
PYTHON_CODE = "class TritonPythonModel:\n    def execute(self, requests):\n        return []\n"


@dataclass(frozen=True)
class Registry:
    stub: Any
    channel: grpc.aio.Channel
    settings: RegistrySettings
    metrics_port: int | None
    address: str

    @property
    def staging(self) -> Path:
        return self.settings.staging

    async def register(self, model: str, source: Path, **fields: Any) -> types.ModelVersion:
        response = await self.stub.RegisterModelVersion(
            pb.RegisterModelVersionRequest(parent=f"models/{model}", source=str(source), **fields)
        )
        return response.version

    async def model(self, name: str) -> types.Model:
        return (await self.stub.GetModel(pb.GetModelRequest(name=f"models/{name}"))).model

    async def version(self, name: str) -> types.ModelVersion:
        """Return the version that `name`, MODEL:NUMBER, stands for."""
        request = pb.GetModelVersionRequest(name=version_name(name))
        return (await self.stub.GetModelVersion(request)).version

    async def import_(self, path: Path) -> pb.ImportRepositoryResponse:
        return await self.stub.ImportRepository(pb.ImportRepositoryRequest(path=str(path)))

    async def problems(self) -> list[pb.ImportProblem]:
        """Return what could not be imported, as of the last import of each repository."""
        response = await self.stub.ListImportProblems(pb.ListImportProblemsRequest())
        return list(response.problems)

    async def refresh(self, model: str) -> pb.RefreshModelResponse:
        return await self.stub.RefreshModel(pb.RefreshModelRequest(name=f"models/{model}"))

    async def check(self, name: str) -> pb.CheckModelVersionResponse:
        """Compare the files of the version that `name`, MODEL:NUMBER, stands for."""
        request = pb.CheckModelVersionRequest(name=version_name(name))
        return await self.stub.CheckModelVersion(request)

    async def revision(self) -> int:
        watch = self.stub.WatchCatalog(pb.WatchCatalogRequest())
        first = await watch.read()
        watch.cancel()
        return first.revision


@asynccontextmanager
async def registry(folder: Path, **settings: Any) -> AsyncIterator[Registry]:
    """Run a Registry with its data in `folder`, and give it once it is SERVING."""
    chosen = RegistrySettings(
        **{
            "port": 0,
            "metrics_port": None,
            "data_dir": folder,
            "stop_grace_seconds": 0.2,
            # Many a test's model is a Python file.
            "code_sources": ("file", "upload", "s3", "https", "hf", "oci", "mlflow"),
            **settings,
        }
    )
    async with (
        running(chosen) as ports,
        grpc.aio.insecure_channel(f"127.0.0.1:{ports.port}") as channel,
    ):
        await serving(channel)
        yield Registry(
            pb_grpc.RegistryServiceStub(channel),
            channel,
            chosen,
            ports.metrics_port,
            f"127.0.0.1:{ports.port}",
        )


async def serving(channel: grpc.aio.Channel) -> None:
    watch = health_pb2_grpc.HealthStub(channel).Watch(
        health_pb2.HealthCheckRequest(service=NAME), wait_for_ready=True
    )
    async for response in watch:
        if response.status == health_pb2.HealthCheckResponse.SERVING:
            break
    watch.cancel()


@dataclass(frozen=True)
class Refusal:
    code: grpc.StatusCode
    reason: str
    metadata: dict[str, str]
    message: str
    retry_after: float | None


async def refusal(call: Awaitable[Any]) -> Refusal:
    """Return the error that a call must end with, all of whose variables are in its message."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = caught.value
    metadata: Any = error.trailing_metadata()
    info = error_info(metadata)
    assert info is not None, error
    assert info.domain == "shoal"
    message = error.details() or ""
    assert all(value in message for value in info.metadata.values()), (message, info)
    return Refusal(error.code(), info.reason, dict(info.metadata), message, _retry_after(error))


def _retry_after(error: grpc.aio.AioRpcError) -> float | None:
    """Return the delay in seconds."""
    status = status_pb2.Status.FromString(dict(error.trailing_metadata())[DETAILS_KEY])
    retry = error_details_pb2.RetryInfo()
    for detail in status.details:
        if detail.Unpack(retry):
            return retry.retry_delay.ToNanoseconds() / 1e9
    return None


def version_name(name: str) -> str:
    model, _, number = name.partition(":")
    return f"models/{model}/versions/{number}"


def python_model(
    repository: Path, name: str, versions: Iterable[int] = (1,), config: str = PYTHON_CONFIG
) -> Path:
    folder = repository / name
    for number in versions:
        (folder / str(number)).mkdir(parents=True)
        (folder / str(number) / "model.py").write_text(PYTHON_CODE)
    (folder / "config.pbtxt").write_text(config)
    return folder


def ensemble(
    repository: Path, name: str, parts: Iterable[str], versions: Iterable[int] = (1,)
) -> Path:
    """Make an ensemble of `parts`, each MODEL or MODEL:NUMBER, one after the other."""
    chain = list(parts)
    between = [f"T{index}" for index in range(1, len(chain))]
    tensors = zip(chain, ["IN", *between], [*between, "OUT"], strict=True)
    steps = "".join(_step(*part.partition(":"), *ends) for part, *ends in tensors)
    config = f'platform: "ensemble"\n{TENSORS}\nensemble_scheduling {{ {steps} }}\n'
    folder = repository / name
    for number in versions:
        (folder / str(number)).mkdir(parents=True)
    (folder / "config.pbtxt").write_text(config)
    return folder


def _step(model: str, _: str, number: str, source: str, target: str) -> str:
    return (
        f'step {{ model_name: "{model}" model_version: {number or -1} '
        f'input_map {{ key: "IN" value: "{source}" }} '
        f'output_map {{ key: "OUT" value: "{target}" }} }}\n'
    )


def onnx_model(
    path: Path,
    inputs: dict[str, list[int | str]] | None = None,
    outputs: dict[str, list[int | str]] | None = None,
    element: int = TensorProto.FLOAT,
) -> Path:
    """Make a file with these tensors; a name leaves a size open. It computes nothing sensible."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "graph",
        [_tensor(name, element, shape) for name, shape in (inputs or {"x": ["batch", 4]}).items()],
        [_tensor(name, element, shape) for name, shape in (outputs or {"y": ["batch", 4]}).items()],
        [helper.make_tensor("weights", TensorProto.FLOAT, [2], [1.0, 2.0])],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph), path)
    return path


def _tensor(name: str, element: int, shape: list[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, element, shape)


def tree_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Return the size and time of every path below, without following links."""
    return {
        str(path.relative_to(folder)): (path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in sorted([folder, *folder.rglob("*")])
    }
