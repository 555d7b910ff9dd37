"""Models whose files change, move or disappear while a real Triton serves them."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from services.embedded.background import BackgroundStack
from shoal.client import Residency, connect
from shoal.controller.v1 import controller_service_pb2 as pb
from shoal.controller.v1 import types_pb2
from tests.support.stack import Fleet, fleet
from tests.support.triton_models import write
from tests.support.waiting import wait_until

pytestmark = pytest.mark.triton

SOON = 20.0  # seconds


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources") / "repo"
    for name in ("gone", "lost", "changed", "copied", "loaded", "steady"):
        write(folder, name, answer="x + 1")
    return folder


@pytest.fixture(scope="module")
def stack(repository: Path) -> Iterator[Fleet]:
    with BackgroundStack(
        f"--repository={repository}",
        "--servers=2",
        "--memory-budget=2GiB",
        "--no-otlp",
        environment={"SHOAL_CONTROLLER_LOAD_BACKOFF": "1"},
    ) as running:
        yield fleet(running)


def ask(stack: Fleet, model: str, timeout: float = SOON) -> float:
    """Return what the model makes of 1."""
    tensor = triton.InferInput("INPUT", [1], "FP32")
    tensor.set_data_from_numpy(np.ones(1, np.float32))
    answer = stack.client.infer(model, [tensor], client_timeout=timeout)
    return float(answer.as_numpy("OUTPUT")[0])


def evict(stack: Fleet, model: str) -> None:
    stack.controller.EvictModel(pb.EvictModelRequest(name=f"models/{model}"), timeout=SOON)


def rewrite(repository: Path, model: str, answer: str) -> None:
    """Replace a model's files, as a deployment does."""
    shutil.rmtree(repository / model)
    write(repository, model, answer=answer)


def events(stack: Fleet, model: str) -> list[types_pb2.Event]:
    request = pb.ListEventsRequest(about=f"models/{model}/versions/1", page_size=100)
    return list(stack.controller.ListEvents(request, timeout=SOON).events)


def holders(stack: Fleet, model: str) -> set[str]:
    request = pb.ListReplicasRequest(model=f"models/{model}")
    found = stack.controller.ListReplicas(request, timeout=SOON).replicas
    ready = [one for one in found if one.state == types_pb2.REPLICA_STATE_READY]
    return {one.name.split("/")[1] for one in ready}


@pytest.mark.parametrize(
    ("model", "lost", "reason"),
    [
        ("gone", ".", "its source is gone: "),
        ("lost", "1/model.py", "its files have changed since it was registered: its version"),
    ],
)
def test_a_load_without_files_is_refused_at_once_and_harms_nobody(
    stack: Fleet, repository: Path, tmp_path: Path, model: str, lost: str, reason: str
) -> None:
    assert ask(stack, model) == 2
    assert ask(stack, "steady") == 2
    evict(stack, model)
    path = repository / model / lost
    path.rename(tmp_path / "away")
    began = time.monotonic()
    with pytest.raises(InferenceServerException, match=reason) as refused:
        ask(stack, model)
    assert time.monotonic() - began < SOON / 2
    assert refused.value.status() == "StatusCode.FAILED_PRECONDITION"
    assert ask(stack, "steady") == 2
    (tmp_path / "away").rename(path)
    # It is tried again after its back-off, without anybody's help.
    wait_until(lambda: _answers(stack, model), SOON, f"{model} answers again")


def _answers(stack: Fleet, model: str) -> bool:
    try:
        return ask(stack, model) == 2
    except InferenceServerException:
        return False


def test_changed_files_are_loaded_as_they_are_now(stack: Fleet, repository: Path) -> None:
    assert ask(stack, "changed") == 2
    evict(stack, "changed")
    rewrite(repository, "changed", "x + 2")
    assert ask(stack, "changed") == 3


def test_no_number_answers_with_two_contents(stack: Fleet, repository: Path) -> None:
    assert ask(stack, "copied") == 2
    (before,) = holders(stack, "copied")
    rewrite(repository, "copied", answer="x + 2")
    assert ask(stack, "copied") == 2, "what is in memory answers until something is loaded"
    with connect(registry=stack.registry_address) as client:
        client.update_model("copied", residency=Residency(min_copies=2))
    answers: list[float] = []

    def replaced() -> bool:
        answers.append(ask(stack, "copied"))
        return len(holders(stack, "copied")) == 2 and answers[-1] == 3

    wait_until(replaced, SOON, "both replicas have the new content")
    assert answers == sorted(answers), "the old content never answers after the new one"
    assert {ask(stack, "copied") for _ in range(20)} == {3}
    assert any("files or config have changed" in one.reason for one in events(stack, "copied"))
    assert before in holders(stack, "copied")


def test_a_load_call_reads_the_folder_again(stack: Fleet, repository: Path) -> None:
    with pytest.raises(InferenceServerException, match="no model of that name is registered"):
        stack.client.load_model("new")
    write(repository, "new", answer="x + 4")
    stack.client.load_model("new")
    assert ask(stack, "new") == 5
    stack.client.load_model("loaded")
    assert ask(stack, "loaded") == 2
    rewrite(repository, "loaded", answer="x + 2")
    stack.client.load_model("loaded")
    assert ask(stack, "loaded") == 3
    write(repository, "loaded", 2, answer="x + 7")
    stack.client.load_model("loaded")
    assert ask(stack, "loaded") == 8
    # As with Triton, what answers goes on where the folder cannot be loaded.
    (repository / "loaded" / "config.pbtxt").write_text("nonsense {")
    with pytest.raises(InferenceServerException, match=r"config\.pbtxt"):
        stack.client.load_model("loaded")
    assert ask(stack, "loaded") == 8


def test_a_file_that_becomes_a_link_is_looked_at_again(stack: Fleet, tmp_path: Path) -> None:
    write(tmp_path / "api", "labelled")
    (tmp_path / "secret").write_text("secret\n")
    folder = tmp_path / "api" / "labelled"
    (folder / "labels.txt").write_text("cat\n")
    config = (folder / "config.pbtxt").read_text()
    (folder / "config.pbtxt").write_text(
        config.replace('name: "OUTPUT"', 'name: "OUTPUT" label_filename: "labels.txt"')
    )
    with connect(registry=stack.registry_address) as client:
        client.register("labelled", folder)
    (folder / "labels.txt").unlink()
    (folder / "labels.txt").symlink_to(tmp_path / "secret")
    wait_until(lambda: stack.client.is_model_ready("labelled"), SOON, "the Router knows the model")
    with pytest.raises(InferenceServerException, match="outside") as refused:
        ask(stack, "labelled")
    assert refused.value.status() == f"StatusCode.{grpc.StatusCode.FAILED_PRECONDITION.name}"
