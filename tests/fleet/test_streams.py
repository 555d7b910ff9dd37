"""Triton's own clients, unchanged, with one stream over more models than fit."""

import asyncio
import os
import queue
from collections.abc import AsyncIterator
from typing import Any

import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import aio as triton_aio

from model_repository.examples import Example
from tests.fleet.test_traces import arrived
from tests.support.stack import Fleet, example, tensors

pytestmark = pytest.mark.triton

SECONDS = 45
# Three fit at a time.
UNITS = [
    *(("multiplier", 1), ("text_stats", 1), ("multiplier", 2), ("file_features", 1)),
    *(("squeezenet_onnx", 1), ("file_label", 1), ("multiplier", 1), ("text_stats", 1)),
]


def mismatches(shown: Example, result: Any) -> list[str]:
    return shown.mismatches({name: result.as_numpy(name) for name in shown.expected})


def test_the_synchronous_client(stack: Fleet) -> None:
    replies: queue.Queue[tuple[Any, Any]] = queue.Queue()
    shown = {f"{model}:{version}": example(model, version) for model, version in UNITS}
    with triton.InferenceServerClient(stack.router_grpc) as client:
        client.start_stream(lambda result, error: replies.put((result, error)))
        asked = []
        for turn in range(3):
            for unit, one in shown.items():
                request_id = f"{unit} {turn}"
                asked.append(request_id)
                client.async_stream_infer(
                    one.model,
                    tensors(dict(one.inputs)),
                    model_version=str(one.version),
                    request_id=request_id,
                )
        answered: dict[str, list[str]] = {unit: [] for unit in shown}
        for _ in asked:
            result, error = replies.get(timeout=SECONDS)
            assert error is None
            unit, _, turn_ = result.get_response().id.partition(" ")
            assert mismatches(shown[unit], result) == []
            answered[unit].append(turn_)
        assert set(map(tuple, answered.values())) == {("0", "1", "2")}

        client.async_stream_infer("nobody", [], request_id="7")
        result, error = replies.get(timeout=SECONDS)
        assert "Request for unknown model: 'nobody' is not found" in str(error)
        client.stop_stream()


async def test_the_asynchronous_client(stack: Fleet) -> None:
    shown = [example(model, version) for model, version in UNITS]

    async def requests() -> AsyncIterator[dict[str, Any]]:
        for number, one in enumerate(shown):
            yield {
                "model_name": one.model,
                "inputs": tensors(dict(one.inputs)),
                "model_version": str(one.version),
                "request_id": str(number),
            }

    answered = []
    async with (
        asyncio.timeout(SECONDS),
        triton_aio.InferenceServerClient(stack.router_grpc) as client,
    ):
        async for result, error in client.stream_infer(requests()):
            assert error is None
            number = int(result.get_response().id)
            assert mismatches(shown[number], result) == []
            answered.append(number)
    assert sorted(answered) == list(range(len(shown)))


def test_requests_of_a_stream_are_traced_one_by_one(stack: Fleet) -> None:
    trace, parent = os.urandom(16).hex(), os.urandom(8).hex()
    replies: queue.Queue[tuple[Any, Any]] = queue.Queue()
    one = example("multiplier")
    with triton.InferenceServerClient(stack.router_grpc) as client:
        headers = {"traceparent": f"00-{trace}-{parent}-01"}
        client.start_stream(lambda result, error: replies.put((result, error)), headers=headers)
        client.async_stream_infer(one.model, tensors(dict(one.inputs)), request_id="7")
        _, error = replies.get(timeout=SECONDS)
        assert error is None
        root = "inference.GRPCInferenceService/ModelStreamInfer"
        spans = arrived(stack, trace, {root, "forward"})
        assert spans[root]["parent_span_id"] == parent
        assert spans["forward"]["parent_span_id"] == spans[root]["span_id"]
        client.stop_stream()
