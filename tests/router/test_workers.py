"""Several Router processes on one port: their ports, and their numbers added up."""

import socket
import tempfile
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from services.common.ports import PortTaken, listen, reserve
from services.router.process.peers import added_metrics, added_statistics
from services.router.process.workers import socket_folder, socket_of
from shoal.router.v1 import router_service_pb2 as router

ONE = """\
# HELP shoal_router_requests_total Requests.
# TYPE shoal_router_requests_total counter
shoal_router_requests_total{model="a",version="1"} 3.0
# HELP shoal_rpc_seconds Time.
# TYPE shoal_rpc_seconds histogram
shoal_rpc_seconds_bucket{le="0.1"} 2.0
shoal_rpc_seconds_bucket{le="+Inf"} 3.0
shoal_rpc_seconds_count 3.0
shoal_rpc_seconds_sum 0.5
# HELP process_start_time_seconds Start.
# TYPE process_start_time_seconds gauge
process_start_time_seconds 100.0
# HELP shoal_router_workers Processes.
# TYPE shoal_router_workers gauge
shoal_router_workers 2.0
"""
OTHER = ONE.replace('model="a"', 'model="b"').replace("100.0", "90.0")


def test_the_samples_of_a_series_are_added_up() -> None:
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(added_metrics([ONE, OTHER, ONE]).decode())
        for sample in family.samples
    }
    assert found == {
        ("shoal_router_requests_total", "a", "1"): 6.0,
        ("shoal_router_requests_total", "b", "1"): 3.0,
        ("shoal_rpc_seconds_bucket", "0.1"): 6.0,
        ("shoal_rpc_seconds_bucket", "+Inf"): 9.0,
        ("shoal_rpc_seconds_count",): 9.0,
        ("shoal_rpc_seconds_sum",): 1.5,
        ("process_start_time_seconds",): 90.0,
        ("shoal_router_workers",): 2.0,
    }


def statistics(uptime: int, **requests: int) -> router.GetStatisticsResponse:
    share = router.GetStatisticsResponse(router=f"r{uptime}", controller_connected=True)
    share.uptime.FromSeconds(uptime)
    for model, count in requests.items():
        row = share.models.add(model=model, version=1, requests=count, errors=1, in_flight=2)
        row.total_duration.FromMilliseconds(100 * count)
    return share


def test_the_counts_of_all_workers_are_added_up() -> None:
    total = added_statistics([statistics(5, b=2, a=1), statistics(9, b=3, c=4)])
    assert [(row.model, row.requests, row.errors, row.in_flight) for row in total.models] == [
        ("a", 1, 1, 2),
        ("b", 5, 2, 4),
        ("c", 4, 1, 2),
    ]
    assert total.models[1].total_duration.ToMilliseconds() == 500
    assert (total.router, total.uptime.ToSeconds(), total.controller_connected) == ("r5", 9, True)
    lost = statistics(1)
    lost.controller_connected = False
    assert not added_statistics([statistics(5), lost]).controller_connected


def test_a_reserved_port_is_for_those_that_share() -> None:
    with reserve("127.0.0.1", 0) as reserved:
        port = reserved.getsockname()[1]
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
        with (
            listen("127.0.0.1", port, shared=True) as one,
            listen("127.0.0.1", port, shared=True) as other,
        ):
            assert one.getsockname() == other.getsockname()
            with pytest.raises(PortTaken):
                listen("127.0.0.1", port)


def test_a_port_that_others_share_already_is_taken() -> None:
    with listen("127.0.0.1", 0, shared=True) as stranger, pytest.raises(PortTaken):
        reserve("127.0.0.1", stranger.getsockname()[1])


def test_a_long_tmpdir_has_no_room_for_sockets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    for given in (Path("/tmp"), long):
        monkeypatch.setattr(tempfile, "tempdir", str(given))
        with socket_folder(8) as folder, socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(socket_of(folder, 8)))
            assert folder.parent == Path("/tmp")
        assert not folder.exists()
    assert list(long.iterdir()) == []
