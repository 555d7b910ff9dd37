"""Ids of sequences: refused if they would end a server, ignored by models without sequences."""

from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2, service_pb2_grpc

from services.common.status import error_info
from services.router.core.routing.routes import Replica, Target
from services.router.core.routing.sequences import SequenceIds, sequence_ids, shared_ids
from shoal.controller.v1 import controller_service_pb2 as wire
from tests.support.scripted_triton import ScriptedTriton, scripted
from tests.support.streams import SECONDS, Places, ask, routed
from tests.support.triton_models import config

CORRID = (
    "sequence_batching { control_input { name: 'C' "
    "control { kind: CONTROL_SEQUENCE_CORRID data_type: %s } } }"
)
START = (
    "sequence_batching { control_input { name: 'S' "
    "control { kind: CONTROL_SEQUENCE_START fp32_false_true: [0, 1] } } }"
)
STEPS = "ensemble_scheduling { step { model_name: '%s' model_version: %d } }"

CONFIGS = {
    "plain": "",
    "batched": "dynamic_batching {}",
    "numbered": CORRID % "TYPE_UINT64",
    "named": CORRID % "TYPE_STRING",
    "uncontrolled": START,
    "pipeline": STEPS % ("numbered", -1),
    "nested": STEPS % ("pipeline", 1),
    "plain_pipeline": STEPS % ("plain", 1),
    "many": CORRID % "TYPE_INT64",
    "many_plain": "",
}
REFUSING = ["numbered", "pipeline", "nested", "many"]
IGNORING = ["plain", "batched", "plain_pipeline", "many_plain"]
TYING = ["named", "uncontrolled"]


def described(model: str) -> Any:
    made = config(model)
    text_format.Merge(CONFIGS[model], made)
    return made


@dataclass
class Described(Places):
    """Also counts by model how often a config was asked for."""

    configs: list[str] = field(default_factory=list)

    async def GetModelConfig(self, request: Any, context: Any) -> wire.GetModelConfigResponse:
        self.configs.append(request.model)
        return wire.GetModelConfigResponse(
            config=described(request.model).SerializeToString(), config_digest="d"
        )


def places(triton: ScriptedTriton) -> Described:
    triton.answering.set()
    return Described(
        {"a": triton.address},
        {model: ["a"] for model in CONFIGS},
        decoupled=frozenset({"many", "many_plain"}),
    )


@pytest.mark.parametrize(
    ("model", "ids"),
    [
        ("plain", SequenceIds.IGNORED),
        ("batched", SequenceIds.IGNORED),
        ("numbered", SequenceIds.NUMBERS),
        ("named", SequenceIds.ANY),
        ("uncontrolled", SequenceIds.ANY),
    ],
)
def test_the_ids_that_a_config_allows(model: str, ids: SequenceIds) -> None:
    assert sequence_ids(described(model)) is ids


def test_an_ensemble_takes_what_all_its_parts_take() -> None:
    ignored, numbers, any_ = SequenceIds.IGNORED, SequenceIds.NUMBERS, SequenceIds.ANY
    assert shared_ids([]) is shared_ids([ignored]) is ignored
    assert shared_ids([ignored, any_]) is any_
    assert shared_ids([any_, numbers, ignored]) is numbers


@pytest.mark.parametrize("model", REFUSING)
@pytest.mark.parametrize("id_", ["abc", "6c1b9a3e-92f4-4c1e-8f0b-0d6a5f7c1e2d", "7", "n" * 128])
async def test_a_text_is_refused_before_anything_is_sent(model: str, id_: str) -> None:
    async with scripted(ScriptedTriton()) as triton, routed(places(triton)) as router:
        request = ask(model, 1, id_="r", sequence=(id_, True, True))
        if not model.startswith("many"):
            stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(router.channel)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.ModelInfer(request, timeout=SECONDS)
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            info = error_info(tuple(refused.value.trailing_metadata() or ()))
            assert info is not None
            assert info.reason == "TEXT_SEQUENCE_ID"
        (reply,) = await router.talk().all(request)
        assert reply.infer_response.id == "r"
        assert f"model '{model}' is a text, and the model takes numbers" in reply.error_message
        assert triton.asked == []
        numbered = ask(model, 1, sequence=(7, True, False))
        (reply,) = await router.talk().all(numbered)
        assert not reply.error_message
        if model == "numbered":
            tied = router.watch.sequences.replica(Target(model, 1), 7)
            assert tied == Replica("a", Target(model, 1))


@pytest.mark.parametrize("model", TYING)
@pytest.mark.parametrize("id_", [7, "abc"])
async def test_a_sequence_ties_a_model_that_has_some(model: str, id_: int | str) -> None:
    async with scripted(ScriptedTriton()) as triton, routed(places(triton)) as router:
        (reply,) = await router.talk().all(ask(model, 1, sequence=(id_, True, False)))
        assert not reply.error_message
        assert router.watch.sequences.any_on(Replica("a", Target(model, 1)))


@pytest.mark.parametrize("model", IGNORING)
@pytest.mark.parametrize("id_", [7, "abc"])
async def test_ids_tie_nothing_to_a_model_without_sequences(model: str, id_: int | str) -> None:
    async with scripted(ScriptedTriton()) as triton, routed(places(triton)) as router:
        talk = router.talk()
        for _ in range(3):
            await talk.say(ask(model, 1, sequence=(id_, True, False)))
            assert not (await talk.hear()).error_message
        assert len(triton.asked) == 3
        assert triton.asked[0].parameters["sequence_start"].bool_param, "it goes on as it came"
        assert not router.watch.sequences.any_on(Replica("a", Target(model, 1)))


async def test_a_config_is_asked_for_once_and_only_for_sequences() -> None:
    async with scripted(ScriptedTriton()) as triton:
        where = places(triton)
        async with routed(where) as router:
            talk = router.talk()
            await talk.say(ask("numbered", 1), ask("numbered", 1))
            await talk.hear()
            await talk.hear()
            assert where.configs == []
            for _ in range(3):
                await talk.say(ask("numbered", 1, sequence=("abc", True, True)))
                assert (await talk.hear()).error_message
            assert where.configs == ["numbered"]


def test_numbers_of_protobuf() -> None:
    kinds = model_config_pb2.ModelSequenceBatching.Control
    assert (kinds.CONTROL_SEQUENCE_CORRID, model_config_pb2.TYPE_STRING) == (3, 13)
