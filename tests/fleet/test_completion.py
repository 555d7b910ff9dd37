"""Configs that only a server can complete, on a stack whose servers complete none themselves."""

import os
import queue
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.embedded.background import BackgroundStack
from shoal.controller.v1 import controller_service_pb2 as controller
from shoal.registry.v1 import registry_service_pb2 as catalogue
from shoal.registry.v1 import types_pb2 as registry
from tests.support.stack import Fleet, fleet, refusal, tensors
from tests.support.waiting import wait_until

pytestmark = pytest.mark.triton

APPROVED = registry.VERSION_STATE_APPROVED
WAITING = registry.VERSION_STATE_WAITING
INVALID = registry.VERSION_STATE_INVALID
TENSORS = (
    'input [{ name: "IN" data_type: TYPE_FP32 dims: [ -1 ] }]\n'
    'output [{ name: "OUT" data_type: TYPE_FP32 dims: [ -1 ] }]\n'
)
PYTHON = 'backend: "python"\n' + TENSORS
WRITTEN = """
max_batch_size: 4
parameters { key: "k" value: { string_value: "v" } }
dynamic_batching { max_queue_delay_microseconds: 7 }
"""
# A server whose auto-completion is off never calls the method.
CODE = """
import triton_python_backend_utils as pb


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        with open("{marks}", "a") as marks:
            marks.write("{name} ")
        {completes}
        return config

    def initialize(self, args):
        self.factor = {factor}

    def execute(self, requests):
        given = [pb.get_input_tensor_by_name(r, "IN").as_numpy() for r in requests]
        {answers}
"""
ALL = """config.add_input({"name": "IN", "data_type": "TYPE_FP32", "dims": [-1]})
        config.add_output({"name": "OUT", "data_type": "TYPE_FP32", "dims": [-1]})
        config.set_max_batch_size(8)
        config.set_dynamic_batching()"""
DECOUPLED = """config.add_input({"name": "IN", "data_type": "TYPE_FP32", "dims": [-1]})
        config.add_output({"name": "OUT", "data_type": "TYPE_FP32", "dims": [-1]})
        config.set_model_transaction_policy({"decoupled": True})"""
ANSWERS = 'return [pb.InferenceResponse([pb.Tensor("OUT", one * self.factor)]) for one in given]'
SENDS = """for request, one in zip(requests, given):
            sender = request.get_response_sender()
            sender.send(pb.InferenceResponse([pb.Tensor("OUT", one)]))
            sender.send(
                pb.InferenceResponse([pb.Tensor("OUT", one)]),
                flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL,
            )"""
RAISES = 'raise ValueError("it cannot tell")'


class Repository:
    """A model repository that notes whose code was asked to complete a config."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "models"
        self._marks = folder / "marks"
        self._marks.touch()

    def add(
        self,
        name: str,
        config: str | None = None,
        *,
        completes: str = ALL,
        answers: str = ANSWERS,
        factor: int = 2,
    ) -> None:
        code = CODE.format(
            marks=self._marks, name=name, completes=completes, answers=answers, factor=factor
        )
        self.write(name, config, "model.py", code)

    def write(self, name: str, config: str | None, file: str = "", content: str = "") -> None:
        version = self.folder / name / "1"
        version.mkdir(parents=True, exist_ok=True)
        if config is not None:
            (self.folder / name / "config.pbtxt").write_text(config)
        if file:
            (version / file).write_text(content)

    def asked(self, name: str) -> int:
        return self._marks.read_text().split().count(name)


def step(given: str, made: str) -> str:
    return (
        f'step {{ model_name: "bare" model_version: -1 input_map {{ key: "IN" value: "{given}" }} '
        f'output_map {{ key: "OUT" value: "{made}" }} }}'
    )


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    made = Repository(tmp_path_factory.mktemp("completion"))
    made.add("bare")
    made.add("partial", PYTHON)
    made.add("written", PYTHON + WRITTEN)
    made.add("decoupled", completes=DECOUPLED, answers=SENDS)
    made.add("raises", completes=RAISES)
    made.write("vllm_model", 'backend: "vllm"', "model.json", "{}")
    made.write("plan", None, "model.plan", "plan")
    steps = step("IN", "mid") + step("mid", "OUT")
    made.write(
        "both",
        f'platform: "ensemble"\nmax_batch_size: 8\n{TENSORS}ensemble_scheduling {{ {steps} }}\n',
    )
    return made


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


def stack_over(repository: Repository, data: Path) -> BackgroundStack:
    return BackgroundStack(f"--repository={repository.folder}", f"--data={data}", "--trace-ratio=0")


@pytest.fixture(scope="module")
def stack(repository: Repository, data: Path) -> Iterator[Fleet]:
    with stack_over(repository, data) as running:
        yield fleet(running)


def version(stack: Fleet, model: str) -> registry.ModelVersion:
    request = catalogue.GetModelVersionRequest(name=f"models/{model}/versions/1")
    return stack.registry.GetModelVersion(request).version


def settled(stack: Fleet, model: str) -> registry.ModelVersion:
    """Return the version once it does not wait any more."""
    wait_until(lambda: version(stack, model).state != WAITING, 60, f"{model} to be completed")
    return version(stack, model)


def is_right(stack: Fleet, model: str, factor: int = 2) -> bool:
    given = np.arange(6, dtype=np.float32).reshape(3, 2)
    answer = stack.client.infer(model, tensors({"IN": given}), client_timeout=60)
    return bool(np.array_equal(answer.as_numpy("OUT"), given * factor))


def check_answer(stack: Fleet, model: str, factor: int = 2) -> None:
    assert is_right(stack, model, factor)


def config_of(stack: Fleet, model: str) -> Any:
    return stack.client.get_model_config(model).config


def test_a_request_waits_until_its_model_is_completed(stack: Fleet, repository: Repository) -> None:
    check_answer(stack, "both", 4)
    check_answer(stack, "bare")
    check_answer(stack, "partial")
    for model in ("bare", "partial"):
        found = stack.client.get_model_metadata(model)
        assert [(one.name, one.datatype, list(one.shape)) for one in found.inputs] == [
            ("IN", "FP32", [-1, -1])
        ]
        config = config_of(stack, model)
        assert config.max_batch_size == 8
        assert config.HasField("dynamic_batching")
        assert config.default_model_filename == "model.py"
        assert repository.asked(model) == 1


def test_a_model_is_decoupled_that_says_so_itself(stack: Fleet) -> None:
    assert settled(stack, "decoupled").decoupled
    answers: queue.Queue[Any] = queue.Queue()
    stack.client.start_stream(lambda result, error: answers.put(error or result))
    given = np.array([1, 2], np.float32)
    stack.client.async_stream_infer("decoupled", tensors({"IN": given}))
    for _ in range(2):
        np.testing.assert_array_equal(answers.get(timeout=30).as_numpy("OUT"), given)
    stack.client.stop_stream()


def test_what_the_user_wrote_is_unchanged(stack: Fleet) -> None:
    assert settled(stack, "written").state == APPROVED
    config = config_of(stack, "written")
    assert config.max_batch_size == 4
    assert config.parameters["k"].string_value == "v"
    assert config.dynamic_batching.max_queue_delay_microseconds == 7
    check_answer(stack, "written")


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ("raises", "Internal: ValueError: it cannot tell At: raises/1/model.py"),
        ("vllm_model", "unable to find backend library for backend 'vllm'"),
        ("plan", "unable to find backend library for backend 'tensorrt'"),
    ],
)
def test_what_cannot_be_completed_says_why(stack: Fleet, model: str, why: str) -> None:
    found = settled(stack, model)
    assert found.state == INVALID
    assert found.invalid_reason.startswith("a Triton that was asked to complete its config could")
    assert why in found.invalid_reason
    code, info, text = refusal(lambda: stack.client.infer(model, [], client_timeout=30))
    assert (code, info.reason) == ("NOT_FOUND", "NOT_SERVABLE")
    assert why in text
    check_answer(stack, "bare")


def test_a_version_waits_in_the_open(stack: Fleet, repository: Repository, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    repository.add("slow", completes=f'open("{gate}").read()\n        {ALL}')
    request = catalogue.ImportRepositoryRequest(path=str(repository.folder))
    stack.registry.ImportRepository(request)
    found = version(stack, "slow")
    assert (found.state, found.invalid_reason) == (WAITING, "")
    assert "auto_complete_config" in found.waiting_reason
    assert not found.HasField("decoupled")
    wait_until(lambda: repository.asked("slow") == 1, 30, "its code to be asked")

    given = tensors({"IN": np.zeros((1, 2), np.float32)})
    code, info, text = refusal(lambda: stack.client.infer("slow", given, client_timeout=1))
    assert (code, info.reason) == ("UNAVAILABLE", "NOT_COMPLETED")
    assert found.waiting_reason in text
    why = stack.controller.WhyNotLoaded(
        controller.WhyNotLoadedRequest(name="models/slow/versions/1")
    )
    assert why.reason.endswith(found.waiting_reason)
    assert not stack.client.is_model_ready("slow")
    check_answer(stack, "bare")

    gate.write_text("")
    check_answer(stack, "slow")
    assert repository.asked("slow") == 1


def test_the_same_content_is_asked_once(stack: Fleet, repository: Repository, data: Path) -> None:
    models = ("bare", "partial", "written", "raises")
    before = {model: repository.asked(model) for model in models}
    assert stack.stack.stop() == 0
    with stack_over(repository, data) as running:
        again = fleet(running)
        check_answer(again, "bare")
        check_answer(again, "partial")
        assert settled(again, "raises").state == INVALID

        repository.add("bare", factor=3)
        again.registry.ImportRepository(
            catalogue.ImportRepositoryRequest(path=str(repository.folder))
        )
        wait_until(lambda: is_right(again, "bare", 3), 10, "the new content to be served")
        assert config_of(again, "bare").max_batch_size == 8
    asked = {model: repository.asked(model) - before[model] for model in models}
    # Another server than the one that "raises" met, or another package beside it, may do better.
    assert asked == {"bare": 1, "partial": 0, "written": 0, "raises": 1}
