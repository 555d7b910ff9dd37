"""Which versions wait for a server to complete their configs, and what counts of its answer."""

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from services.registry.core.catalogue import Entry, Model, Version, VersionState
from services.registry.core.completion import Queue
from services.registry.formats.completion import incomplete, merged
from services.registry.formats.refusal import Unservable
from shoal.names import ModelVersionName


def config(text: str) -> ModelConfig:
    return text_format.Parse(text, ModelConfig())


def waiting(model: str, *numbers: int, verdict: VersionState = VersionState.APPROVED) -> Entry:
    versions = {
        number: Version(model=model, number=number, verdict=verdict, source="/", incomplete="why")
        for number in numbers
    }
    return Entry(Model(name=model), versions)


@pytest.mark.parametrize(
    ("text", "asks_code", "waits"),
    [
        ("backend: 'python'", False, False),
        ("backend: 'python' output { name: 'OUT' }", True, True),
        ("backend: 'vllm' output { name: 'OUT' }", False, True),
        ("backend: 'tensorrt'", False, True),
        ("backend: 'tensorrt' output { name: 'OUT' }", False, False),
        ("backend: 'pytorch'", False, False),
        ("platform: 'ensemble'", False, False),
    ],
)
def test_what_only_a_server_can_complete(text: str, asks_code: bool, waits: bool) -> None:
    assert bool(incomplete(config(text), asks_code=asks_code)) is waits


def test_an_answer_fills_only_what_is_left_out() -> None:
    given = config(
        "backend: 'python' input { name: 'A' dims: 3 } parameters { key: 'k' value "
        "{ string_value: 'ours' } } sequence_batching { } instance_group { count: 1 }"
    )
    answer = config(
        "backend: 'other' max_batch_size: 8 input { name: 'A' data_type: TYPE_FP32 dims: 4 } "
        "input { name: 'B' data_type: TYPE_INT8 dims: 1 } output { name: 'C' } dynamic_batching { }"
        "parameters { key: 'k' value { string_value: 'theirs' } } parameters { key: 'l' value "
        "{ string_value: 'new' } } instance_group { count: 2 } optimization { }"
    )
    assert merged(given, answer.SerializeToString()) == config(
        "backend: 'python' max_batch_size: 8 input { name: 'A' data_type: TYPE_FP32 dims: 3 } "
        "input { name: 'B' data_type: TYPE_INT8 dims: 1 } output { name: 'C' } "
        "sequence_batching { } "
        "parameters { key: 'k' value { string_value: 'ours' } } parameters { key: 'l' value "
        "{ string_value: 'new' } } instance_group { count: 1 }"
    )
    with pytest.raises(Unservable, match="no model configuration"):
        merged(given, b"\xff")


def test_what_is_asked_for_comes_first() -> None:
    queue = Queue()
    assert queue.replace({name: waiting(name, 1) for name in "abc"})
    assert not queue.ask(ModelVersionName("none", 1))
    assert queue.ask(ModelVersionName("c", 1))
    assert not queue.ask(ModelVersionName("c", 1))
    assert [name.model for name in queue.order()] == ["c", "a", "b"]
    assert queue.requested == 1
    assert queue.replace({"c": None})
    assert not queue.replace({"new": Entry(Model(name="new"))})
    assert [name.model for name in queue.order()] == ["a", "b"]
    assert queue.requested == 0
    rejected = waiting("a", 1, verdict=VersionState.REJECTED)
    assert [name.model for name in queue.successor({"a": rejected}).order()] == []


def test_a_version_that_waits_is_the_default_while_none_answers() -> None:
    entry = waiting("m", 1, 2)
    assert entry.versions[2].state is VersionState.WAITING
    assert entry.default_version == 2
    answers = Version(model="m", number=1, verdict=VersionState.APPROVED, source="/")
    assert entry.with_version(answers).default_version == 1
