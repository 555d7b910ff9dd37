"""Requests with numpy arrays, and answers, of a Triton without Shoal."""

import threading
from functools import partial

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import np_to_triton_dtype

from tests.support.triton_direct import DirectTriton

ANSWER_S = 30.0

Arrays = dict[str, np.ndarray]


def infer(
    server: DirectTriton,
    model: str,
    inputs: Arrays,
    version: int | str = "",
    outputs: list[triton.InferRequestedOutput] | None = None,
) -> Arrays:
    result = server.client.infer(
        model, tensors(inputs), str(version), outputs=outputs, client_timeout=ANSWER_S
    )
    return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}


def tensors(arrays: Arrays) -> list[triton.InferInput]:
    built = []
    for name, array in arrays.items():
        tensor = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        built.append(tensor.set_data_from_numpy(array))
    return built


def at_once(
    server: DirectTriton, model: str, requests: list[Arrays]
) -> list[triton.InferResult | triton.InferenceServerException]:
    """Sends all without waiting between; results or errors in the requests' order."""
    slots: list[triton.InferResult | triton.InferenceServerException | None]
    slots = [None] * len(requests)
    answered = threading.Semaphore(0)

    def done(
        at: int,
        result: triton.InferResult | None,
        error: triton.InferenceServerException | None,
    ) -> None:
        slots[at] = error if error is not None else result
        answered.release()

    for at, arrays in enumerate(requests):
        server.client.async_infer(model, tensors(arrays), partial(done, at))
    for _ in requests:
        assert answered.acquire(timeout=ANSWER_S)
    return [slot for slot in slots if slot is not None]
