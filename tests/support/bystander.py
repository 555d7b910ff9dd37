"""A well-behaved client beside those that are not, or that are many: what it experiences."""

import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2

MODEL = "echo"


@dataclass
class Experience:
    """Times in seconds."""

    times: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.times)


@contextmanager
def beside(address: str, *, patience: float, pause: float = 0.0) -> Iterator[Experience]:
    """Sends one small request to the model `echo` after another, each with so much `patience`, and
    a `pause` before each. Seconds."""
    experience = Experience()
    stop = threading.Event()
    numbers = np.arange(16, dtype=np.float32).tobytes()
    message = service_pb2.ModelInferRequest(model_name=MODEL)
    message.inputs.add(name="INPUT", datatype="FP32", shape=[16])
    message.raw_input_contents.append(numbers)

    def ask() -> None:
        # Apart from the connections of other channels.
        with grpc.insecure_channel(address, [("shoal.well_behaved", 1)]) as channel:
            call: Any = channel.unary_unary(
                "/inference.GRPCInferenceService/ModelInfer",
                request_serializer=service_pb2.ModelInferRequest.SerializeToString,
                response_deserializer=service_pb2.ModelInferResponse.FromString,
            )
            while not stop.wait(pause):
                began = time.monotonic()
                try:
                    if call(message, timeout=patience).raw_output_contents[0] != numbers:
                        experience.problems.append("another answer")
                except grpc.RpcError as error:
                    experience.problems.append(f"{error.code().name}: {error.details()}")
                experience.times.append(time.monotonic() - began)

    thread = threading.Thread(target=ask, name="well-behaved")
    thread.start()
    try:
        yield experience
    finally:
        stop.set()
        thread.join()
