"""What servers and their models take, as processes, GPUs and metrics endpoints tell."""

import subprocess
import urllib.error
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from prometheus_client import CollectorRegistry, Gauge, start_http_server

from services.controller.core.entities import Unit
from services.controller.measurement import footprints, remote
from services.controller.measurement.footprint_watch import Baselines
from services.controller.measurement.footprints import RAM, Stub
from services.controller.measurement.gpus import Gpus
from services.controller.measurement.processes import Processes
from services.controller.measurement.queues import waits
from services.controller.triton.statistics import Statistics
from tests.support.waiting import wait_until

UNIT, OTHER = Unit("m", 1), Unit("m", 2)
MIB = 1 << 20

# --- processes ------------------------------------------------------------------------------------


@pytest.fixture
def parent() -> Iterator[psutil.Process]:
    """A process with two children, which end with it."""
    words = ["sh", "-c", "sleep 60 & sleep 60 & read line; kill %1 %2; wait"]
    with subprocess.Popen(words, stdin=subprocess.PIPE) as started:
        process = psutil.Process(started.pid)
        wait_until(lambda: len(process.children()) == 2, 10, "its children")
        yield process
        for child in process.children():
            child.kill()
        started.kill()


def known(parent: psutil.Process) -> dict[int, Stub]:
    children = sorted(parent.children(), key=lambda child: child.pid)
    return {
        child.pid: Stub(unit, child) for child, unit in zip(children, (UNIT, OTHER), strict=True)
    }


def test_gpu_memory_counts_for_the_unit_of_the_process(parent: psutil.Process) -> None:
    stubs = known(parent)
    first, _ = stubs
    on_gpus = {first: {"gpu:0": 5, "gpu:1": 7}, parent.pid: {"gpu:0": 11}, 1: {"gpu:0": 99}}
    found = footprints.measure(parent, stubs, on_gpus)
    assert found is not None
    assert {unit: dict(size) for unit, size in found.units.items()} == {
        UNIT: {RAM: found.units[UNIT][RAM], "gpu:0": 5, "gpu:1": 7},
        OTHER: {RAM: found.units[OTHER][RAM]},
    }
    assert found.others == {RAM: found.others[RAM], "gpu:0": 11}
    assert found.stubs == stubs, "who is whose is remembered"
    assert footprints.broken((UNIT, OTHER), found) == {}


def test_a_dead_process_takes_nothing_and_its_unit_is_broken(parent: psutil.Process) -> None:
    stubs = known(parent)
    first, _ = stubs
    parent.suspend()  # so that it does not take its dead child away
    try:
        psutil.Process(first).kill()
        wait_until(lambda: not stubs[first].alive, 10, "its end")
        found = footprints.measure(parent, stubs)
        assert found is not None
        assert found.units.keys() == {OTHER}
        assert footprints.broken((UNIT, OTHER), found) == {UNIT: f"its process {first} is dead"}
        unseen = footprints.measure(parent)
        assert unseen is not None
        assert unseen.stubs == {}
        assert unseen.nameless == 0, "a dead process of another kind is nobody's"
    finally:
        parent.resume()
    gone = footprints.broken((Unit("gone", 1),), found)
    assert gone == {Unit("gone", 1): "its process is gone"}


async def test_what_is_on_another_host_is_not_seen() -> None:
    processes = Processes({"here": "127.0.0.1:1"}, Gpus())
    for server in ("here", "elsewhere"):
        assert processes.is_local(server) == (server == "here")
        assert await processes.look(server) is None
        assert processes.broken(server) == {}
        assert not processes.alive(server, UNIT)
        assert not processes.ended(server, UNIT)
        processes.forget(server, UNIT)


# --- GPUs -----------------------------------------------------------------------------------------


@dataclass
class Recorded:
    """NVML's answers on a host with GPUs: by device, the processes and their bytes."""

    devices: list[list[tuple[int, int | None]]]
    broken: bool = False

    class NVMLError(Exception):
        pass

    def nvmlDeviceGetCount(self) -> int:
        return len(self.devices)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if self.broken:
            raise self.NVMLError("GPU is lost")
        return index

    def nvmlDeviceGetComputeRunningProcesses(self, device: int) -> list[Any]:
        return [SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in self.devices[device]]


def test_gpu_memory_by_process() -> None:
    gpus = Gpus(Recorded([[(10, 3 * MIB), (11, 5 * MIB), (10, MIB)], [(10, 7 * MIB), (12, None)]]))
    assert gpus.used() == {
        10: {"gpu:0": 4 * MIB, "gpu:1": 7 * MIB},
        11: {"gpu:0": 5 * MIB},
    }


def test_a_gpu_that_fails_is_not_measured() -> None:
    assert Gpus(Recorded([[(10, MIB)]], broken=True)).used() == {}


def test_a_host_without_gpus_has_none() -> None:
    assert Gpus().used() == {}
    for used in Gpus.of_this_host().used().values():  # there may be some
        assert all(resource.startswith("gpu:") for resource in used)


# --- other hosts ----------------------------------------------------------------------------------

PAGE = """\
# HELP nv_gpu_memory_used_bytes GPU used memory, in bytes
# TYPE nv_gpu_memory_used_bytes gauge
nv_gpu_memory_used_bytes{gpu_uuid="GPU-b"} 2147483648
nv_gpu_memory_used_bytes{gpu_uuid="GPU-a"} 1073741824
# HELP nv_gpu_memory_total_bytes GPU total memory, in bytes
# TYPE nv_gpu_memory_total_bytes gauge
nv_gpu_memory_total_bytes{gpu_uuid="GPU-a"} 17179869184
# HELP nv_cpu_memory_used_bytes CPU used memory (RAM), in bytes
# TYPE nv_cpu_memory_used_bytes gauge
nv_cpu_memory_used_bytes 839270400
"""


def test_a_page_of_metrics() -> None:
    assert remote.used(PAGE) == {"gpu:0": 1 << 30, "gpu:1": 2 << 30, RAM: 839270400}
    assert remote.used("") == {}
    with pytest.raises(ValueError, match="could not convert"):
        remote.used("nv_cpu_memory_used_bytes many\n")


def test_a_page_is_read_over_http() -> None:
    registry = CollectorRegistry()
    Gauge(remote.CPU_USED, "as Triton says it", registry=registry).set(5)
    server, thread = start_http_server(0, "127.0.0.1", registry)
    try:
        assert remote.read(f"http://127.0.0.1:{server.server_port}/metrics") == {RAM: 5}
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    with pytest.raises(urllib.error.URLError):
        remote.read(f"http://127.0.0.1:{server.server_port}/metrics")


def test_a_baseline_is_the_first_reading_without_a_model() -> None:
    baselines = Baselines()
    assert baselines.grown("t", 1.0, {RAM: 100}, empty=False) == {RAM: 0}, "not known yet"
    assert baselines.grown("t", 1.0, {RAM: 100, "gpu:0": 7}, empty=True) == {RAM: 0, "gpu:0": 0}
    assert baselines.grown("t", 1.0, {RAM: 130, "gpu:0": 5}, empty=True) == {RAM: 30, "gpu:0": 0}
    assert baselines.grown("t", 2.0, {RAM: 120}, empty=False) == {RAM: 0}, "another process"
    baselines.forget("t")
    assert baselines.grown("t", 1.0, {RAM: 120}, empty=True) == {RAM: 0}


# --- queues ---------------------------------------------------------------------------------------


def statistics(queued: int, seconds: float) -> Statistics:
    return Statistics(queued, seconds, {})


def test_the_wait_is_that_of_the_requests_since_the_last_look() -> None:
    before = {UNIT: statistics(10, 1.0)}
    assert waits(before, {UNIT: statistics(14, 3.0)}) == {UNIT: 0.5}
    assert waits(before, {UNIT: statistics(10, 1.0)}) == {}, "nobody asked"
    assert waits(before, {UNIT: statistics(4, 0.4)}) == {UNIT: 0.1}, "it was loaded anew"
    assert waits(before, {UNIT: statistics(12, 0.75)}) == {UNIT: 0.0625}, (
        "likewise, and is asked more"
    )
    assert waits({}, {UNIT: statistics(2, 1.0), OTHER: statistics(0, 0.0)}) == {UNIT: 0.5}
    assert waits(before, {}) == {}
