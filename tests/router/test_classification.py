"""Classes in place of tensors, asked in streams of a decoupled model; the Triton is real."""

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2, service_pb2

from shoal.controller.v1 import controller_service_pb2 as wire
from tests.support.streams import SECONDS, Places, ask, numbers, routed
from tests.support.triton_direct import DirectTriton, triton_direct
from tests.support.triton_models import config

pytestmark = pytest.mark.triton

MODEL = "pairs"  # gives a number and a word, twice

_CODE = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "INPUT").as_numpy()
            tensors = [
                tensor
                for tensor in (
                    pb_utils.Tensor("OUTPUT", x),
                    pb_utils.Tensor("WORD", np.array([b"fish"], np.object_)),
                )
                if tensor.name() in request.requested_output_names()
            ]
            sender = request.get_response_sender()
            for _ in range(2):
                sender.send(pb_utils.InferenceResponse(tensors))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""


def described() -> model_config_pb2.ModelConfig:
    made = config(MODEL)
    made.output.add(name="WORD", data_type=model_config_pb2.TYPE_STRING, dims=[-1])
    made.model_transaction_policy.decoupled = True
    return made


class Described(Places):
    async def GetModelConfig(self, request: Any, context: Any) -> wire.GetModelConfigResponse:
        return wire.GetModelConfigResponse(
            config=described().SerializeToString(), config_digest="d"
        )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DirectTriton]:
    models = tmp_path_factory.mktemp("models")
    (models / MODEL / "1").mkdir(parents=True)
    (models / MODEL / "1" / "model.py").write_text(_CODE)
    (models / MODEL / "config.pbtxt").write_text(text_format.MessageToString(described()))
    folder = tmp_path_factory.mktemp("server")
    with triton_direct(folder, models) as running:
        running.load(MODEL)
        yield running


def wanted(id_: str, output: str, classes: int = 0) -> Any:
    request = ask(MODEL, 3, 1, 2, id_=id_)
    asked = request.outputs.add(name=output)
    if classes:
        asked.parameters["classification"].int64_param = classes
    return request


def no_output() -> bytes:
    """A request whose output is none."""
    head = service_pb2.ModelInferRequest(model_name=MODEL, id="rubbish").SerializeToString()
    return head + b"\x32\x0eclassification"


async def test_classes_of_text_are_refused_and_the_stream_goes_on(server: DirectTriton) -> None:
    where = Described({"a": server.address}, {MODEL: ["a"]}, decoupled=frozenset({MODEL}))
    async with routed(where) as router:
        talk = router.talk()
        await talk.say(wanted("refused", "WORD", 1))
        refused = await talk.hear()
        assert refused.infer_response.id == "refused"
        assert refused.error_message == (
            "class result not available for output due to unsupported type 'BYTES'"
        )
        await talk.say(wanted("classes", "OUTPUT", 2), wanted("words", "WORD"))
        replies = await talk.rest()
        assert [reply.error_message for reply in replies] == [""] * 4
        texts = {
            (reply.infer_response.id, bytes(reply.infer_response.raw_output_contents[0])[4:])
            for reply in replies
        }
        classes = b"3.000000:0" + (10).to_bytes(4, "little") + b"2.000000:2"
        assert texts == {("classes", classes), ("words", b"fish")}
        assert server.process.is_running()
        assert numbers((await router.talk().all(wanted("on", "OUTPUT")))[0]) == (3, 1, 2)


async def test_an_output_that_is_none_is_refused(server: DirectTriton) -> None:
    where = Described({"a": server.address}, {MODEL: ["a"]}, decoupled=frozenset({MODEL}))
    async with routed(where) as router:
        stream: Any = router.channel.stream_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer",
            response_deserializer=service_pb2.ModelStreamInferResponse.FromString,
        )
        replies = [reply async for reply in stream(iter([no_output()]), timeout=SECONDS)]
        assert ["is not a valid" in reply.error_message for reply in replies] == [True]
        unary: Any = router.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await unary(no_output(), timeout=SECONDS)
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "is not a valid" in (error.value.details() or "")
