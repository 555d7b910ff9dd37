"""Two Router processes on one port, the whole suite behind them."""

import os
import signal
import urllib.request
from collections.abc import Iterator

import grpc
import psutil
import pytest
import tritonclient.grpc as triton
from prometheus_client.parser import text_string_to_metric_families

from services.embedded.background import BackgroundStack
from shoal.router.v1 import router_service_pb2 as wire
from shoal.router.v1.router_service_pb2_grpc import RouterServiceStub
from tests.support.stack import EXAMPLES, Fleet, example, fleet, infer
from tests.support.waiting import wait_until

WORKERS = 2
CONNECTIONS = 12  # the chance that all of them reach one of two workers is 1 in 2,048


@pytest.fixture(scope="module")
def stack() -> Iterator[Fleet]:
    with BackgroundStack(
        f"--repository={EXAMPLES}",
        "--max-models=3",
        "--trace-ratio=0",
        f"--router-workers={WORKERS}",
        "--lane=off",  # which has fewer connections to them than there are clients
    ) as running:
        yield fleet(running)


def workers(stack: Fleet) -> list[psutil.Process]:
    parent = psutil.Process(stack.stack.announced().pid_of("router"))
    return [child for child in parent.children() if child.status() != psutil.STATUS_ZOMBIE]


def connections(stack: Fleet, count: int) -> Iterator[triton.InferenceServerClient]:
    for number in range(count):
        # Channels to one address share a connection, unless something tells them apart.
        yield triton.InferenceServerClient(
            stack.router_grpc, channel_args=[("shoal.connection", number)]
        )


def requests(stack: Fleet, model: str) -> float:
    with urllib.request.urlopen(f"http://{stack.router_http}/metrics") as reply:
        text = reply.read().decode()
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "shoal_router_requests_total" and sample.labels["model"] == model
    )


def test_whichever_worker_is_asked_answers_for_all(stack: Fleet) -> None:
    one = example("multiplier")
    used: set[int] = set()
    port = int(stack.router_grpc.rpartition(":")[2])
    for client in connections(stack, CONNECTIONS):
        assert infer(client, one) == []
        used |= {worker.pid for worker in workers(stack) if answered(worker, port)}
        client.close()
    assert len(used) == WORKERS, "every worker was sent something"
    assert {requests(stack, one.model) for _ in range(10)} == {CONNECTIONS}
    for number in range(6):
        with grpc.insecure_channel(stack.router_grpc, [("shoal.connection", number)]) as channel:
            reply = RouterServiceStub(channel).GetStatistics(wire.GetStatisticsRequest())
            assert [row.requests for row in reply.models if row.model == one.model] == [CONNECTIONS]


def answered(worker: psutil.Process, port: int) -> bool:
    """Whether a client is connected to it now."""
    return any(
        connection.status == psutil.CONN_ESTABLISHED and connection.laddr.port == port
        for connection in worker.net_connections("tcp")
    )


def test_a_worker_that_dies_is_started_again(stack: Fleet) -> None:
    one = example("multiplier")
    before = workers(stack)
    os.kill(before[0].pid, signal.SIGKILL)
    psutil.wait_procs(before[:1], 10)
    for client in connections(stack, 4):
        assert infer(client, one) == []
        client.close()
    wait_until(lambda: len(workers(stack)) == WORKERS, 20, "both workers run again")
    assert before[1].pid in {worker.pid for worker in workers(stack)}


def test_without_their_parent_they_end() -> None:
    with BackgroundStack(
        f"--repository={EXAMPLES}", "--trace-ratio=0", f"--router-workers={WORKERS}"
    ) as running:
        orphans = workers(fleet(running))
        assert len(orphans) == WORKERS
        os.kill(running.announced().pid_of("router"), signal.SIGKILL)
        wait_until(lambda: not any(map(runs, orphans)), 15, "they end")


def runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
