"""The lane: resident models answer through Envoy alone, and nothing that Shoal promises is lost."""

import contextlib
import itertools
import json
import os
import signal
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from bench.residency.models import FLOATS, Model, write_repository
from services.embedded.background import BackgroundStack
from shoal.controller.v1 import controller_service_pb2 as controller
from shoal.controller.v1 import types_pb2 as kinds
from shoal.registry.v1 import registry_service_pb2 as registry
from shoal.registry.v1 import types_pb2
from shoal.router.v1 import router_service_pb2 as router
from tests.support.results import record
from tests.support.stack import Fleet, restarted, sampled, zipf
from tests.support.waiting import wait_until

pytestmark = pytest.mark.triton

SERVERS = ("triton-0", "triton-1")
PLACES = 5  # of each server: a third of the models have a place
MODELS = tuple(Model(f"lane_{number}", 100 * number + 1) for number in range(30))
CLIENTS = 8
KILLED = ("triton-0", "lane", "router", "triton-1")  # in turn
NUMBERS = np.arange(FLOATS, dtype=np.float32).reshape(1, -1)

# A client whose connection breaks asks again: no proxy can do that for it.
RETRIES = json.dumps(
    {
        "methodConfig": [
            {
                "name": [{}],
                "retryPolicy": {
                    "maxAttempts": 5,
                    "initialBackoff": "0.2s",
                    "maxBackoff": "2s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ]
    }
)
OPTIONS = [
    ("grpc.service_config", RETRIES),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 200),
]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("models")
    write_repository(folder, MODELS)
    with BackgroundStack(
        f"--repository={folder}",
        "--servers=2",
        f"--max-models={PLACES}",
        "--lane=on",
        "--trace-ratio=0",
        start_within=120,
    ) as up:
        yield Fleet(up)


def request(model: Model, **more: Any) -> Any:
    message = service_pb2.ModelInferRequest(model_name=model.name, **more)
    message.inputs.add(name="INPUT", datatype="FP32", shape=NUMBERS.shape)
    message.raw_input_contents.append(NUMBERS.tobytes())
    return message


def is_right(model: Model, answer: Any) -> bool:
    found = np.frombuffer(answer.raw_output_contents[0], np.float32)
    return bool(np.array_equal(found, NUMBERS[0] + np.float32(model.addend)))


def metrics(stack: Fleet, name: str, model: Model) -> int:
    with urllib.request.urlopen(f"http://{stack.router_http}/metrics") as response:
        lines = response.read().decode().splitlines()
    start = f'shoal_router_{name}_total{{model="{model.name}",version="1"}} '
    return int(float(next((line[len(start) :] for line in lines if line.startswith(start)), "0")))


def make_resident(stack: Fleet, model: Model) -> None:
    """Have the model answer, and wait until the lane has it."""
    assert is_right(model, stack.inference.ModelInfer(request(model), timeout=60))
    wait_until(
        lambda: lane_step(stack, model).startswith("lane: "), 10, f"{model.name} in the lane"
    )

    def goes() -> bool:
        before = metrics(stack, "lane_requests", model)
        stack.inference.ModelInfer(request(model))
        time.sleep(0.05)
        return metrics(stack, "lane_requests", model) > before

    wait_until(goes, 10, "the proxy has the route")


def lane_step(stack: Fleet, model: Model, **more: Any) -> str:
    asked = router.ExplainRouteRequest(model=model.name, **more)
    steps = stack.router.ExplainRoute(asked).steps
    return next((step for step in steps if step.startswith(("lane: ", "router: "))), "")


def counted(stack: Fleet, model: Model, calls: Callable[[], object]) -> tuple[int, int]:
    """Return by how much `calls` raised the requests, and those of them through the lane."""
    names = ("requests", "lane_requests")
    before = [metrics(stack, name, model) for name in names]
    calls()
    time.sleep(0.1)  # the journal is flushed every 10 ms
    return tuple(  # type: ignore[return-value]
        metrics(stack, name, model) - count for name, count in zip(names, before, strict=True)
    )


def test_a_resident_model_answers_through_the_lane(stack: Fleet) -> None:
    model = MODELS[0]
    make_resident(stack, model)

    def calls() -> None:
        for more in ({}, {"model_version": "1"}, {"id": "a"}):
            answer = stack.inference.ModelInfer(request(model, **more))
            assert is_right(model, answer)
            assert (answer.model_name, answer.model_version) == (model.name, "1")
        body = json.dumps(
            {
                "inputs": [
                    {
                        "name": "INPUT",
                        "shape": list(NUMBERS.shape),
                        "datatype": "FP32",
                        "data": NUMBERS.tolist(),
                    }
                ]
            }
        ).encode()
        for middle in ("", "/versions/1"):
            url = f"http://{stack.router_http}/v2/models/{model.name}{middle}/infer"
            with urllib.request.urlopen(url, body) as response:
                assert json.load(response)["outputs"][0]["data"][1] == model.addend + 1

    assert counted(stack, model, calls) == (5, 5)


def test_what_only_the_router_can_do_goes_there(stack: Fleet) -> None:
    model = MODELS[0]
    make_resident(stack, model)
    sequence, priority, classes = request(model), request(model), request(model)
    sequence.parameters["sequence_id"].int64_param = 0
    priority.parameters["priority"].uint64_param = 1
    classes.outputs.add(name="OUTPUT").parameters["classification"].int64_param = 1
    infer = stack.inference.ModelInfer

    def calls() -> None:
        assert is_right(model, infer(sequence))
        assert is_right(model, infer(priority))
        infer(classes)
        assert is_right(model, infer(request(model), metadata=(("x-shoal-priority", "high"),)))
        assert is_right(model, infer(request(model), compression=grpc.Compression.Gzip))
        assert is_right(model, infer(request(model), metadata=(("x-shoal-explain", "1"),)))
        (reply,) = stack.inference.ModelStreamInfer(iter([request(model)]))
        assert is_right(model, reply.infer_response)

    assert counted(stack, model, calls) == (7, 0)
    assert lane_step(stack, model, headers={"x-shoal-priority": "high"}).startswith("router: ")
    assert lane_step(stack, model, sequence_id="7") == "router: it is part of a sequence"


def test_a_mark_of_the_callers_own_is_not_believed(stack: Fleet) -> None:
    make_resident(stack, MODELS[0])
    forged = (("x-shoal-lane", f"/{MODELS[0].name}"), ("x-shoal-peer", "10.1.1.1:1"))
    answer = stack.inference.ModelInfer(request(MODELS[1]), metadata=forged, timeout=60)
    assert is_right(MODELS[1], answer)
    assert stack.inference.RepositoryIndex(
        service_pb2.RepositoryIndexRequest(), metadata=forged
    ).models, "the caller on loopback is still an administrator"


def test_a_model_used_through_the_lane_alone_is_not_idle(stack: Fleet) -> None:
    model, others = MODELS[2], MODELS[3:]
    make_resident(stack, model)
    stop = threading.Event()
    wrong: list[str] = []

    def use() -> None:
        while not stop.wait(0.05):
            if not is_right(model, stack.inference.ModelInfer(request(model))):
                wrong.append("a wrong answer")

    thread = threading.Thread(target=use)
    thread.start()
    try:
        with evictions(stack) as evicted:
            for other in others[: 4 * PLACES]:
                assert is_right(other, stack.inference.ModelInfer(request(other), timeout=60))
            wait_until(lambda: len(evicted) > PLACES, 10, "evictions")
    finally:
        stop.set()
        thread.join()
    assert wrong == []
    assert model.name not in evicted


@contextlib.contextmanager
def evictions(stack: Fleet) -> Iterator[list[str]]:
    """Yield the names of models that are evicted, as they are."""
    found: list[str] = []
    channel = grpc.insecure_channel(stack.controller_address)
    events = type(stack.controller)(channel).WatchEvents(controller.WatchEventsRequest())

    def run() -> None:
        with contextlib.suppress(grpc.RpcError):
            for response in events:
                if response.event.kind == kinds.EVENT_KIND_EVICTING:
                    found.append(response.event.version.split("/")[1])

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield found
    finally:
        events.cancel()
        thread.join()
        channel.close()


# --- churn and kills ------------------------------------------------------------------------------


@dataclass
class Churned:
    """What clients and observers saw while parts were killed."""

    answered: int = 0
    wrong: list[str] = field(default_factory=list)
    killed: list[str] = field(default_factory=list)
    evicted: int = 0
    #: The most units that a server had, as its own index says.
    most_units: int = 0


def ask(stack: Fleet, seed: int, found: Churned, stop: threading.Event) -> None:
    """Ask for models by Zipf's law until told to stop. No request has a deadline."""
    with grpc.insecure_channel(stack.router_grpc, options=OPTIONS) as channel:
        infer: Any = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=service_pb2.ModelInferRequest.SerializeToString,
            response_deserializer=service_pb2.ModelInferResponse.FromString,
        )
        for model in itertools.cycle(zipf(200, MODELS, 1.1, seed)):
            if stop.is_set():
                return
            try:
                if not is_right(model, infer(request(model))):
                    found.wrong.append(f"{model.name}: a wrong answer")
            except grpc.RpcError as error:
                found.wrong.append(f"{model.name}: {error.code().name} {error.details()}")
            found.answered += 1


def churned(stack: Fleet, until: Callable[[Churned], bool], apart: float = 2.0) -> Churned:
    """Kill one part after the other, each `apart` seconds after all were back, until it is
    enough."""
    found, stop = Churned(), threading.Event()
    with contextlib.ExitStack() as around, ThreadPoolExecutor(CLIENTS) as pool:
        samples = [
            around.enter_context(sampled(stack.stack, server, lambda: False, frozenset()))
            for server in SERVERS
        ]
        evicted = around.enter_context(evictions(stack))
        clients = [pool.submit(ask, stack, seed, found, stop) for seed in range(CLIENTS)]
        try:
            for name in itertools.cycle(KILLED):
                before = stack.stack.announced()
                os.kill(before.pid_of(name), signal.SIGKILL)
                stack.stack.wait_for(restarted(before, name), 60)
                found.killed.append(name)
                if until(found):
                    break
                time.sleep(apart)
        finally:
            stop.set()
        for client in clients:
            client.result()
    found.evicted = len(evicted)
    found.most_units = max(one.most_units for one in samples)
    return found


@pytest.mark.timeout(300)
def test_churn_and_kills_fail_nobody(stack: Fleet) -> None:
    found = churned(stack, lambda found: len(found.killed) == len(KILLED))
    assert found.wrong == []
    assert found.most_units <= PLACES


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_twenty_thousand_through_the_lane(stack: Fleet) -> None:
    began = time.monotonic()
    found = churned(stack, lambda found: found.answered >= 20_000, apart=10.0)
    figures = {
        "requests": found.answered,
        "wrong": len(found.wrong),
        "seconds": round(time.monotonic() - began, 1),
        "kills": len(found.killed),
        "evictions": found.evicted,
        "most units on a server": found.most_units,
    }
    record("Soak: the lane, Zipf 1.1 over 30 models, all parts SIGKILLed in turn", figures)
    assert found.wrong == []
    assert found.most_units <= PLACES


def is_split(stack: Fleet, model: Model) -> bool:
    try:
        return len(stack.router.ExplainRoute(router.ExplainRouteRequest(model=model.name)).arms) > 1
    except grpc.RpcError:
        return False


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_seventy_thirty_over_twenty_thousand(stack: Fleet) -> None:
    """Within the interval that 99.9 % of fair draws fall into."""
    first, second = MODELS[:2]
    front = Model("front", 0)
    stack.registry.CreateModel(
        registry.CreateModelRequest(model=types_pb2.Model(name="models/front"))
    )
    arms = [
        types_pb2.Arm(target=f"models/{model.name}/versions/1", weight=weight)
        for model, weight in ((first, 70), (second, 30))
    ]
    policy = types_pb2.TrafficPolicy(name="models/front/trafficPolicy", arms=arms)
    try:
        stack.registry.SetTrafficPolicy(registry.SetTrafficPolicyRequest(traffic_policy=policy))
        wait_until(lambda: is_split(stack, front), 10, "the policy reaches the Router")
        answers = [stack.inference.ModelInfer(request(front), timeout=30) for _ in range(20_000)]
    finally:
        stack.registry.DeleteModel(registry.DeleteModelRequest(name="models/front"))
    share = [is_right(first, answer) for answer in answers].count(True) / len(answers)
    assert sum(is_right(second, answer) for answer in answers) == round(
        (1 - share) * len(answers)
    ), "no answer is another's"
    record("Soak: 70 to 30 through the front door", {"requests": len(answers), "share": share})
    assert abs(share - 0.7) < 3.29 * (0.7 * 0.3 / len(answers)) ** 0.5
