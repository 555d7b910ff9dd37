"""The main job: a plain tritonclient on any model, resident or not."""

import queue
import threading
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio
from tritonclient.grpc import model_config_pb2, service_pb2

from model_repository.examples import EXAMPLES
from shoal.controller.v1 import controller_service_pb2 as controller
from shoal.registry.v1 import registry_service_pb2 as registry
from shoal.registry.v1 import types_pb2
from shoal.router.v1 import router_service_pb2 as router
from tests.support.stack import EXAMPLES as REPOSITORY
from tests.support.stack import Fleet, example, infer, refusal, tensors
from tests.support.triton_direct import triton_direct
from tests.support.waiting import wait_until

pytestmark = pytest.mark.triton


def servers_of(stack: Fleet, model: str, version: str = "1") -> list[str]:
    reply = stack.router.ExplainRoute(router.ExplainRouteRequest(model=model, version=version))
    return list(reply.arms[0].servers)


# One of each kind; the demo asks all of them.
KINDS = [
    ("densenet_onnx", 1),
    ("magika", 1),
    ("multiplier", 1),
    ("multiplier", 2),
    ("file_type", 1),
]


@pytest.mark.parametrize(("model", "version"), KINDS)
def test_every_kind_of_model_answers_cold_then_warm(stack: Fleet, model: str, version: int) -> None:
    shown = example(model, version)
    assert infer(stack.client, shown) == []
    assert servers_of(stack, model, str(version)) == ["triton-0"]
    assert infer(stack.client, shown) == []


def test_without_a_version_the_highest_approved_answers(stack: Fleet) -> None:
    assert infer(stack.client, example("multiplier", 2), model_version="") == []


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_requests_may_be_compressed(stack: Fleet, algorithm: str) -> None:
    shown = example("magika")
    assert infer(stack.client, shown, compression_algorithm=algorithm) == []
    replies: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with triton.InferenceServerClient(stack.router_grpc) as client:
        client.start_stream(
            lambda result, error: replies.put((result, error)), compression_algorithm=algorithm
        )
        client.async_stream_infer(shown.model, tensors(dict(shown.inputs)))
        result, error = replies.get(timeout=30)
        client.stop_stream()
    assert error is None
    assert shown.mismatches({name: result.as_numpy(name) for name in shown.expected}) == []


def test_an_alias_is_a_version(stack: Fleet) -> None:
    name = "models/multiplier/aliases/stable"
    stack.registry.SetAlias(registry.SetAliasRequest(name=name, version=1))
    try:
        wait_until(
            lambda: _answers(stack, "multiplier", "stable"), 5, "the alias reaches the Router"
        )
        assert infer(stack.client, example("multiplier", 1), model_version="stable") == []
    finally:
        stack.registry.DeleteAlias(registry.DeleteAliasRequest(name=name))


def _answers(stack: Fleet, model: str, version: str) -> bool:
    request = router.ExplainRouteRequest(model=model, version=version)
    try:
        stack.router.ExplainRoute(request)
    except grpc.RpcError:
        return False
    return True


def test_traffic_is_split_and_names_are_restored(stack: Fleet) -> None:
    policy = types_pb2.TrafficPolicy(
        name="models/multiplier/trafficPolicy",
        arms=[
            types_pb2.Arm(target="models/multiplier/versions/1", weight=50),
            types_pb2.Arm(target="models/multiplier/versions/2", weight=50),
        ],
    )
    stack.registry.SetTrafficPolicy(registry.SetTrafficPolicyRequest(traffic_policy=policy))
    try:
        explain = router.ExplainRouteRequest(model="multiplier")
        wait_until(lambda: len(stack.router.ExplainRoute(explain).arms) == 2, 5, "both arms")
        shown = example("multiplier", 1)
        versions = set()
        for _ in range(40):
            reply = stack.client.infer("multiplier", tensors(dict(shown.inputs)))
            versions.add(reply.get_response().model_version)
            assert reply.get_response().model_name == "multiplier"
        assert versions == {"1", "2"}
    finally:
        stack.registry.DeleteTrafficPolicy(
            registry.DeleteTrafficPolicyRequest(name="models/multiplier/trafficPolicy")
        )


def test_a_policy_may_name_another_model(stack: Fleet) -> None:
    stack.registry.CreateModel(
        registry.CreateModelRequest(model=types_pb2.Model(name="models/front"))
    )
    policy = types_pb2.TrafficPolicy(
        name="models/front/trafficPolicy",
        arms=[types_pb2.Arm(target="models/multiplier/versions/1", weight=1)],
    )
    try:
        stack.registry.SetTrafficPolicy(registry.SetTrafficPolicyRequest(traffic_policy=policy))
        wait_until(lambda: _answers(stack, "front", ""), 5, "the new model reaches the Router")
        shown = example("multiplier", 1)
        reply = stack.client.infer("front", tensors(dict(shown.inputs)))
        assert reply.get_response().model_name == "front"
        assert shown.mismatches({n: reply.as_numpy(n) for n in shown.expected}) == []
    finally:
        stack.registry.DeleteModel(registry.DeleteModelRequest(name="models/front"))


def test_server_calls(stack: Fleet) -> None:
    assert stack.client.is_server_live()
    assert stack.client.is_server_ready()
    metadata = stack.client.get_server_metadata()
    assert metadata.name == "triton"
    assert "model_repository" in metadata.extensions


def test_the_index_lists_every_version_as_servable(stack: Fleet) -> None:
    rows = {
        (row.name, int(row.version)): row
        for row in stack.client.get_model_repository_index().models
    }
    assert rows.keys() >= EXAMPLES.keys()
    assert {row.state for row in rows.values()} == {"READY"}
    resident = [row for row in rows.values() if not row.reason]
    assert len(resident) < len(rows), "there is room for three"


def test_asking_about_a_model_loads_nothing(stack: Fleet) -> None:
    for model in ("text_stats", "multiplier", "densenet_onnx", "zfnet512_onnx"):
        infer(stack.client, example(model))
    cold = "vgg19_onnx"
    assert servers_of(stack, cold) == []
    assert stack.client.is_model_ready(cold)
    assert stack.client.get_model_metadata(cold).name == cold
    assert stack.client.get_model_config(cold).config.name == cold
    assert servers_of(stack, cold) == []


def test_metadata_and_config_are_what_triton_itself_says(stack: Fleet, tmp_path: Path) -> None:
    with triton_direct(tmp_path, REPOSITORY) as alone:
        for model in ("densenet_onnx", "multiplier", "text_stats", "magika"):
            alone.load(model)
            ours = stack.client.get_model_metadata(model)
            theirs = alone.client.get_model_metadata(model)
            assert ours == theirs, model
            config = stack.client.get_model_config(model).config
            direct = alone.client.get_model_config(model, headers=alone.admin).config
            for part in ("name", "platform", "backend", "max_batch_size", "input", "output"):
                assert getattr(config, part) == getattr(direct, part), (model, part)
            alone.unload(model)


def test_model_config_shows_the_users_own_version_policy(stack: Fleet) -> None:
    config = stack.client.get_model_config("multiplier", "1").config
    infer(stack.client, example("multiplier", 1))
    assert stack.client.get_model_config("multiplier", "1").config == config
    assert config.version_policy == model_config_pb2.ModelVersionPolicy() or (
        config.version_policy.WhichOneof("policy_choice") != "specific"
    )


def test_unknown_things_are_not_ready(stack: Fleet) -> None:
    assert not stack.client.is_model_ready("nope")
    assert not stack.client.is_model_ready("multiplier", "7")


def test_repeated_fields_mean_the_last_one_as_in_triton(stack: Fleet) -> None:
    shown = example("multiplier", 1)
    reply = stack.client.infer("multiplier", tensors(dict(shown.inputs)), model_version="1")
    request = service_pb2.ModelInferRequest(model_name="multiplier", model_version="1")
    for name, array in shown.inputs.items():
        request.inputs.add(name=name, datatype="FP32", shape=array.shape)
        request.raw_input_contents.append(array.tobytes())
    decoy = service_pb2.ModelInferRequest(model_name="nope", model_version="9")
    raw = decoy.SerializeToString() + request.SerializeToString()
    with grpc.insecure_channel(stack.router_grpc) as channel:
        call: Any = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        answer = service_pb2.ModelInferResponse.FromString(call(raw, timeout=30))
    assert answer.model_name == "multiplier"
    assert answer.raw_output_contents == reply.get_response().raw_output_contents


def test_errors_of_triton_pass_unchanged(stack: Fleet) -> None:
    wrong = {"INPUT": np.zeros((1, 2, 3, 4), np.float32)}
    code, info, text = refusal(
        lambda: stack.client.infer("multiplier", tensors(wrong), model_version="1")
    )
    assert (code, info) == ("INVALID_ARGUMENT", None)
    assert "unexpected shape" in text


def test_request_ids_and_parameters_arrive(stack: Fleet) -> None:
    shown = example("multiplier", 1)
    reply = stack.client.infer(
        "multiplier", tensors(dict(shown.inputs)), model_version="1", request_id="r-17", priority=1
    )
    assert reply.get_response().id == "r-17"


async def test_the_asyncio_client_works_too(stack: Fleet) -> None:
    shown = example("text_stats")
    async with tritonclient.grpc.aio.InferenceServerClient(stack.router_grpc) as client:
        reply = await client.infer("text_stats", tensors(dict(shown.inputs)))
    assert shown.mismatches({n: reply.as_numpy(n) for n in shown.expected}) == []


def test_a_herd_on_a_cold_model_loads_it_once(stack: Fleet) -> None:
    stack.controller.EvictModel(controller.EvictModelRequest(name="models/multiplier"), timeout=30)
    before = _loads(stack, "models/multiplier/versions/1")
    wrong: list[list[str]] = []

    def ask() -> None:
        client = triton.InferenceServerClient(stack.router_grpc)
        wrong.append(infer(client, example("multiplier", 1)))

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [[]] * 16
    assert _loads(stack, "models/multiplier/versions/1") == before + 1


def _loads(stack: Fleet, version: str) -> int:
    from shoal.controller.v1 import types_pb2 as kinds

    reply = stack.controller.ListEvents(controller.ListEventsRequest(about=version, page_size=1000))
    return sum(event.kind == kinds.EVENT_KIND_LOADING for event in reply.events)


def test_pins_hold_and_evict_is_refused(stack: Fleet) -> None:
    stack.controller.PinModel(controller.PinModelRequest(name="models/text_stats"), timeout=60)
    try:
        for model in ("alexnet_onnx", "squeezenet_onnx", "shufflenet_onnx", "zfnet512_onnx"):
            infer(stack.client, example(model))
        assert servers_of(stack, "text_stats") == ["triton-0"]
        code, info, text = refusal(
            lambda: stack.controller.EvictModel(
                controller.EvictModelRequest(name="models/text_stats"), timeout=30
            )
        )
        assert (code, info.reason) == ("FAILED_PRECONDITION", "HELD")
        assert "shoal unpin" in text
    finally:
        stack.controller.UnpinModel(controller.UnpinModelRequest(name="models/text_stats"))


def test_load_and_evict_by_hand(stack: Fleet) -> None:
    name = "models/multiplier/versions/1"
    loaded = stack.controller.LoadModel(controller.LoadModelRequest(name=name), timeout=60)
    assert loaded.replica.version == name
    wait_until(lambda: servers_of(stack, "multiplier", "1"), 5, "the Router knows")
    gone = stack.controller.EvictModel(controller.EvictModelRequest(name=name), timeout=30)
    assert list(gone.evicted) == ["servers/triton-0/replicas/multiplier:1"]
    assert servers_of(stack, "multiplier", "1") == []


def test_trailers_say_who_answered_to_those_who_ask(stack: Fleet) -> None:
    one = example("multiplier", 2)
    given = service_pb2.ModelInferRequest(model_name="multiplier", model_version="2")
    for tensor in tensors(dict(one.inputs)):
        given.inputs.append(tensor._get_tensor())
        given.raw_input_contents.append(tensor._get_content())

    def trailers(*headers: tuple[str, str]) -> dict[str, str]:
        _, call = stack.inference.ModelInfer.with_call(given, metadata=headers, timeout=60)
        found = dict(call.trailing_metadata())
        return {key: value for key, value in found.items() if key.startswith("x-shoal-")}

    assert trailers() == {}
    assert trailers(("x-shoal-explain", "1")) == {
        "x-shoal-model": "multiplier",
        "x-shoal-version": "2",
        "x-shoal-server": "triton-0",
        "x-shoal-cold": "false",
        "x-shoal-why": "version '2' was asked for: multiplier:2",
    }


@pytest.mark.parametrize(
    ("endpoint", "metric"),
    [
        ("router_http", 'shoal_router_requests_total{model="multiplier",version="1"}'),
        ("controller_metrics", 'shoal_server_healthy{server="triton-0"} 1.0'),
        ("controller_metrics", "shoal_controller_events_total"),
        ("registry_metrics", "shoal_rpc_seconds_count"),
    ],
)
def test_every_service_has_metrics(stack: Fleet, endpoint: str, metric: str) -> None:
    infer(stack.client, example("multiplier", 1))
    address = stack.stack.announced().endpoints[endpoint]
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as response:
        assert metric in response.read().decode()


def test_health_over_http_as_triton_has_it(stack: Fleet) -> None:
    for path in ("live", "ready"):
        url = f"http://{stack.router_http}/v2/health/{path}"
        with urllib.request.urlopen(url, timeout=5) as response:
            assert response.status == 200


def test_a_resident_model_is_measured(stack: Fleet) -> None:
    infer(stack.client, example("squeezenet_onnx"))
    request = controller.ListReplicasRequest(model="models/squeezenet_onnx")

    def measured() -> int:
        (replica,) = stack.controller.ListReplicas(request, timeout=5).replicas
        return replica.memory_measured["ram"]

    # While it still starts, it takes less.
    wait_until(lambda: 20 << 20 < measured() < 300 << 20, 20, "its process was measured")


def waiters(stack: Fleet) -> float:
    address = stack.stack.announced().endpoints["controller_metrics"]
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as response:
        lines = response.read().decode().splitlines()
    return sum(float(line.split()[1]) for line in lines if line.startswith("shoal_waiters "))


def test_a_caller_that_leaves_waits_no_more(stack: Fleet) -> None:
    for other in ("alexnet_onnx", "squeezenet_onnx", "shufflenet_onnx"):
        infer(stack.client, example(other))
    request = service_pb2.ModelInferRequest(model_name="vgg19_onnx")
    with grpc.insecure_channel(stack.router_grpc) as channel:
        call: Any = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            service_pb2.ModelInferRequest.SerializeToString,
        ).future(request, timeout=60)
        wait_until(lambda: waiters(stack) == 1, 10, "the Controller knows of it")
        call.cancel()
        wait_until(lambda: waiters(stack) == 0, 1, "it is forgotten at once")
