"""Closed loops on a warm model, each answer counted by Triton itself."""

import time
import urllib.request
from typing import Final

from bench import load
from bench.load import Failed, Load
from bench.residency.models import FLOATS, Model, request
from bench.workloads import Workload

WARM: Final = Model("warm", 7)
ALONE: Final = Workload("alone", "1 in flight", FLOATS, 1, 1)
MANY: Final = Workload("many", "16 in flight", FLOATS, 4, 4)
_COUNTED_WITHIN: Final = 5.0  # seconds; Triton counts just after it has answered
_ANSWER: Final = 10.0


class Loop:
    """Sends to the model WARM at `address`; `metrics`: host:port of its Triton's."""

    def __init__(self, generator: str, address: str, metrics: str) -> None:
        self._generator = generator
        self._address = address
        self._metrics = metrics
        self._rates: dict[Workload, float] = {}

    def send(self, workload: Workload, seconds: float) -> Load:
        """For about so long. Raises Failed when a request was not answered."""
        if not self._rates:
            time.sleep(_COUNTED_WITHIN / 10)  # until requests before this loop's are counted
        if workload not in self._rates:
            self._send(workload, 200 * workload.in_flight)
        wanted = int(self._rates[workload] * seconds)
        return self._send(workload, max(wanted, 10 * workload.in_flight))

    def _send(self, workload: Workload, requests: int) -> Load:
        before = self._answered()
        sent = load.send(self._generator, self._address, workload, request(WARM), requests)
        self._rates[workload] = requests / sent.seconds
        deadline = time.monotonic() + _COUNTED_WITHIN
        while (found := self._answered() - before) != requests:  # a gRPC error is an HTTP 200
            if time.monotonic() > deadline:
                raise Failed(f"{found} of {requests} requests were answered")
            time.sleep(0.02)
        return sent

    def _answered(self) -> int:
        url = f"http://{self._metrics}/metrics"
        with urllib.request.urlopen(url, timeout=_ANSWER) as response:
            lines = response.read().decode().splitlines()
        name = "nv_inference_request_success{"
        rows = [row for row in lines if row.startswith(name) and f'model="{WARM.name}"' in row]
        return sum(int(float(row.rpartition(" ")[2])) for row in rows)
