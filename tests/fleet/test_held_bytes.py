"""Many large requests at the same time: what has no room is refused, and small ones go on."""

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2
from tritonclient.grpc import service_pb2

from services.common.status import DETAILS_KEY, error_info
from services.embedded.background import BackgroundStack
from tests.support.stack import Fleet
from tests.support.triton_models import write
from tests.support.waiting import wait_until

pytestmark = pytest.mark.triton

MIB = 1 << 20
SLOW, ECHO = "slow", "echo"
MESSAGE, HELD = 64 * MIB, 160 * MIB  # bytes that one may have, and all of them
LARGE = 40 * MIB  # three of these leave room for no other, but for small ones
SECONDS = 60.0

# Answers a request whose first number is not 0 once there is a file.
_WAIT = "(x[0] == 0 or os.path.exists({door!r}))"
_ANSWER = f"([time.sleep(0.02) for _ in iter(lambda: {_WAIT}, True)], x[:1])[1]"


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("door") / "open"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, door: Path) -> Iterator[Fleet]:
    repository = tmp_path_factory.mktemp("models")
    write(repository, ECHO, answer="x[:1]")
    write(
        repository, SLOW, initialize="global os; import os", answer=_ANSWER.format(door=str(door))
    )
    with BackgroundStack(
        f"--repository={repository}",
        "--trace-ratio=0",
        environment={
            "SHOAL_ROUTER_MAX_MESSAGE_BYTES": str(MESSAGE),
            "SHOAL_ROUTER_MAX_HELD_BYTES": str(HELD),
        },
    ) as running:
        fleet = Fleet(running)
        for model in (SLOW, ECHO):
            fleet.inference.ModelInfer(request(model, 4), timeout=SECONDS)
        yield fleet


def request(model: str, size: int, first: float = 0.0) -> service_pb2.ModelInferRequest:
    """`size`: bytes of its tensor; `first`: its first number."""
    made = service_pb2.ModelInferRequest(model_name=model)
    made.inputs.add(name="INPUT", datatype="FP32", shape=[size // 4])
    tensor = np.zeros(size // 4, np.float32)
    tensor[0] = first
    made.raw_input_contents.append(tensor.tobytes())
    return made


def held(stack: Fleet) -> float:
    connection = http.client.HTTPConnection(stack.router_http, timeout=SECONDS)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    (line,) = (row for row in text.splitlines() if row.startswith("shoal_router_held_bytes"))
    return float(line.split()[-1])


@pytest.fixture
def full(stack: Fleet, door: Path) -> Iterator[list[Any]]:
    """As many large requests as there may be, under way; their calls."""
    door.unlink(missing_ok=True)
    waiting = request(SLOW, LARGE, 1.0)
    calls = [stack.inference.ModelInfer.future(waiting, timeout=SECONDS) for _ in range(3)]
    wait_until(lambda: held(stack) > 3 * LARGE, SECONDS, "three are under way")
    yield calls
    door.touch()
    for call in calls:
        assert call.result(timeout=SECONDS).model_name == SLOW
    wait_until(lambda: held(stack) == 0, SECONDS, "nothing is held any more")


def test_of_single_requests(stack: Fleet, full: list[Any]) -> None:
    with pytest.raises(grpc.RpcError) as error:
        stack.inference.ModelInfer(request(ECHO, LARGE), timeout=SECONDS)
    refused: Any = error.value
    assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    trailing = tuple(refused.trailing_metadata() or ())
    info = error_info(trailing)
    assert info is not None
    assert info.reason == "MEMORY_TAKEN"
    status = status_pb2.Status.FromString(dict(trailing)[DETAILS_KEY])
    retry = error_details_pb2.RetryInfo()
    assert any(detail.Unpack(retry) for detail in status.details)
    assert 0 < retry.retry_delay.ToTimedelta().total_seconds() < 2
    for size in (4, MIB // 2):
        assert stack.inference.ModelInfer(request(ECHO, size), timeout=SECONDS)
    assert not any(call.done() for call in full)


def test_within_a_stream(stack: Fleet, full: list[Any]) -> None:
    asked = [request(ECHO, 4), request(ECHO, LARGE), request(ECHO, 4)]
    replies = list(stack.inference.ModelStreamInfer(iter(asked), timeout=SECONDS))
    assert sorted("no room" in reply.error_message for reply in replies) == [False, False, True]
    assert not any(call.done() for call in full)


def test_over_http(stack: Fleet, full: list[Any]) -> None:
    own = stack.stack.announced().endpoints["router_own_http"]  # it holds nothing of the lane's

    def post(size: int) -> tuple[int, Any, str | None]:
        given = {"name": "INPUT", "datatype": "FP32", "shape": [size // 4]}
        head = json.dumps({"inputs": [{**given, "parameters": {"binary_data_size": size}}]})
        headers = {"Inference-Header-Content-Length": str(len(head))}
        connection = http.client.HTTPConnection(own, timeout=SECONDS)
        body = head.encode() + bytes(size)
        connection.request("POST", f"/v2/models/{ECHO}/infer", body, headers)
        reply = connection.getresponse()
        said = json.loads(reply.read())
        connection.close()
        return reply.status, said, reply.headers["Retry-After"]

    status, said, retry = post(24 * MIB)
    assert (status, said["reason"]) == (429, "MEMORY_TAKEN")
    assert int(retry or 0) > 0
    assert post(1024)[0] == 200
    assert not any(call.done() for call in full)


def test_and_then_there_is_room_again(stack: Fleet) -> None:
    assert stack.inference.ModelInfer(request(ECHO, LARGE), timeout=SECONDS)
    assert held(stack) == 0
