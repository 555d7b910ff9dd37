"""The Registry as a process: settings, health, who may call, how it ends."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pydantic import ValidationError

from services.common.caller import ROLES_HEADER, SUBJECT_HEADER
from services.common.process import EXIT_PORT_TAKEN
from services.embedded.ports import pick
from services.registry.api.servicer import NAME, OPEN_METHODS
from services.registry.settings import RegistrySettings
from shoal.registry.v1 import registry_service_pb2 as pb
from shoal.registry.v1 import registry_service_pb2_grpc as pb_grpc
from tests.support.registry import python_model, refusal, registry, serving

ROOT = Path(__file__).resolve().parents[2]


@contextlib.asynccontextmanager
async def process(**environment: str) -> AsyncIterator[asyncio.subprocess.Process]:
    variables = {f"SHOAL_REGISTRY_{name.upper()}": value for name, value in environment.items()}
    started = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.registry"),
        cwd=ROOT,
        env={**os.environ, **variables},
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield started
    finally:
        with contextlib.suppress(ProcessLookupError):
            started.kill()
        await started.wait()


async def test_a_process_serves_until_it_is_told_to_stop(database: str, tmp_path: Path) -> None:
    python_model(tmp_path / "repo", "m")
    (port,) = pick(1)
    settings = {
        "port": str(port),
        "metrics_port": "0",
        "data_dir": str(tmp_path / "data"),
        "repositories": str(tmp_path / "repo"),
    }
    async with process(**settings) as started:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            await serving(channel)
            stub = pb_grpc.RegistryServiceStub(channel)
            models = (await stub.ListModels(pb.ListModelsRequest())).models
            assert [model.name for model in models] == ["models/m"]
            async with process(**{**settings, "data_dir": str(tmp_path / "other")}) as second:
                assert await second.wait() == EXIT_PORT_TAKEN
        started.send_signal(signal.SIGTERM)
        assert await started.wait() == 0
    if database.startswith("sqlite"):
        assert (tmp_path / "data" / "registry.db").exists()


@pytest.mark.usefixtures("database")
async def test_it_is_not_serving_while_it_stops(tmp_path: Path) -> None:
    async with registry(tmp_path) as known:
        watch = health_pb2_grpc.HealthStub(known.channel).Watch(
            health_pb2.HealthCheckRequest(service=NAME)
        )
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()


@pytest.mark.usefixtures("database")
async def test_strangers_may_look_and_nothing_else(tmp_path: Path) -> None:
    # A trusted proxy that names nobody speaks for a stranger.
    python_model(tmp_path / "repo", "m")
    settings = {"repositories": (tmp_path / "repo",), "trusted_proxies": ("127.0.0.1",)}
    async with registry(tmp_path / "data", **settings) as known:
        assert (await known.model("m")).default_version == 1
        methods = pb.DESCRIPTOR.services_by_name["RegistryService"].methods
        refused = []
        for method in methods:
            if f"/{NAME}/{method.name}" in OPEN_METHODS:
                continue
            request = getattr(pb, method.input_type.name)()
            sent = iter((request,)) if method.client_streaming else request
            refusing = await refusal(getattr(known.stub, method.name)(sent))
            assert (refusing.code, refusing.reason) == (
                grpc.StatusCode.PERMISSION_DENIED,
                "ADMIN_REQUIRED",
            )
            refused.append(method.name)
        assert len(refused) == 27
        administrator = ((SUBJECT_HEADER, "ann"), (ROLES_HEADER, "admin"))
        request = pb.DeleteModelRequest(name="models/m")
        await known.stub.DeleteModel(request, metadata=administrator)


def test_who_may_look_at_what() -> None:
    assert {method.rpartition("/")[2] for method in OPEN_METHODS} == {
        "GetModel",
        "ListModels",
        "GetModelVersion",
        "ListModelVersions",
        "WatchCatalog",
        "WatchCompletions",
        "ListFootprints",
        "ListImportProblems",
        "GetImport",
        "ListImports",
        "ListSourceWatches",
        "WatchImport",
        "GetDiskUsage",
    }


def test_settings_come_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plain = RegistrySettings()
    assert (plain.host, plain.port, plain.metrics_port) == ("127.0.0.1", 9101, 9111)
    assert plain.staging == tmp_path / ".shoal" / "staging"
    assert plain.database == f"sqlite:///{tmp_path}/.shoal/registry.db"
    for name, value in (
        ("REPOSITORIES", f"models{os.pathsep}/more"),
        ("TRUSTED_PROXIES", '["10.0.0.0/8", "::1"]'),
        ("DATABASE_URL", "postgresql://user:secret@host/db"),
        ("STAGING_DIR", "/staging"),
        ("METRICS_PORT", "none"),
    ):
        monkeypatch.setenv(f"SHOAL_REGISTRY_{name}", value)
    told = RegistrySettings()
    assert told.repositories == (tmp_path / "models", Path("/more"))
    assert told.trusted_proxies == ("10.0.0.0/8", "::1")
    assert told.database == "postgresql://user:secret@host/db"
    assert "secret" not in repr(told)
    assert (told.staging, told.metrics_port) == (Path("/staging"), None)
    monkeypatch.setenv("SHOAL_REGISTRY_PORT", "65536")
    with pytest.raises(ValidationError):
        RegistrySettings()
