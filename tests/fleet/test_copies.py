"""Copies of a busy model come and go with what is asked of it."""

import threading
from collections.abc import Iterator

import pytest
import tritonclient.grpc as triton

from services.embedded.background import BackgroundStack
from shoal.controller.v1 import controller_service_pb2 as controller
from shoal.controller.v1 import types_pb2 as kinds
from tests.support.stack import Fleet, example, infer
from tests.support.waiting import wait_until

pytestmark = pytest.mark.triton

MODEL = "squeezenet_onnx"
CLIENTS = 8
WITHIN = 30.0  # seconds


@pytest.fixture(scope="module")
def stack() -> Iterator[Fleet]:
    with BackgroundStack(
        "--repository=model_repository",
        "--servers=2",
        "--trace-ratio=0",
        environment={
            "SHOAL_CONTROLLER_COPY_IN_FLIGHT": "2",
            "SHOAL_CONTROLLER_COPY_UP": "1",
            "SHOAL_CONTROLLER_COPY_DOWN": "2",
        },
    ) as running:
        yield Fleet(running)


def servers(stack: Fleet) -> list[str]:
    """Where the model is READY."""
    found = stack.controller.ListReplicas(controller.ListReplicasRequest(model=f"models/{MODEL}"))
    ready = [r for r in found.replicas if r.state == kinds.REPLICA_STATE_READY]
    return sorted(replica.name.split("/")[1] for replica in ready)


def reasons(stack: Fleet, kind: kinds.EventKind.ValueType) -> list[str]:
    about = controller.ListEventsRequest(about=f"models/{MODEL}", page_size=100)
    return [
        event.reason for event in stack.controller.ListEvents(about).events if event.kind == kind
    ]


def test_a_busy_model_gets_another_copy_until_it_is_idle_again(stack: Fleet) -> None:
    shown = example(MODEL)
    assert infer(stack.client, shown) == []
    assert len(servers(stack)) == 1
    stop, wrong = threading.Event(), list[str]()

    def ask() -> None:
        with triton.InferenceServerClient(stack.stack.announced().endpoints["router_grpc"]) as own:
            while not stop.is_set():
                wrong.extend(infer(own, shown, client_timeout=30))

    clients = [threading.Thread(target=ask) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    try:
        wait_until(lambda: len(servers(stack)) == 2, WITHIN, "there is another copy")
    finally:
        stop.set()
        for client in clients:
            client.join()
    wait_until(lambda: len(servers(stack)) == 1, WITHIN, "one copy is left")
    assert infer(stack.client, shown) == []
    assert wrong == []
    assert "with one copy less, each would have had" in reasons(stack, kinds.EVENT_KIND_EVICTING)[0]
    (left,) = servers(stack)
    explained = stack.controller.WhyResident(
        controller.WhyResidentRequest(name=f"models/{MODEL}/versions/1")
    )
    placed = {r.replica.name.split("/")[1]: r.placed for r in explained.replicas}
    assert placed[left]
