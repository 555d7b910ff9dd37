"""By which way a whole stack sends requests of streams on, as its models come and go."""

import queue
import re
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton

from services.embedded.background import BackgroundStack
from shoal.registry.v1 import registry_service_pb2 as registry
from tests.support.stack import Fleet, tensors
from tests.support.streams import MANY, write_models
from tests.support.triton_models import write
from tests.support.waiting import wait_until

pytestmark = pytest.mark.triton

MODEL, SECONDS = "plain", 30.0

Ask = Callable[[float], float]


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Fleet]:
    write(tmp_path / "models", MODEL)
    write_models(tmp_path / "more")
    with BackgroundStack(f"--repository={tmp_path / 'models'}", "--trace-ratio=0") as running:
        yield Fleet(running)


def streamed(stack: Fleet) -> int:
    """Requests that went on by a stream, so far."""
    with urllib.request.urlopen(f"http://{stack.router_http}/metrics", timeout=30) as response:
        text = response.read().decode()
    found = re.search(r"^shoal_router_streamed_requests_total (\S+)$", text, re.MULTILINE)
    assert found is not None
    return int(float(found[1]))


@pytest.fixture
def ask(stack: Fleet) -> Iterator[Ask]:
    """One request after another, on one stream that stays open."""
    replies: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with triton.InferenceServerClient(stack.router_grpc) as client:
        client.start_stream(lambda result, error: replies.put((result, error)))

        def one(number: float) -> float:
            client.async_stream_infer(MODEL, tensors({"INPUT": np.array([number], np.float32)}))
            result, error = replies.get(timeout=SECONDS)
            assert error is None
            return float(result.as_numpy("OUTPUT")[0])

        yield one
        client.stop_stream()


def test_requests_go_by_streams_until_a_decoupled_model_comes(
    stack: Fleet, ask: Ask, tmp_path: Path
) -> None:
    assert [ask(n) for n in range(10)] == list(range(10))
    # The first one to a replica alone; the first of all is cold, and goes to no known one.
    assert streamed(stack) >= 8

    def goes_by_a_stream() -> bool:
        before = streamed(stack)
        assert ask(1) == ask(1) == 1
        return streamed(stack) > before

    assert goes_by_a_stream()
    stack.registry.RegisterModelVersion(
        registry.RegisterModelVersionRequest(
            parent=f"models/{MANY}", source=str(tmp_path / "more" / MANY)
        ),
        timeout=SECONDS,
    )
    wait_until(lambda: not goes_by_a_stream(), SECONDS, "requests that go alone")
    before = streamed(stack)
    assert [ask(n) for n in range(10)] == list(range(10))
    assert streamed(stack) == before

    stack.registry.DeleteModel(registry.DeleteModelRequest(name=f"models/{MANY}"), timeout=SECONDS)
    wait_until(goes_by_a_stream, SECONDS, "requests that go by a stream again")
