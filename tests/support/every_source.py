"""One model at every kind of source that there can be on this host."""

import asyncio
import contextlib
import hashlib
import io
import json
import shutil
import tarfile
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

from aiohttp import web
from mlflow import MlflowClient

from tests.support.mlflow_server import mlflow_server
from tests.support.oci_registry import SmallRegistry
from tests.support.storage import put, s3_server, variables
from tests.support.web_server import https_server

SOON = 30.0  # seconds
COMMIT = "1" * 40


@contextlib.contextmanager
def every_source(model: Path, folder: Path) -> Iterator[tuple[dict[str, str], dict[str, str]]]:
    """Serve a model from everywhere.

    Yields the environment of a Registry that may read it, and the source of each scheme. `folder`
    keeps what is served.
    """
    files = files_of(model)
    with (
        s3_server() as s3,
        mlflow_server() as mlflow,
        _web_servers(folder, files) as (port, registry),
    ):
        put(s3, {f"{model.name}/{path}": content for path, content in files.items()})
        _log(mlflow, model, folder / "logged")
        _fill_cache(folder / "hub", files)
        origins = {"private_hosts": ["127.0.0.0/8", "::1"], "plain_hosts": [registry.host]}
        environment = {
            **variables(s3),
            "MLFLOW_TRACKING_URI": mlflow,
            "HF_HUB_CACHE": str(folder / "hub"),
            "HF_HUB_OFFLINE": "1",
            "SSL_CERT_FILE": str(folder / "ca.pem"),
            "SHOAL_REGISTRY_ORIGINS": json.dumps(origins),
            "SHOAL_REGISTRY_CODE_SOURCES": "file,upload,s3,https,hf,oci,mlflow",
        }
        yield (
            environment,
            {
                "file": f"file://{model}",
                "s3": f"s3://models/{model.name}",
                "https": f"https://localhost:{port}/model.tar.gz",
                "hf": "hf://acme/model@main",
                "oci": f"oci://{registry.host}/acme/model:1",
                "mlflow": "mlflow://logged/1",
            },
        )


def files_of(model: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(model)): path.read_bytes()
        for path in sorted(model.rglob("*"))
        if path.is_file()
    }


def _packed(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for path, content in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def _fill_cache(cache: Path, files: Mapping[str, bytes]) -> None:
    """Write a repository as the hub's library keeps it."""
    repository = cache / "models--acme--model"
    for path, content in files.items():
        target = repository / "snapshots" / COMMIT / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)


def _push(registry: SmallRegistry, files: Mapping[str, bytes]) -> None:
    """Put an artifact as ORAS lays it out, under the tag 1."""
    layers = [
        {
            "mediaType": "application/octet-stream",
            "digest": registry.put(content),
            "size": len(content),
            "annotations": {"org.opencontainers.image.title": path},
        }
        for path, content in files.items()
    ]
    empty = "application/vnd.oci.empty.v1+json"
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": empty, "digest": registry.put(b"{}"), "size": 2},
        "layers": layers,
    }
    body = json.dumps(manifest).encode()
    for reference in ("1", f"sha256:{hashlib.sha256(body).hexdigest()}"):
        registry.manifests[reference] = str(manifest["mediaType"]), body


def _log(url: str, model: Path, folder: Path) -> None:
    """Register the model with MLflow, as NVIDIA's plugin lays it out."""
    folder.mkdir()
    (folder / "MLmodel").write_text("flavors:\n  triton:\n    data: model\n")
    shutil.copytree(model, folder / "model")
    client = MlflowClient(url)
    run = client.create_run("0").info
    client.log_artifacts(run.run_id, str(folder), "model")
    client.create_registered_model("logged")
    client.create_model_version("logged", f"{run.artifact_uri}/model", run.run_id)


@contextlib.contextmanager
def _web_servers(folder: Path, files: Mapping[str, bytes]) -> Iterator[tuple[int, SmallRegistry]]:
    """Serve an archive by HTTPS and an artifact by an OCI registry, in a thread."""
    started, stop = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()
    registry = SmallRegistry()
    port = 0

    async def archive(request: web.Request) -> web.StreamResponse:
        return web.Response(body=_packed(files), headers={"ETag": '"1"'})

    @contextlib.asynccontextmanager
    async def serving() -> AsyncIterator[int]:
        async with https_server(folder, {"/model.tar.gz": archive}) as bound, registry.served():
            yield bound

    async def serve() -> None:
        nonlocal port
        async with serving() as port:
            started.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        assert started.wait(SOON)
        _push(registry, files)
        yield port, registry
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()
