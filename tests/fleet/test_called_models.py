"""Models that call others, as on a Triton that has all of them loaded, and models that change."""

import queue
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import tritonclient.grpc as triton
from onnx import TensorProto, helper, numpy_helper

from services.embedded.background import BackgroundStack
from shoal.controller.v1 import controller_service_pb2 as controller
from shoal.controller.v1 import types_pb2 as kinds
from shoal.registry.v1 import registry_service_pb2 as catalogue
from shoal.registry.v1 import types_pb2 as registry
from tests.support.stack import Fleet, refusal
from tests.support.waiting import wait_until

pytestmark = pytest.mark.triton

CONFIG = (
    'backend: "python"\ninput [{ name: "IN" data_type: TYPE_FP32 dims: [ -1 ] }]\n'
    'output [{ name: "OUT" data_type: TYPE_FP32 dims: [ -1 ] }]\n'
    "instance_group [{ count: 1 kind: KIND_CPU }]\n"
)
NAMED = CONFIG + 'input [{ name: "MODEL_NAME" data_type: TYPE_STRING dims: [ 1 ] }]\n'
DECOUPLED = NAMED + "model_transaction_policy { decoupled: true }\n"
PARTS = [f"part{index}" for index in range(8)]  # nobody else calls them
TIMES = """
import triton_python_backend_utils as pb
class TritonPythonModel:
    def execute(self, requests):
        given = [pb.get_input_tensor_by_name(r, "IN").as_numpy() for r in requests]
        return [pb.InferenceResponse([pb.Tensor("OUT", one * FACTOR)]) for one in given]
"""
CALLS = """
import triton_python_backend_utils as pb
class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            inner = pb.InferenceRequest(
                model_name=NAME,
                requested_output_names=["OUT"],
                inputs=[pb.get_input_tensor_by_name(request, "IN")],
            ).exec()
            if inner.has_error():
                raise pb.TritonModelException(inner.error().message())
            answers.append(pb.InferenceResponse(inner.output_tensors()))
        return answers
"""
FROM_INPUT = CALLS.replace(
    "NAME", 'pb.get_input_tensor_by_name(request, "MODEL_NAME").as_numpy()[0].decode()'
)
STREAMS = """
import triton_python_backend_utils as pb
class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            name = pb.get_input_tensor_by_name(request, "MODEL_NAME").as_numpy()[0].decode()
            inner = pb.InferenceRequest(
                model_name=name,
                requested_output_names=["OUT"],
                inputs=[pb.get_input_tensor_by_name(request, "IN")],
            ).exec()
            error = inner.error() if inner.has_error() else None
            answer = pb.InferenceResponse([] if error else inner.output_tensors(), error)
            sender = request.get_response_sender()
            sender.send(answer, flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""


def write(folder: Path, config: str, **versions: str) -> None:
    """`versions`: the code of each, `v1="…"`."""
    for version, code in versions.items():
        (folder / version[1:]).mkdir(parents=True, exist_ok=True)
        (folder / version[1:] / "model.py").write_text(code)
    (folder / "config.pbtxt").write_text(config)


def gather(path: Path, rows: int) -> None:
    """Write an ONNX model with `rows` KiB of weights."""
    weights = numpy_helper.from_array(np.ones((rows, 256), np.float32), "W")
    index = helper.make_tensor("I", TensorProto.INT64, [1], [0])
    nodes = [
        helper.make_node("Gather", ["W", "I"], ["G"], axis=0),
        helper.make_node("ReduceSum", ["G"], ["S"], keepdims=0),
        helper.make_node("Mul", ["IN", "S"], ["OUT"]),
    ]
    tensors = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("IN", "OUT")
    ]
    graph = helper.make_graph(nodes, "g", tensors[:1], tensors[1:], [weights, index])
    opset = [helper.make_opsetid("", 17)]
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository")
    for name, factor in (("twice", "2"), ("thrice", "3"), ("four", "4")):
        write(folder / name, CONFIG, v1=TIMES.replace("FACTOR", factor))
    for name in PARTS:
        write(folder / name, CONFIG, v1=TIMES.replace("FACTOR", "5"))
    write(folder / "caller", CONFIG, v1=CALLS.replace("NAME", '"twice"'))
    write(folder / "dynamic", NAMED, v1=FROM_INPUT)
    write(folder / "once", NAMED, v1=FROM_INPUT)
    write(folder / "decoupled", DECOUPLED, v1=STREAMS)
    write(
        folder / "ver", CONFIG, v1=TIMES.replace("FACTOR", "10"), v2=TIMES.replace("FACTOR", "20")
    )
    write(folder / "blsver", CONFIG, v1=CALLS.replace("NAME", '"ver"'))
    write(folder / "many", CONFIG, v1=TIMES.replace("FACTOR", "1"))
    gather(folder / "grows" / "1" / "model.onnx", 10)
    (folder / "grows" / "config.pbtxt").write_text(
        'backend: "onnxruntime"\ninput [{ name: "IN" data_type: TYPE_FP32 dims: [ 2 ] }]\n'
        'output [{ name: "OUT" data_type: TYPE_FP32 dims: [ 2 ] }]\n'
    )
    return folder


@pytest.fixture(scope="module")
def stack(repository: Path) -> Iterator[Fleet]:
    with BackgroundStack(
        f"--repository={repository}", "--servers=2", "--trace-ratio=0", "--memory-budget=2GiB"
    ) as running:
        yield Fleet(running)


def inputs(value: float, name: str = "", size: int = 1) -> list[triton.InferInput]:
    tensor = triton.InferInput("IN", [size], "FP32")
    tensor.set_data_from_numpy(np.full(size, value, np.float32))
    if not name:
        return [tensor]
    named = triton.InferInput("MODEL_NAME", [1], "BYTES")
    named.set_data_from_numpy(np.array([name.encode()], np.object_))
    return [tensor, named]


def ask(stack: Fleet, model: str, value: float, name: str = "", version: str = "") -> float:
    result = stack.client.infer(
        model, inputs(value, name), model_version=version, client_timeout=60
    )
    return float(result.as_numpy("OUT")[0])


def evict(stack: Fleet, *models: str) -> None:
    for model in models:
        stack.controller.EvictModel(controller.EvictModelRequest(name=f"models/{model}"))


def servers(stack: Fleet, model: str, version: int = 1) -> list[str]:
    request = controller.ListReplicasRequest(model=f"models/{model}/versions/{version}")
    found = stack.controller.ListReplicas(request).replicas
    return sorted(one.name.split("/")[1] for one in found if one.state == kinds.REPLICA_STATE_READY)


def requirements(stack: Fleet, model: str) -> list[tuple[str, int]]:
    request = catalogue.GetModelVersionRequest(name=f"models/{model}/versions/1")
    version = stack.registry.GetModelVersion(request).version
    return [(one.version.split("/")[1], one.source) for one in version.requirements]


def test_what_code_names_is_resident_beside_its_caller(stack: Fleet) -> None:
    assert ask(stack, "caller", 1.0) == 2.0
    assert servers(stack, "caller") == servers(stack, "twice")
    assert requirements(stack, "caller") == [("twice", registry.REQUIREMENT_SOURCE_CODE)]
    part = controller.EvictModelRequest(name="models/twice")
    held = refusal(lambda: stack.controller.EvictModel(part))
    assert "it is used by caller:1" in held[2]
    evict(stack, "caller")
    evict(stack, "twice")
    assert ask(stack, "caller", 2.0) == 4.0


def test_what_a_request_names_is_learned_from_the_failure(stack: Fleet) -> None:
    assert ask(stack, "dynamic", 1.0, "thrice") == 3.0
    assert requirements(stack, "dynamic") == [("thrice", registry.REQUIREMENT_SOURCE_CALL)]
    assert ask(stack, "dynamic", 1.0, "four") == 4.0
    for part in ("thrice", "four"):
        assert set(servers(stack, "dynamic")) <= set(servers(stack, part))
    evict(stack, "dynamic", "thrice", "four")
    assert ask(stack, "dynamic", 1.0, "thrice") == 3.0
    code, _, text = refusal(lambda: ask(stack, "dynamic", 1.0, "nobody"))
    assert (code, "Model 'nobody' is not ready" in text) == ("INTERNAL", True)
    assert ask(stack, "dynamic", 1.0, "four") == 4.0


def test_a_request_that_may_not_be_repeated_teaches_all_the_same(stack: Fleet) -> None:
    model = registry.Model(name="models/once", retry_policy=registry.RETRY_POLICY_NEVER)
    request = catalogue.UpdateModelRequest(model=model)
    request.update_mask.paths.append("retry_policy")
    stack.registry.UpdateModel(request)
    refused = next(part for part in PARTS if not answers(stack, part))
    wait_until(lambda: answers(stack, refused), 30, "the part to be learned")


def answers(stack: Fleet, part: str) -> bool:
    try:
        ask(stack, "once", 1.0, part)
    except triton.InferenceServerException as error:
        if "is not ready" not in error.message():
            raise
        return False
    return True


def test_a_decoupled_model_is_asked_again_beside_what_it_called(stack: Fleet) -> None:
    evict(stack, "caller", "twice")
    answers: queue.Queue[tuple[triton.InferResult, Exception | None]] = queue.Queue()
    with triton.InferenceServerClient(stack.router_grpc) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        client.async_stream_infer("decoupled", inputs(3.0, "twice"))
        result, error = answers.get(timeout=60)
        client.stop_stream()
    assert error is None
    assert result.as_numpy("OUT")[0] == 6.0


def test_a_call_without_a_version_is_answered_by_the_same_one_whatever_others_ask_for(
    stack: Fleet, repository: Path
) -> None:
    assert ask(stack, "blsver", 1.0) == 20.0
    write(repository / "ver", CONFIG, v3=TIMES.replace("FACTOR", "30"))
    stack.registry.ImportRepository(catalogue.ImportRepositoryRequest(path=str(repository)))
    wait_until(lambda: ask(stack, "ver", 1.0) == 30.0, 30, "version 3 to be the default")
    assert ask(stack, "blsver", 1.0) == 20.0
    assert set(servers(stack, "ver", 3)).isdisjoint(servers(stack, "blsver"))
    assert ask(stack, "ver", 1.0, version="1") == 10.0
    assert ask(stack, "blsver", 1.0) == 20.0


def memory(stack: Fleet, model: str) -> tuple[int, int]:
    """Return the bytes that were reserved before the last load of a model, and those measured."""
    request = controller.ListReplicasRequest(model=f"models/{model}")
    replicas = stack.controller.ListReplicas(request).replicas
    (replica,) = [one for one in replicas if one.state == kinds.REPLICA_STATE_READY]
    about = controller.ListEventsRequest(about=f"models/{model}", page_size=100)
    loading = [
        event.reason
        for event in stack.controller.ListEvents(about).events
        if event.kind == kinds.EVENT_KIND_LOADING
    ]
    number, unit = loading[0].removeprefix("reserved ram ").split()[:2]
    factor = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}[unit.strip(",")]
    return round(float(number) * factor), replica.memory_measured["ram"]


def settled(stack: Fleet, model: str) -> None:
    """Ask for a model until its size is learned."""

    def learned() -> bool:
        listed = stack.registry.ListFootprints(catalogue.ListFootprintsRequest()).footprints
        return any(one.version == f"models/{model}/versions/1" and one.memory for one in listed)

    wait_until(learned, 60, f"the size of {model} to be learned")


@pytest.mark.parametrize("model", ["many", "grows"])
def test_a_model_that_has_grown_is_loaded_within_what_is_reserved(
    model: str, stack: Fleet, repository: Path
) -> None:
    size = 2 if model == "grows" else 1

    def infer() -> None:
        stack.client.infer(model, inputs(1.0, size=size), client_timeout=60)

    infer()
    settled(stack, model)
    before = stack.client.get_model_config(model).config
    if model == "many":
        eight = CONFIG.replace("count: 1", "count: 8")
        (repository / "many" / "config.pbtxt").write_text(eight)
    else:
        gather(repository / "grows" / "1" / "model.onnx", 100_000)
    stack.registry.ImportRepository(catalogue.ImportRepositoryRequest(path=str(repository)))

    def imported() -> bool:
        after = stack.client.get_model_config(model).config
        return model == "grows" or after.instance_group[0].count == 8

    assert before.instance_group[0].count == 1
    wait_until(imported, 30, "the Router to answer with the new config")
    wait_until(lambda: not servers(stack, model), 30, "the old content to leave")
    infer()
    wait_until(lambda: memory(stack, model)[1] > 50 << 20, 30, "its new size to be measured")
    reserved, measured = memory(stack, model)
    assert reserved >= measured
