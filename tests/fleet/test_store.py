"""Models from a source and from a caller's machine, served by a real Triton out of one store."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from services.embedded.background import BackgroundStack
from shoal.client import Client, connect
from shoal.registry.v1 import registry_service_pb2 as pb
from tests.support.stack import Fleet, fleet
from tests.support.triton_models import write

pytestmark = pytest.mark.triton

SOON = 20.0  # seconds
WEIGHTS = 1 << 20  # bytes of each model
BUDGET = 2 * WEIGHTS + WEIGHTS // 2
NAMES = ("one", "two", "three", "four", "five")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store") / "models"
    for number, name in enumerate((*NAMES, "sent"), start=1):
        write(folder, name, answer=f"x + {number}")
        (folder / name / "1" / "weights.bin").write_bytes(bytes([number]) * WEIGHTS)
    return folder


@pytest.fixture(scope="module")
def stack() -> Iterator[Fleet]:
    with BackgroundStack(
        "--servers=1",
        "--max-models=1",
        "--memory-budget=2GiB",
        "--no-otlp",
        environment={
            "SHOAL_CONTROLLER_LOAD_BACKOFF": "1",
            "SHOAL_REGISTRY_STORE_BUDGET": str(BUDGET),
            "SHOAL_REGISTRY_STORE_FREE": "0",
            "SHOAL_REGISTRY_CODE_SOURCES": "file,upload",
        },
    ) as running:
        yield fleet(running)


@pytest.fixture
def client(stack: Fleet) -> Iterator[Client]:
    with connect(
        router=stack.stack.router_grpc,
        controller=stack.stack.controller,
        registry=stack.stack.registry,
    ) as made:
        yield made


def ask(client: Client, model: str) -> float:
    """Return what the model makes of 1."""
    answer = client.infer(model, {"INPUT": np.ones(1, np.float32)}, timeout=SOON)
    return float(answer["OUTPUT"][0])


def test_every_model_answers_though_the_disk_holds_only_some(
    stack: Fleet, client: Client, models: Path
) -> None:
    for name in NAMES:
        made = client.register(name, f"file://{models}/{name}")
        assert made.state == "APPROVED", made.invalid_reason
        client.wait_for_route(name, "", answers=1, within=SOON)
        assert client.disk_usage().used_bytes <= BUDGET
    for name in (*NAMES, *reversed(NAMES)):
        assert ask(client, name) == 2 + NAMES.index(name)
        assert client.disk_usage().used_bytes <= BUDGET
    usage = client.disk_usage()
    kept = {str(one.versions[0]): one.kept_because for one in usage.holdings if one.present}
    assert kept["models/one/versions/1"] == "a server holds the version or is about to"
    assert len(usage.departures) >= len(NAMES)
    assert all("are needed for" in one.reason for one in usage.departures)


def test_an_upload_answers_without_the_files_it_came_from(
    stack: Fleet, client: Client, models: Path
) -> None:
    made = client.upload("sent", models / "sent")
    shutil.rmtree(models / "sent")
    client.wait_for_route("sent", "", answers=made.version, within=SOON)
    assert ask(client, "sent") == 7
    stack.registry.DeleteModel(pb.DeleteModelRequest(name="models/sent"), timeout=SOON)
