"""Streams and sequences of both clients, against a real Triton."""

import asyncio
import queue
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator

import numpy as np
import pytest

from shoal.client import (
    CallFailed,
    NotFound,
    Request,
    Result,
    connect,
    connect_async,
)
from tests.support.client_docs import blocks
from tests.support.clients import KINDS, either
from tests.support.triton_direct import DirectTriton, triton_direct, triton_python

pytestmark = pytest.mark.triton

both = pytest.mark.parametrize("kind", KINDS)

# Gives the words of a text one after another; the word "stop" is refused.
GENERATE = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            text = pb_utils.get_input_tensor_by_name(request, "PROMPT").as_numpy()[0]
            for word in text.split():
                if word == b"stop":
                    error = pb_utils.TritonError("it said stop")
                    sender.send(pb_utils.InferenceResponse(error=error))
                    break
                token = pb_utils.Tensor("TOKEN", np.array([word], np.object_))
                sender.send(pb_utils.InferenceResponse([token]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
GENERATE_CONFIG = """
backend: "python"
model_transaction_policy { decoupled: true }
input [{ name: "PROMPT" data_type: TYPE_STRING dims: [1] }]
output [{ name: "TOKEN" data_type: TYPE_STRING dims: [1] }]
instance_group [{ count: 1 kind: KIND_CPU }]
"""

# The sum of what came since the sequence began.
TOTAL = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        self.totals = {}

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        number, start, id_ = (
            pb_utils.get_input_tensor_by_name(request, name).as_numpy().item()
            for name in ("NUMBER", "START", "ID")
        )
        self.totals[id_] = number if start else self.totals[id_] + number
        total = np.array([self.totals[id_]], np.float32)
        return pb_utils.InferenceResponse([pb_utils.Tensor("TOTAL", total)])
"""
TOTAL_CONFIG = """
backend: "python"
input [{ name: "NUMBER" data_type: TYPE_FP32 dims: [1] }]
output [{ name: "TOTAL" data_type: TYPE_FP32 dims: [1] }]
instance_group [{ count: 1 kind: KIND_CPU }]
sequence_batching {
  oldest { max_candidate_sequences: 4 }
  control_input [
    { name: "START" control [{ kind: CONTROL_SEQUENCE_START int32_false_true: [0, 1] }] },
    { name: "ID" control [{ kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 }] }
  ]
}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DirectTriton]:
    models = tmp_path_factory.mktemp("models")
    for name, code, config in (
        ("generate", GENERATE, GENERATE_CONFIG),
        ("total", TOTAL, TOTAL_CONFIG),
    ):
        (models / name / "1").mkdir(parents=True)
        (models / name / "1" / "model.py").write_text(code)
        (models / name / "config.pbtxt").write_text(config)
    subprocess.run([triton_python(), "-m", "compileall", "-q", models], check=True)
    with triton_direct(tmp_path_factory.mktemp("server"), models) as running:
        for name in ("generate", "total"):
            running.load(name)
        yield running


def prompt(text: str) -> dict[str, list[str]]:
    return {"PROMPT": [text]}


def words(answers: list[Result]) -> list[str]:
    return [answer["TOKEN"][0].decode() for answer in answers]


@both
@pytest.mark.parametrize("text", ["", "one", "a shoal of fish"])
async def test_every_answer_to_one_request(server: DirectTriton, kind: str, text: str) -> None:
    async with either(kind, router=server.address) as ask:
        answers = await ask.first(None, "infer_stream", "generate", prompt(text), id="i")
    assert words(answers) == text.split()
    assert {(answer.model, answer.version, answer.id) for answer in answers} <= {
        ("generate", "1", "i")
    }


@both
async def test_a_model_that_answers_once(server: DirectTriton, kind: str) -> None:
    parameters = {"sequence_id": 1, "sequence_start": True, "sequence_end": True}
    async with either(kind, router=server.address) as ask:
        inputs = {"NUMBER": np.array([4], np.float32)}
        answers = await ask.first(None, "infer_stream", "total", inputs, parameters=parameters)
    assert [answer["TOTAL"].tolist() for answer in answers] == [[4.0]]


@both
async def test_refusals(server: DirectTriton, kind: str) -> None:
    async with either(kind, router=server.address) as ask:
        for inputs, model, text in (
            (prompt("go on stop here"), "generate", "it said stop"),
            ({"PROMPT": [1.0]}, "generate", "data-type is 'FP64'"),
            (prompt("a"), "nothing", "unknown model"),
        ):
            with pytest.raises(CallFailed, match=text) as refused:
                await ask.first(None, "infer_stream", model, inputs, id="i")
            assert refused.value.address == server.address


@both
async def test_requests_in_one_stream(server: DirectTriton, kind: str) -> None:
    texts = ["a b", "", "c stop", "d"]
    requests = [Request("generate", prompt(text), id=str(i)) for i, text in enumerate(texts)]
    requests.insert(2, Request("generate", {"PROMPT": [1.0]}, id="numbers"))
    async with either(kind, router=server.address) as ask:
        answers = await ask.first(None, "infer_many", requests)
    of: dict[str, list[str]] = {request.id: [] for request in requests}
    ended: dict[str, int] = {}
    for answer in answers:
        if isinstance(answer, CallFailed):
            of[answer.metadata["id"]].append(answer.message)
        else:
            of[answer.id] += words([answer] if answer.outputs else [])
            ended[answer.id] = ended.get(answer.id, 0) + answer.final
    assert [of[str(i)] for i in (0, 1, 3)] == [["a", "b"], [], ["d"]]
    assert of["2"][0] == "c"
    assert "it said stop" in of["2"][1]
    assert "data-type is 'FP64'" in of["numbers"][0]
    assert [ended[str(i)] for i in (0, 1, 3)] == [1, 1, 1]


@both
async def test_the_next_request_may_depend_on_the_last_answer(
    server: DirectTriton, kind: str
) -> None:
    said: list[str] = []

    def ask_sync() -> None:
        heard: queue.SimpleQueue[str] = queue.SimpleQueue()

        def requests() -> Iterator[Request]:
            yield Request("generate", prompt("first"))
            yield Request("generate", prompt(f"after-{heard.get()}"))

        with connect(router=server.address) as shoal:
            for answer in shoal.infer_many(requests()):
                assert isinstance(answer, Result)
                for word in words([answer] if answer.outputs else []):
                    said.append(word)
                    heard.put(word)

    async def ask_async() -> None:
        heard: asyncio.Queue[str] = asyncio.Queue()

        async def requests() -> AsyncIterator[Request]:
            yield Request("generate", prompt("first"))
            yield Request("generate", prompt(f"after-{await heard.get()}"))

        async with connect_async(router=server.address) as shoal:
            async for answer in shoal.infer_many(requests()):
                assert isinstance(answer, Result)
                for word in words([answer] if answer.outputs else []):
                    said.append(word)
                    heard.put_nowait(word)

    await (asyncio.to_thread(ask_sync) if kind == "sync" else ask_async())
    assert said == ["first", "after-first"]


@both
async def test_requests_that_fail_before_they_are_sent(server: DirectTriton, kind: str) -> None:
    def requests() -> Iterator[Request]:
        yield Request("generate", prompt("first"))
        raise LookupError("no more")

    async with either(kind, router=server.address) as ask:
        with pytest.raises(LookupError, match="no more"):
            await ask.first(None, "infer_many", requests())


async def test_sequences(server: DirectTriton) -> None:
    def sums() -> list[float]:
        with connect(router=server.address) as shoal:
            found = []
            with shoal.sequence("total") as one, shoal.sequence("total", id=7) as two:
                for number in (1, 2, 3):
                    last = number == 3
                    for sequence in (one, two):
                        inputs = {
                            "NUMBER": np.array([number * (1 + (sequence is two))], np.float32)
                        }
                        found.append(sequence.infer(inputs, end=last)["TOTAL"].item())
            return found

    assert await asyncio.to_thread(sums) == [1, 2, 3, 6, 6, 12]
    async with connect_async(router=server.address) as shoal, shoal.sequence("total") as sequence:
        assert (await sequence.infer({"NUMBER": np.array([5], np.float32)}))["TOTAL"].item() == 5
        answer = await sequence.infer({"NUMBER": np.array([6], np.float32)}, end=True)
        assert answer["TOTAL"].item() == 11


@both
async def test_what_there_is(server: DirectTriton, kind: str) -> None:
    async with either(kind, router=server.address) as ask:
        assert await ask("live")
        assert await ask("ready")
        assert await ask("ready", "total", 1)
        assert not await ask("ready", "total", 9)
        about = await ask("server_metadata")
        assert (about.name, "sequence" in about.extensions) == ("direct", True)
        metadata = await ask("metadata", "generate")
        assert (metadata.name, metadata.versions, metadata.platform) == (
            "generate",
            ("1",),
            "python",
        )
        [taken] = metadata.inputs
        assert (taken.name, taken.datatype, taken.shape) == ("PROMPT", "BYTES", (1,))
        with pytest.raises(NotFound, match="unknown model"):
            await ask("metadata", "nothing")


@pytest.mark.parametrize("code", blocks("ci:stream"))
def test_the_pages_examples(server: DirectTriton, code: str) -> None:
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code.replace("localhost:8001", server.address)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip()
