"""The lane's proxy is stopped, killed and left by its callers while models come and go."""

import itertools
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from bench.residency.models import Model, is_right, request, write_repository
from services.embedded.background import Announced, BackgroundStack
from shoal.router.v1 import router_service_pb2 as router
from tests.fleet.test_lane import OPTIONS
from tests.support.raw_http2 import INFER
from tests.support.stack import Fleet, zipf
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.triton, pytest.mark.timeout(240)]

MODELS = tuple(Model(f"harm_{number}", 100 * number + 1) for number in range(12))
PLACES = 4  # of each server
CLIENTS = 4


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("models")
    write_repository(folder, MODELS)
    with BackgroundStack(
        f"--repository={folder}",
        *("--servers=2", f"--max-models={PLACES}"),
        *("--lane=on", "--trace-ratio=0", "--no-otlp"),
        start_within=120,
    ) as up:
        yield Fleet(up)


@contextmanager
def asking(stack: Fleet, models: tuple[Model, ...]) -> Iterator[Callable[[], int]]:
    """Clients that ask for models. Yields the number of answers so far. In the end, all must have
    been right."""
    stop = threading.Event()
    answered = itertools.count()
    seen = [0]

    def ask(seed: int) -> list[str]:
        wrong: list[str] = []
        with grpc.insecure_channel(stack.router_grpc, options=OPTIONS) as channel:
            infer: Any = channel.unary_unary(INFER)
            for model in itertools.cycle(zipf(200, models, 1.0, seed)):
                if stop.is_set():
                    return wrong
                try:
                    if not is_right(model, infer(request(model))):
                        wrong.append(f"{model.name}: a wrong answer")
                except grpc.RpcError as error:
                    wrong.append(f"{model.name}: {error.code().name} {error.details()}")
                seen[0] = next(answered)
        return wrong

    with ThreadPoolExecutor(CLIENTS) as pool:
        clients: list[Future[list[str]]] = [pool.submit(ask, seed) for seed in range(CLIENTS)]
        try:
            yield lambda: seen[0]
        finally:
            stop.set()
        assert [text for client in clients for text in client.result()] == []


def in_flight(stack: Fleet) -> int:
    found = stack.router.GetStatistics(router.GetStatisticsRequest(), timeout=5)
    return sum(row.in_flight for row in found.models)


def started_again(before: Announced) -> Callable[[Announced], bool]:
    return lambda now: now.all_ready() and now.starts("lane") > before.starts("lane")


def goes_on(answers: Callable[[], int], count: int = 30) -> None:
    before = answers()
    wait_until(lambda: answers() > before + count, 60, f"{count} more answers")


def test_a_proxy_that_is_stopped_and_goes_on_fails_nobody(stack: Fleet) -> None:
    """Meanwhile, withdrawals wait for it only so long; afterwards, what it still sends by the old
    routes is answered by the Router."""
    lane = stack.stack.announced().pid_of("lane")
    with asking(stack, MODELS) as answers:
        goes_on(answers)
        for seconds in (0.2, 4.0):
            os.kill(lane, signal.SIGSTOP)
            time.sleep(seconds)
            os.kill(lane, signal.SIGCONT)
            goes_on(answers)
    assert stack.stack.announced().starts("lane") == 1
    wait_until(lambda: in_flight(stack) == 0, 10, "nothing is under way")


def test_a_proxy_that_is_killed_leaves_nothing_under_way(stack: Fleet) -> None:
    with asking(stack, MODELS) as answers:
        for _ in range(2):
            goes_on(answers)
            before = stack.stack.announced()
            os.kill(before.pid_of("lane"), signal.SIGKILL)
            stack.stack.wait_for(started_again(before), 60)
        goes_on(answers)
    wait_until(lambda: in_flight(stack) == 0, 10, "nothing is under way")


def test_a_storm_of_cancellations_is_its_callers_own(stack: Fleet) -> None:
    """A Triton 24.10 may end of it; those who cancel nothing do not notice."""
    cancelling = MODELS[:2]
    stop = threading.Event()

    def storm(seed: int) -> int:
        draw, cancelled = random.Random(seed), 0
        with grpc.insecure_channel(stack.router_grpc, options=OPTIONS) as channel:
            infer: Any = channel.unary_unary(INFER)
            while not stop.is_set():
                calls = [infer.future(request(draw.choice(cancelling))) for _ in range(8)]
                time.sleep(draw.random() * 0.004)
                cancelled += sum(call.cancel() for call in calls)
        return cancelled

    with asking(stack, MODELS[:4]) as answers, ThreadPoolExecutor(2) as pool:
        goes_on(answers)
        storms = [pool.submit(storm, seed) for seed in range(2)]
        time.sleep(5.0)
        stop.set()
        assert sum(one.result() for one in storms) > 100
        goes_on(answers)
    wait_until(lambda: in_flight(stack) == 0, 10, "nothing is under way")
    assert stack.stack.announced().starts("router") == 1
