"""One cold request's trace, as received over OTLP: every hop in one tree."""

import json
import os
import urllib.error
import urllib.request
from typing import Any

import pytest

from tests.support.stack import Fleet, example, infer
from tests.support.waiting import wait_until

pytestmark = pytest.mark.triton

Span = dict[str, Any]

TRITONS = {"InferRequest", "multiplier", "compute"}
ARRIVE_S = 15.0
ASKED = 20  # Triton overlooks up to 43 % of them: see test_tritons_spans_are_below_the_routers


def collected(stack: Fleet, path: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://{stack.otlp_http}{path}", timeout=5) as answer:
        return dict(json.load(answer))


def spans_of(stack: Fleet, trace: str) -> list[Span]:
    try:
        return list(collected(stack, f"/api/traces/{trace}")["spans"])
    except urllib.error.HTTPError as error:
        if error.code != 404:
            raise
        return []


def names_of(stack: Fleet, trace: str) -> set[str]:
    return {span["name"] for span in spans_of(stack, trace)}


def ask(stack: Fleet, model: str, sampled: bool = True) -> tuple[str, str]:
    """Infer with a traceparent; its trace id and the id of the span it names as parent."""
    trace, parent = os.urandom(16).hex(), os.urandom(8).hex()
    headers = {"traceparent": f"00-{trace}-{parent}-{sampled:02x}"}
    assert infer(stack.client, example(model), headers=headers) == []
    return trace, parent


def arrived(stack: Fleet, trace: str, complete: set[str]) -> dict[str, Span]:
    """The spans of the trace by name, once all of `complete` are there."""
    try:
        wait_until(lambda: names_of(stack, trace) >= complete, ARRIVE_S, "every span")
    except AssertionError as error:
        there = names_of(stack, trace)
        raise AssertionError(
            f"missing: {complete - there}, received: {there}, "
            f"the collector: {collected(stack, '/healthz')}"
        ) from error
    spans = spans_of(stack, trace)
    assert {span["trace_id"] for span in spans} == {trace}
    return {span["name"]: span for span in spans}


def traced(stack: Fleet, model: str, complete: set[str]) -> dict[str, Span]:
    """Infer with a sampled traceparent; the spans by name once all of `complete` are there."""
    trace, parent = ask(stack, model)
    spans = arrived(stack, trace, complete)
    assert spans[ROOT]["parent_span_id"] == parent
    return spans


def traced_by_triton(stack: Fleet) -> dict[str, Span]:
    """The spans by name of a request to multiplier that Triton has traced, too.

    Of each that is asked all of Shoal's own spans arrive, and all of Triton's or none.
    """
    asked = [ask(stack, "multiplier")[0] for _ in range(ASKED)]
    for trace in asked:
        arrived(stack, trace, {ROOT, "forward"})

    def of_triton() -> list[set[str]]:
        return [names_of(stack, trace) & TRITONS for trace in asked]

    wait_until(
        lambda: TRITONS in of_triton() and all(of in (TRITONS, set()) for of in of_triton()),
        ARRIVE_S,
        f"all of Triton's spans or none of each of {ASKED} requests, and of one all",
    )
    whole = asked[of_triton().index(TRITONS)]
    return arrived(stack, whole, {ROOT, "forward"} | TRITONS)


def parent_of(spans: dict[str, Span], name: str) -> str:
    wanted = spans[name]["parent_span_id"]
    return next(other for other, span in spans.items() if span["span_id"] == wanted)


ROOT = "inference.GRPCInferenceService/ModelInfer"
RESIDENT = "shoal.controller.v1.ControllerService/MakeResident"
COLD = {ROOT, "make_resident", RESIDENT, "queue", "reserve", "evict", "load", "forward"}


def test_a_cold_requests_spans_are_one_tree(stack: Fleet) -> None:
    for other in ("text_stats", "multiplier", "squeezenet_onnx", "densenet_onnx"):
        infer(stack.client, example(other))
    spans = traced(stack, "zfnet512_onnx", COLD)
    expected = {
        "make_resident": ROOT,
        RESIDENT: "make_resident",
        "queue": RESIDENT,
        "reserve": RESIDENT,
        "evict": RESIDENT,
        "load": RESIDENT,
        "forward": ROOT,
    }
    assert {name: parent_of(spans, name) for name in expected} == expected
    assert spans[ROOT]["attributes"]["shoal.cold"] is True
    assert spans["evict"]["attributes"]["shoal.evicted"]
    assert spans["load"]["end_unix_nano"] <= spans["forward"]["start_unix_nano"] + 50_000_000
    for name, span in spans.items():
        assert span["start_unix_nano"] <= span["end_unix_nano"], name


def test_tritons_spans_are_below_the_routers(stack: Fleet) -> None:
    """Of a request that Triton traces: it overlooks some traceparents (seen in 2.51).

    Its GrpcServerCarrier::Get (src/grpc/infer_handler.h) returns a metadata value as a C string,
    and nothing puts a NUL behind it; OpenTelemetry then takes a traceparent only if it has exactly
    55 characters. So it depends on one stale byte in Triton's memory: if that is not 0, the
    request has no span of Triton's at all. In 551 direct requests this byte was 0 in each of the
    498 that were traced and another one in each of the 53 that were not. What metadata came before
    changes how often that happens: 4 to 43 % were seen. Of 1,000 requests through a stack all of
    Shoal's own spans arrived, and all three of Triton's for 860 of them, none for the others.
    """
    spans = traced_by_triton(stack)
    expected = {
        "forward": ROOT,
        "InferRequest": "forward",
        "multiplier": "InferRequest",
        "compute": "multiplier",
    }
    assert {name: parent_of(spans, name) for name in expected} == expected


def test_a_warm_request_asks_nobody_else(stack: Fleet) -> None:
    infer(stack.client, example("multiplier"))
    spans = traced(stack, "multiplier", {ROOT, "forward"})
    assert not {"make_resident", "load", "queue"} & spans.keys()
    assert spans["forward"]["attributes"]["shoal.server"] == "triton-0"


def test_an_unsampled_traceparent_is_not_passed_on(stack: Fleet) -> None:
    unsampled = [ask(stack, "multiplier", sampled=False)[0] for _ in range(10)]
    traced_by_triton(stack)  # ones that came later have arrived, from the Router and from Triton
    assert {trace: spans_of(stack, trace) for trace in unsampled} == {
        trace: [] for trace in unsampled
    }


def test_logs_carry_the_trace(stack: Fleet) -> None:
    trace = os.urandom(16).hex()
    headers = {"traceparent": f"00-{trace}-{os.urandom(8).hex()}-01"}
    infer(stack.client, example("alexnet_onnx"), headers=headers)
    infer(stack.client, example("alexnet_onnx"), headers=headers)
    log = stack.stack.announced().data / "logs" / "controller.log"
    lines = [json.loads(line) for line in log.read_text().splitlines() if trace in line]
    assert any(line["trace_id"] == trace and line["span_id"] for line in lines)
