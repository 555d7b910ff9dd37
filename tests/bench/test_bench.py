"""The bench's own arithmetic and load generator; no figure is asserted."""

import io
import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from math import log
from statistics import fmean
from typing import Any

import grpc
import pytest
from rich.console import Console
from tritonclient.grpc import service_pb2

from bench import load, report, workloads
from bench.churn import Churn
from bench.cpu import Clock
from bench.generator import generate
from bench.http2 import DATA, END_STREAM, Broken, Connection, frame, grpc_headers
from bench.rounds import Sample, interval, order, percentile, summaries
from bench.subjects import Behind, Subjects, Variant
from services.embedded.ports import LOOPBACK

PATH = workloads.INFER


def sample(number: int, variant: str, rate: float, proxy_cpu: float | None = None) -> Sample:
    return Sample(number, "many", variant, rate, 1e6 / rate, 3e6 / rate, proxy_cpu, 70.0, 5.0)


SAMPLES = [
    sample(1, "direct", 1000),
    sample(1, "relay", 300, 100),
    sample(1, "router", 240, 120),
    sample(1, "router", 260, 140),
    sample(1, "relay", 300, 100),
    sample(1, "direct", 1000),
    sample(2, "direct", 500),
    sample(2, "relay", 200, 200),
    sample(2, "router", 250, 220),
    sample(2, "router", 250, 220),
    sample(2, "relay", 200, 200),
    sample(2, "direct", 500),
]


def test_a_round_goes_there_and_back() -> None:
    assert order(["a", "b", "c"]) == ["a", "b", "c", "c", "b", "a"]
    assert order(["a", "b"]) == ["a", "b", "b", "a"]


@pytest.mark.parametrize(
    ("share", "expected"), [(0.0, 1), (0.5, 5), (0.51, 6), (0.99, 10), (1.0, 10)]
)
def test_percentiles_are_values_that_were_seen(share: float, expected: int) -> None:
    assert percentile(range(1, 11), share) == expected
    assert percentile([7.0], share) == 7.0


def test_ratios_are_to_the_same_round() -> None:
    direct, relay, router = summaries(SAMPLES)
    assert (direct.of_direct, direct.over_relay, direct.proxy_cpu) == (1.0, None, None)
    assert relay.over_relay == 1.0
    assert router.of_direct == pytest.approx((0.25 + 0.5) / 2)
    assert router.spread == (0.25, 0.5)
    assert router.over_relay == pytest.approx((1.3 + 1.1) / 2)
    assert router.rate == 250


@pytest.mark.parametrize(
    ("rounds", "expected"),
    [(1, (1, 1)), (2, (1, 2)), (5, (1, 5)), (6, (1, 6)), (8, (1, 8)), (9, (2, 8)), (12, (3, 10))],
)
def test_the_interval_of_a_median(rounds: int, expected: tuple[int, int]) -> None:
    """As in the usual tables of the sign test."""
    values = [float(value) for value in range(1, rounds + 1)]
    assert interval(values[::-1]) == expected


def test_an_interval_has_the_median_as_often_as_it_says() -> None:
    draws = random.Random(7)
    tries = [interval([draws.expovariate(1.0) for _ in range(12)]) for _ in range(2000)]
    share = fmean(low <= log(2.0) <= high for low, high in tries)
    assert 0.95 <= share < 0.98


def test_without_a_base_there_is_no_ratio() -> None:
    (only,) = summaries([sample(1, "router", 100, 50)])
    assert (only.of_direct, only.spread, only.times_direct, only.over_relay) == (None,) * 4
    assert only.certain is None
    assert report.cells(only)["of direct"] == ""


def test_the_table_fits_a_terminal_and_the_section_has_every_row() -> None:
    found = summaries(SAMPLES)
    console = Console(width=80, file=io.StringIO(), record=True)
    for table in report.tables([one._replace(variant="router, 100 %") for one in found]):
        console.print(table)
    text = console.export_text()
    assert "…" not in text
    assert text.count("router, 100 %") == 3
    section = report.section("2026-01-01: a title", {"machine": "2 cores"}, found)
    assert section.startswith("## 2026-01-01: a title\n\n- machine: 2 cores\n")
    rows = [line for line in section.splitlines() if line.startswith("| ")]
    assert {line.count("|") for line in rows} == {len(report.COLUMNS) + 1}
    assert "0.25 to 0.50" in section


def test_requests_are_answered_with_what_was_sent() -> None:
    asked = service_pb2.ModelInferRequest.FromString(workloads.request(16))
    assert len(asked.raw_input_contents[0]) == 64
    answer = service_pb2.ModelInferResponse(raw_output_contents=asked.raw_input_contents)
    answer.outputs.add(name="OUTPUT", shape=[1, 16])
    assert workloads.is_right(16, answer.SerializeToString())
    answer.raw_output_contents[0] = bytes(64)
    assert not workloads.is_right(16, answer.SerializeToString())


def test_a_stream_sends_all_its_requests_each_with_an_id() -> None:
    (stream,) = [one for one in workloads.WORKLOADS if one.at_once > 1]
    assert stream.path == workloads.STREAM_INFER
    assert stream.answers == stream.at_once * stream.replies
    message = workloads.request(stream.floats, stream.model)
    body, ids = stream.body(message), []
    while body:
        size = int.from_bytes(body[1:5], "big")
        asked = service_pb2.ModelInferRequest.FromString(body[5 : 5 + size])
        assert (asked.model_name, len(asked.raw_input_contents)) == (stream.model, 1)
        ids.append(asked.id)
        body = body[5 + size :]
    assert len(set(ids)) == stream.at_once


@pytest.mark.parametrize(
    "workload",
    [one for one in workloads.WORKLOADS if one.http],
    ids=lambda workload: workload.name,
)
def test_requests_over_http_are_answered_with_what_was_sent(workload: workloads.Workload) -> None:
    call = load.http_call("h:1", workload)
    assert call.http1
    assert call.url == f"http://h:1/v2/models/{workload.model}/infer"
    headers = dict(header.split(": ") for header in call.headers)
    size = int(headers.get("inference-header-content-length", len(call.body)))
    (asked,) = json.loads(call.body[:size])["inputs"]
    assert asked["shape"] == [1, workload.floats]
    output = {"name": "OUTPUT", "shape": asked["shape"]}
    if workload.form == workloads.AS_JSON:
        right = json.dumps({"outputs": [{**output, "data": asked["data"]}]}).encode()
        wrong = right.replace(b"1.0", b"1.5")
    else:
        assert asked["parameters"] == {"binary_data_size": 4 * workload.floats}
        assert len(call.body) == size + 4 * workload.floats
        right = json.dumps({"outputs": [output]}).encode() + call.body[size:]
        wrong = right[:-1]
    assert workloads.is_right_over_http(workload, right)
    assert not workloads.is_right_over_http(workload, wrong)


def test_a_variant_is_asked_where_it_listens_and_by_turns_with_those_alike() -> None:
    behind = Behind(Clock(), lambda: 0, Churn("", "", ""))
    variants = (
        Variant("relay", "a:1", "", None, behind),
        Variant("router", "a:2", "a:3", None, behind),
        Variant("router", "a:4", "a:5", None, behind),
    )
    subjects = Subjects({workloads.MODEL: variants}, "2.51.0")
    by_form = {one.http: one for one in workloads.WORKLOADS if one.model == workloads.MODEL}
    over_grpc, over_http = by_form[False], by_form[True]
    assert list(subjects.of(over_grpc, 0)) == ["relay", "router"]
    assert list(subjects.of(over_http, 0)) == ["router"]
    asked = [subjects.of(over_http, number)["router"].at(over_http) for number in range(3)]
    assert asked == ["a:3", "a:5", "a:3"]
    assert subjects.churned() == 0.0


def test_frames_are_those_of_http2() -> None:
    assert frame(DATA, END_STREAM, 5, b"x" * 70_000)[:9] == bytes.fromhex("011170000100000005")
    block = grpc_headers("h:1", "/" + "p" * 200)
    assert block.startswith(b"\x83\x86\x04\x7f\x4a/ppp")  # 127 + 74 = 201 characters


class Echo(grpc.GenericRpcHandler):
    """Answers with the request; refuses `no`."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        assert handler_call_details.method == PATH

        def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
            if request == b"no":
                context.abort(grpc.StatusCode.NOT_FOUND, "no")
            return request

        return grpc.unary_unary_rpc_method_handler(answer)


@pytest.fixture
def address() -> Iterator[str]:
    options = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)]
    server = grpc.server(ThreadPoolExecutor(4), handlers=[Echo()], options=options)
    port = server.add_insecure_port(f"{LOOPBACK}:0")
    server.start()
    yield f"{LOOPBACK}:{port}"
    server.stop(0).wait()


@pytest.mark.parametrize(
    ("connections", "streams", "requests", "size"),
    [(1, 1, 5, 10), (2, 4, 50, 100), (3, 4, 2, 0), (2, 2, 12, 700_000)],
)
def test_the_generator_speaks_to_a_real_server(
    address: str, connections: int, streams: int, requests: int, size: int
) -> None:
    found = generate(address, PATH, connections, streams, requests, workloads.framed(b"x" * size))
    assert found.failed == 0
    assert len(found.latencies) == requests
    assert 0 < max(found.latencies) <= found.seconds


def test_errors_count_as_failed(address: str) -> None:
    assert generate(address, PATH, 1, 2, 6, workloads.framed(b"no")).failed == 6


def test_a_closed_connection_is_noticed(address: str) -> None:
    connection = Connection(address, PATH, workloads.framed(b"x"))
    connection.socket.setblocking(True)
    connection.socket.sendall(b"no HTTP/2 at all, of no sense to a server")

    def read_on() -> None:
        while True:
            list(connection.answers())

    with pytest.raises(Broken):
        read_on()
    connection.close()
