"""Thousands of connections and streams at one Router: all answered, little held, nothing kept."""

import re
import resource
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from services.embedded.background import BackgroundStack
from tests.support import bystander, results
from tests.support.bystander import beside
from tests.support.many_streams import Crowd, Model
from tests.support.stack import Fleet
from tests.support.triton_models import config, write, write_program
from tests.support.waiting import wait_until

pytestmark = pytest.mark.triton

PLAIN, DECOUPLED = Model(bystander.MODEL, (1,)), Model("there_and_back", (1, -1))
MODELS = (PLAIN, PLAIN, PLAIN, DECOUPLED)  # of four streams, one
SECONDS = 180.0  # for each step
OWN_FILES = 200  # of this process, beside the connections
# What the Router may hold for other reasons, over what it held before.
FILES, TASKS = 8, 8
TIMES = 3  # that may tell of growth

Figures = dict[str, object]

_THERE_AND_BACK = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "INPUT").as_numpy()
            sender = request.get_response_sender()
            for y in (x, -x):
                sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", y)]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Fleet]:
    """Of each test its own, for what malloc keeps of one is there for the next."""
    write(tmp_path, PLAIN.name)
    decoupled = config(DECOUPLED.name)
    decoupled.model_transaction_policy.decoupled = True
    write_program(tmp_path, decoupled, _THERE_AND_BACK)
    with BackgroundStack(f"--repository={tmp_path}", "--trace-ratio=0") as running:
        fleet = Fleet(running)
        with Crowd(fleet.router_grpc, MODELS, SECONDS) as few:  # what the first of all make
            few.connect(1)
            few.open(len(MODELS))
            few.ask()
            few.end(few.connections)
        yield fleet


class Held(NamedTuple):
    """By the Router. `memory`: resident bytes; `blocks`: of Python's objects; `cpu`: seconds."""

    memory: int
    files: int
    tasks: int
    blocks: int
    cpu: float


def held(stack: Fleet) -> Held:
    process = psutil.Process(stack.stack.announced().pid_of("router"))
    with urllib.request.urlopen(f"http://{stack.router_http}/metrics", timeout=30) as response:
        text = response.read().decode()
    tasks, blocks = (
        int(float(re.findall(rf"^{name} (\S+)$", text, re.MULTILINE)[0]))
        for name in ("shoal_asyncio_tasks", "shoal_python_blocks")
    )
    times = process.cpu_times()
    memory = process.memory_info().rss
    return Held(memory, process.num_fds(), tasks, blocks, times.user + times.system)


def allowed(connections: int) -> None:
    """This process may open as many files as that takes."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert most >= connections + OWN_FILES, f"{most} open files are too few: raise `ulimit -Hn`"
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def crowded(stack: Fleet, connections: int, each: int, hold: float) -> tuple[Figures, Held]:
    """All are answered, held for `hold` seconds, and answered again; then one half is reset. The
    figures of that, and what the Router holds when all are gone."""
    allowed(connections)
    began = time.monotonic()
    before = held(stack)
    with (
        beside(stack.router_grpc, patience=SECONDS, pause=0.02) as other,
        Crowd(stack.router_grpc, MODELS, SECONDS) as crowd,
    ):
        crowd.connect(connections)
        connected = held(stack)
        crowd.open(each)
        first = crowd.ask()
        asked = held(stack)
        pings = crowd.hold(hold)
        idle = held(stack)
        second = crowd.ask()
        full = held(stack)
        crowd.reset(crowd.connections[::2])
        crowd.end(crowd.connections)
        wait_until(
            lambda: is_back(held(stack), before), SECONDS, f"no more files and tasks than {before}"
        )
    after = held(stack)
    assert other.problems == []
    count = connections * each
    seen = (before, connected, full, after)
    return {
        "connections": connections,
        "streams": count,
        "of them to a decoupled model": sum(one.model.decoupled for one in crowd.streams),
        "Router MiB before, connected, with streams, after": ", ".join(
            f"{one.memory / 2**20:.0f}" for one in seen
        ),
        "KiB a connection": kib(connected.memory - before.memory, connections),
        "KiB a stream": kib(full.memory - connected.memory, count),
        "asyncio tasks a stream": round((asked.tasks - connected.tasks) / count, 2),
        "open files": ", ".join(str(one.files) for one in seen),
        "asyncio tasks": ", ".join(str(one.tasks) for one in seen),
        "seconds for a request on every stream, and another": f"{first:.1f}, {second:.1f}",
        "seconds held": hold,
        "Router CPU while held": f"{100 * (idle.cpu - asked.cpu) / hold:.0f} %, {pings} pings",
        "requests beside": len(other.times),
        "of them, median and longest ms": f"{1e3 * other.median:.0f}, {1e3 * max(other.times):.0f}",
        "seconds": round(time.monotonic() - began, 1),
    }, after


def is_back(now: Held, before: Held) -> bool:
    return now.files <= before.files + FILES and now.tasks <= before.tasks + TASKS


def kib(size: int, count: int) -> float:
    return round(size / 1024 / count, 1)


def again(stack: Fleet, connections: int, each: int, hold: float) -> Figures:
    """What malloc and the garbage collector keep of the first time is enough for the next. What the
    Router does for the first time then, it may keep, too; but not every time."""
    figures, before = crowded(stack, connections, each, hold)
    for _ in range(TIMES):
        _, after = crowded(stack, connections, each, hold=0.5)
        grown = after.blocks - before.blocks
        assert after.memory < 1.3 * before.memory  # malloc's heap is not filled evenly
        if grown < connections * each:
            figures["Router MiB after another time"] = round(after.memory / 2**20)
            return figures
        before = after
    pytest.fail(f"of each stream something is kept: {grown} blocks")


@pytest.mark.parametrize(("connections", "each"), [(500, 1), (5, 100)])
def test_many(stack: Fleet, connections: int, each: int) -> None:
    print(again(stack, connections, each, hold=1.0))


@pytest.mark.soak
@pytest.mark.parametrize(("connections", "each"), [(10_000, 1), (10, 1000)])
def test_ten_thousand_streams(stack: Fleet, connections: int, each: int) -> None:
    figures = again(stack, connections, each, hold=60.0)
    streams = "a stream each" if each == 1 else f"{each} streams each"
    results.record(f"Soak: {connections} connections with {streams}", figures)
