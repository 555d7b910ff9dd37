"""Metrics as Prometheus reads them."""

import asyncio
import socket
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from services.common import metrics
from services.common.ports import PortTaken, listen

LOOPBACK = "127.0.0.1"


def scrape(port: int) -> dict[str, float]:
    """Samples of shoal_rpc_seconds for the method of these tests, by name and bucket."""
    with urllib.request.urlopen(f"http://{LOOPBACK}:{port}/metrics", timeout=5) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        families = list(text_string_to_metric_families(answer.read().decode()))
    return {
        f"{sample.name} {sample.labels.get('le', '')}".strip(): sample.value
        for family in families
        for sample in family.samples
        if sample.labels.get("method") == "/test.Metrics/Call"
    }


def test_calls_are_counted_by_method_and_code_and_timed() -> None:
    server = metrics.serve(LOOPBACK, 0)
    try:
        before = scrape(server.port).get("shoal_rpc_seconds_count", 0.0)
        calls = metrics.RPC_SECONDS.labels("/test.Metrics/Call", "OK")
        calls.observe(0.003)
        calls.observe(42)
        samples = scrape(server.port)
    finally:
        server.close()
    assert samples["shoal_rpc_seconds_count"] == before + 2
    assert samples["shoal_rpc_seconds_bucket 0.005"] < samples["shoal_rpc_seconds_bucket 60.0"]


async def test_tasks_are_counted_until_they_end() -> None:
    def tasks() -> float:
        found = metrics.PythonObjects(loop).collect()
        return next(one for one in found if one.name == "shoal_asyncio_tasks").samples[0].value

    loop = asyncio.get_running_loop()
    before = tasks()
    waiting = [loop.create_task(asyncio.Event().wait()) for _ in range(3)]
    assert await asyncio.to_thread(tasks) == before + 3
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert tasks() == before


def test_a_closed_server_frees_its_port() -> None:
    first = metrics.serve(LOOPBACK, 0)
    first.close()
    second = metrics.serve(LOOPBACK, first.port)
    assert second.port == first.port
    second.close()


def test_a_taken_port_is_refused_in_words() -> None:
    server = metrics.serve(LOOPBACK, 0)
    try:
        with pytest.raises(PortTaken, match=f"{LOOPBACK}:{server.port} is taken by another"):
            metrics.serve(LOOPBACK, server.port)
    finally:
        server.close()


def test_a_port_is_shared_with_nobody_not_even_with_those_who_would() -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind((LOOPBACK, 0))
        other.listen()
        with pytest.raises(PortTaken):
            listen(LOOPBACK, other.getsockname()[1])


def test_a_host_that_is_not_ours_is_another_error() -> None:
    with pytest.raises(OSError, match="assign requested address"):
        listen("192.0.2.1", 0)  # reserved for documentation
