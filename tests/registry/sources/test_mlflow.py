"""Registered models of a real MLflow server."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from services.registry.core.errors import (
    ContentMismatch,
    SourceForbidden,
    SourceNotFound,
    SourceUnavailable,
)
from services.registry.core.source import Source, parse
from services.registry.sources import mlflow_server as mlflow_server_module
from services.registry.sources.origin import Listing
from services.registry.sources.origins import origin_of
from services.registry.sources.settings import OriginSettings
from shoal.registry.v1 import registry_service_pb2 as pb
from tests.registry.test_imports import ended, start
from tests.support.mlflow_server import mlflow_server
from tests.support.onnx_models import rows
from tests.support.registry import registry, version_name
from tests.support.storage import free_ports, put, s3_server
from tests.support.storage import variables as storage_variables


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with mlflow_server() as url:
        program = [sys.executable, "-m", "tests.support.mlflow_models", url]
        subprocess.run(program, check=True, capture_output=True)
        yield url


@pytest.fixture(autouse=True)
def variables(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)


async def listed(source: Source | str) -> Listing:
    source = parse(source) if isinstance(source, str) else source
    return await origin_of(source, OriginSettings()).resolve(source)


async def contents(listing: Listing, start: int = 0) -> dict[str, bytes]:
    origin = origin_of(listing.source, OriginSettings())
    return {
        file.path: b"".join([chunk async for chunk in origin.read(listing, file, start)])
        for file in listing.files
    }


async def test_a_version_with_a_graph() -> None:
    listing = await listed("mlflow://fraud/2")
    assert await contents(listing) == {"model.onnx": rows("Neg")}
    assert await contents(listing, 10) == {"model.onnx": rows("Neg")[10:]}
    assert await listed(listing.source) == listing


async def test_what_mlflow_says_of_a_version(server: str) -> None:
    about = (await listed("mlflow://fraud/1")).about
    version = MlflowClient(server).get_model_version("fraud", "1")
    assert about["run_id"] == version.run_id
    assert (about["name"], about["version"], about["tag.team"]) == ("fraud", "1", "payments")
    assert about["flavors"] == "onnx,python_function"
    (tensor,) = json.loads(about["inputs"])
    assert tensor["name"] == "x"
    assert tensor["tensor-spec"] == {"dtype": "float32", "shape": [-1, 4]}
    assert "artifacts" not in repr(about)


async def test_an_alias_moves_and_what_it_meant_stays(server: str) -> None:
    source = parse("mlflow://fraud@champion")
    before = await listed(source)
    assert before.source.revision.startswith("1:")
    MlflowClient(server).set_registered_model_alias("fraud", "champion", "2")
    after = await listed(source)
    assert after.source.revision.startswith("2:")
    assert await listed(before.source) == before
    assert (await contents(before), await contents(after)) == (
        {"model.onnx": rows("Identity")},
        {"model.onnx": rows("Neg")},
    )


async def test_the_folder_of_the_flavour_triton() -> None:
    listing = await listed("mlflow://ranker/1")
    assert await contents(listing) == {
        "1/model.onnx": rows(),
        "config.pbtxt": b'backend: "onnxruntime"',
    }


async def test_other_flavours_come_whole() -> None:
    files = await contents(await listed("mlflow://doubled/1"))
    assert {"MLmodel", "python_model.pkl", "requirements.txt"} <= set(files)


@pytest.mark.parametrize(
    "text", ["mlflow://nothing/1", "mlflow://fraud/9", "mlflow://fraud@nobody"]
)
async def test_what_is_not_there(text: str) -> None:
    with pytest.raises(SourceNotFound):
        await listed(text)


async def test_artifacts_in_a_bucket(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    description = {"flavors": {"onnx": {"data": "model.onnx"}}, "run_id": "1"}
    with s3_server() as storage:
        put(storage, {"runs/1/MLmodel": json.dumps(description).encode()})
        put(storage, {"runs/1/model.onnx": rows(), "runs/1/conda.yaml": b""})
        for name, value in storage_variables(storage).items():
            monkeypatch.setenv(name, value)
        client = MlflowClient(server)
        client.create_registered_model("stored")
        client.create_model_version("stored", "s3://models/runs/1")
        assert await contents(await listed("mlflow://stored/1")) == {"model.onnx": rows()}


@pytest.mark.parametrize(
    "description",
    [
        b"[]",
        b"\xff",
        b"a: [",
        b"[" * 3000,
        b"a: &a {x: 1}\n"
        + b"".join(b"%c: &%c {<<: [*%c, *%c]}\n" % (n + 1, n + 1, n, n) for n in range(97, 121)),
    ],
    ids=["list", "bytes", "broken", "deep", "merges"],
)
def test_a_description_that_is_none(description: bytes) -> None:
    with pytest.raises(ContentMismatch, match="MLmodel"):
        mlflow_server_module._description(description)


@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        ("file:///etc", "but at file://"),
        ("/etc", "but at file://"),
        ("sftp://user:secret@host/folder", "but at sftp://"),
        ("http://169.254.169.254/secret", "but at http://"),
        ("mlflow-artifacts://secret.internal/0/models", "another server than MLflow's own"),
    ],
)
async def test_artifacts_that_lie_elsewhere(
    uri: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MlflowClient, "get_model_version_download_uri", lambda *_: uri)
    with pytest.raises(SourceForbidden, match=problem) as caught:
        await listed("mlflow://fraud/1")
    assert "secret" not in str(caught.value)


async def test_no_server_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(SourceNotFound, match="Set MLFLOW_TRACKING_URI"):
        await listed("mlflow://fraud/1")


async def test_a_server_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = free_ports(1)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret@127.0.0.1:{port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(SourceUnavailable) as caught:
        await listed("mlflow://fraud/1")
    assert "secret" not in str(caught.value)


async def test_a_watched_alias_registers_the_next_version_when_it_moves(
    server: str, tmp_path: Path
) -> None:
    client = MlflowClient(server)
    client.set_registered_model_alias("fraud", "served", "1")
    async with registry(tmp_path / "data", source_watch_seconds=0.2) as known:
        first = await start(known, "mlflow://fraud@served", "fraud", watch=True)
        assert (await ended(known, first)).version == version_name("fraud:1")
        client.set_registered_model_alias("fraud", "served", "2")
        async with asyncio.timeout(60):
            updates = known.stub.WatchCatalog(pb.WatchCatalogRequest())
            async for update in updates:
                entries = [*update.snapshot.entries, *update.delta.entries]
                made = [one.name for entry in entries for one in entry.versions]
                if version_name("fraud:2") in made:
                    break
            updates.cancel()
        origin = (await known.version("fraud:2")).provenance
        assert origin.source.revision.startswith("2:")
        assert origin.about["version"] == "2"
