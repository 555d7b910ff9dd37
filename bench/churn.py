"""A model that is loaded and evicted again and again while another one is asked."""

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any, Final

import grpc

from bench.workloads import INFER, is_right, request
from shoal.controller.v1 import controller_service_pb2 as wire
from shoal.controller.v1.controller_service_pb2_grpc import ControllerServiceStub

_WITHIN: Final = 60.0  # seconds for a load or an eviction
_FLOATS: Final = 16


class Churn:
    """Asks a Router for `model`, which has it loaded, and a Controller to evict it. Both addresses
    are `host:port`."""

    def __init__(self, router: str, controller: str, model: str) -> None:
        self._router = router
        self._controller = controller
        self._model = model
        #: Loads so far, each with its eviction, and the seconds that all of them took.
        self.turns = 0
        self.seconds = 0.0

    @contextlib.contextmanager
    def going(self) -> Iterator[None]:
        """Keep at it until the end of the block. Raises RuntimeError there if one has failed."""
        stop = threading.Event()
        failures: list[Exception] = []

        def run() -> None:
            try:
                self._run(stop)
            except (grpc.RpcError, ValueError) as error:
                failures.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
        if failures:
            raise RuntimeError(f"{self._model} did not come and go: {failures[0]}")

    def _run(self, stop: threading.Event) -> None:
        evict = wire.EvictModelRequest(name=f"models/{self._model}")
        message = request(_FLOATS, self._model)
        with (
            grpc.insecure_channel(self._router) as router,
            grpc.insecure_channel(self._controller) as controller,
        ):
            infer: Any = router.unary_unary(INFER)
            stub = ControllerServiceStub(controller)
            while not stop.is_set():
                began = time.monotonic()
                if not is_right(_FLOATS, infer(message, timeout=_WITHIN)):
                    raise ValueError("another answer than was asked for")
                stub.EvictModel(evict, timeout=_WITHIN)
                self.turns += 1
                self.seconds += time.monotonic() - began
