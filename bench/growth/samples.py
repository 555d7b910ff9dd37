"""What each part of a running stack holds, sampled from outside."""

import time
import urllib.request
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

import psutil
from prometheus_client.parser import text_string_to_metric_families

from bench.growth.trend import Tolerance
from services.embedded.background import BackgroundStack

MIB: Final = 1 << 20
_ANSWER: Final = 30.0  # seconds
_GAUGES: Final = {"shoal_asyncio_tasks": "tasks", "shoal_python_blocks": "blocks"}


class Measure(NamedTuple):
    """`apart`: the tolerance of a part that has another one."""

    title: str
    tolerance: Tolerance
    apart: Mapping[str, Tolerance] = MappingProxyType({})

    def allowed(self, part: str) -> Tolerance:
        return self.apart.get(part, self.tolerance)


MEASURES: Final = {
    "memory": Measure("proportional set size, MiB", Tolerance(16, 0.1)),
    "files": Measure("open files", Tolerance(6, 0.1)),
    "threads": Measure("threads", Tolerance(3, 0.1)),
    "tasks": Measure("asyncio tasks", Tolerance(10, 0.1)),
    "blocks": Measure(
        "blocks of Python's objects, thousands",
        Tolerance(10, 0.05),  # of it, what the garbage collector has not looked at yet
        {"controller": Tolerance(40, 0.05)},  # its journal fills for hours, up to 10,000 events
    ),
}
JUDGED: Final = ("router", "controller", "registry")
SHOWN: Final = ("triton-0", "lane")  # not ours, and beside them


class Sample(NamedTuple):
    """`at`: seconds since the beginning. `value`: in the measure's unit."""

    at: float
    part: str
    measure: str
    value: float


class Sampler:
    def __init__(self, stack: BackgroundStack) -> None:
        announced = stack.announced()
        self._began = time.monotonic()
        self._processes = {
            part: psutil.Process(announced.pid_of(part))
            for part in (*JUDGED, *SHOWN)
            if part in announced.parts  # there may be no lane
        }
        self._metrics = {
            "router": stack.router_http,
            "controller": announced.endpoints["controller_metrics"],
            "registry": announced.endpoints["registry_metrics"],
        }

    def take(self) -> list[Sample]:
        """All measures of all parts. Raises psutil.Error, OSError when one has ended."""
        found = []
        for part, process in self._processes.items():
            at = time.monotonic() - self._began
            values = {**_held(process), **self._inside(part)}
            found += [Sample(at, part, measure, value) for measure, value in values.items()]
        return found

    def _inside(self, part: str) -> Mapping[str, float]:
        if part not in self._metrics:
            return {}
        url = f"http://{self._metrics[part]}/metrics"
        with urllib.request.urlopen(url, timeout=_ANSWER) as response:
            families = text_string_to_metric_families(response.read().decode())
        found = {
            _GAUGES[family.name]: family.samples[0].value
            for family in families
            if family.name in _GAUGES
        }
        found["blocks"] /= 1000
        return found


def _held(process: psutil.Process) -> Mapping[str, float]:
    return {
        "memory": process.memory_full_info().pss / MIB,
        "files": process.num_fds(),
        "threads": process.num_threads(),
    }
