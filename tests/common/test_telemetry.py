"""Tracing as a process sets it up: real SDK, one process for each set of variables."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace

from services.common import telemetry

ROOT = Path(__file__).resolve().parents[2]
TRACEPARENT = f"00-{'ab' * 16}-{'cd' * 8}-01"
UNSAMPLED = f"00-{'ab' * 16}-{'cd' * 8}-00"

PRELUDE = """
import json, sys
from opentelemetry import trace
from services.common import telemetry
tracer = trace.get_tracer("test")
telemetry.configure("router")
def incoming(traceparent):
    return telemetry.parent_context((("user-agent", "x"), ("traceparent", traceparent)))
def say(**facts):
    print(json.dumps(facts), flush=True)
"""


def process(
    code: str, prelude: str = PRELUDE, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Runs `code` after the prelude, in a process whose only OTEL_* variables are `variables`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", prelude + code],
        cwd=ROOT,
        env={**inherited, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def facts(code: str, prelude: str = PRELUDE, **variables: str) -> dict[str, object]:
    """What `code` said."""
    ended = process(code, prelude, **variables)
    assert ended.returncode == 0, ended.stderr
    said: dict[str, object] = json.loads(ended.stdout.splitlines()[0])
    return said


def exported(code: str, **variables: str) -> list[dict[str, object]]:
    """The spans that the SDK exported, as its console exporter writes them."""
    ended = process(
        code + "\ntelemetry.shutdown()", **{"OTEL_TRACES_EXPORTER": "console", **variables}
    )
    assert ended.returncode == 0, ended.stderr
    decoder, text, spans = json.JSONDecoder(), ended.stdout, []
    while text := text.lstrip():
        span, end = decoder.raw_decode(text)
        spans.append(span)
        text = text[end:]
    return spans


ONE_SPAN = """
assert telemetry.sampled(None)
tracer.start_span("infer").end()
"""


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"},
        {"OTEL_SDK_DISABLED": "TRUE", "OTEL_TRACES_EXPORTER": "otlp"},
    ],
)
def test_without_a_destination_the_sdk_is_not_even_imported(variables: dict[str, str]) -> None:
    said = facts(
        """
span = tracer.start_span("infer", context=incoming("00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"))
say(
    enabled=telemetry.enabled(),
    sampled=telemetry.sampled(None),
    propagated=telemetry.propagation(span),
    imported=[name for name in sys.modules if name.startswith("opentelemetry.sdk")],
)
telemetry.shutdown()
""",
        **variables,
    )
    assert said == {"enabled": False, "sampled": False, "propagated": [], "imported": []}


def test_an_endpoint_alone_turns_tracing_on() -> None:
    said = facts(
        "say(enabled=telemetry.enabled(), sampled=telemetry.sampled(None))",
        OTEL_EXPORTER_OTLP_TRACES_ENDPOINT="http://127.0.0.1:1/v1/traces",
        OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf",
    )
    assert said == {"enabled": True, "sampled": True}


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({}, "shoal-router"),
        ({"OTEL_SERVICE_NAME": "edge"}, "edge"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=other,zone=a"}, "other"),
    ],
)
def test_the_service_is_named_after_its_part_unless_told(
    variables: dict[str, str], name: str
) -> None:
    (span,) = exported(ONE_SPAN, **variables)
    attributes = span["resource"]["attributes"]  # type: ignore[index]
    assert attributes["service.name"] == name
    assert attributes.get("zone") == ("a" if "OTEL_RESOURCE_ATTRIBUTES" in variables else None)


BAD = (
    # First, for the SDK reads it when it is imported.
    ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "-3"),
    ("OTEL_SDK_DISABLED", "maybe"),
    ("OTEL_TRACES_EXPORTER", "jaeger"),
    ("OTEL_TRACES_EXPORTER", "otlp,none"),
    ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
    ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "udp"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "localhost:4317"),
    ("OTEL_TRACES_SAMPLER", "sometimes"),
    ("OTEL_TRACES_SAMPLER_ARG", "1.5"),
    ("OTEL_TRACES_SAMPLER_ARG", "a tenth"),
    ("OTEL_BSP_SCHEDULE_DELAY", "soon"),
    ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
    ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4096"),
    ("OTEL_EXPORTER_OTLP_TIMEOUT", "short"),
    ("OTEL_EXPORTER_OTLP_COMPRESSION", "brotli"),
)


@pytest.fixture(scope="module")
def complaints() -> dict[str, str]:
    """Of a process that is set up with each of the bad values in turn, by `name=value`."""
    said = facts(
        f"""
import os
from services.common.variables import BadVariable
found = {{}}
for name, value in {BAD!r}:
    before = dict(os.environ)
    sampler = {{"OTEL_TRACES_SAMPLER": "traceidratio"}} if name.endswith("_ARG") else {{}}
    os.environ.update(sampler | {{name: value}})
    try:
        telemetry.configure("router")
    except BadVariable as error:
        found[name + "=" + value] = str(error)
    os.environ.clear()
    os.environ.update(before)
say(**found)
""",
        prelude=PRELUDE.replace('telemetry.configure("router")', ""),
        OTEL_TRACES_EXPORTER="otlp",
    )
    return {name: str(text) for name, text in said.items()}


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_value_that_cannot_be_used_is_named(
    complaints: dict[str, str], name: str, value: str
) -> None:
    complaint = complaints[f"{name}={value}"]
    assert name in complaint or "OTEL_EXPORTER_OTLP_*" in complaint
    assert value.removeprefix("otlp,") in complaint


def test_a_process_ends_with_it() -> None:
    ended = process("", OTEL_TRACES_EXPORTER="jaeger")
    assert ended.returncode == 1
    assert "BadVariable" in ended.stderr.splitlines()[-1]


@pytest.mark.parametrize("sampler", ["traceidratio", "parentbased_traceidratio"])
def test_what_is_said_to_be_sampled_is_recorded_and_nothing_else(sampler: str) -> None:
    said = facts(
        """
answers = []
for _ in range(1000):
    said = telemetry.sampled(None)
    span = tracer.start_span("infer")
    assert span.is_recording() == said, "the sampler was asked twice and changed its mind"
    assert len(telemetry.propagation(span)) == said
    answers.append(said)
say(kept=sum(answers))
""",
        OTEL_TRACES_EXPORTER="console",
        OTEL_BSP_SCHEDULE_DELAY="60000",
        OTEL_TRACES_SAMPLER=sampler,
        OTEL_TRACES_SAMPLER_ARG="0.3",
    )
    assert 220 < int(str(said["kept"])) < 380  # five standard deviations


@pytest.mark.parametrize(
    ("sampler", "of_sampled", "of_unsampled", "of_none"),
    [
        ("", True, False, True),
        ("parentbased_always_on", True, False, True),
        ("parentbased_always_off", True, False, False),
        ("always_on", True, True, True),
        ("always_off", False, False, False),
    ],
)
def test_the_caller_decides_where_the_sampler_lets_it(
    sampler: str, of_sampled: bool, of_unsampled: bool, of_none: bool
) -> None:
    said = facts(
        f"""
def ask(parent):
    said = telemetry.sampled(parent)
    span = tracer.start_span("infer", context=parent)
    assert span.is_recording() == said
    return said
say(
    of_sampled=ask(incoming("{TRACEPARENT}")),
    of_unsampled=ask(incoming("{UNSAMPLED}")),
    of_none=ask(None),
)
""",
        OTEL_TRACES_EXPORTER="console",
        OTEL_BSP_SCHEDULE_DELAY="60000",
        OTEL_TRACES_SAMPLER=sampler,
    )
    assert said == {"of_sampled": of_sampled, "of_unsampled": of_unsampled, "of_none": of_none}


def test_after_a_refusal_nothing_further_down_starts_a_trace_of_its_own() -> None:
    spans = exported(f"""
assert not telemetry.sampled(incoming("{UNSAMPLED}"))
with trace.use_span(trace.INVALID_SPAN), tracer.start_as_current_span("inner") as inner:
    assert not inner.is_recording()
assert telemetry.sampled(None)
with tracer.start_as_current_span("next request"), tracer.start_as_current_span("inner"):
    pass
tracer.start_span("a later root").end()
""")
    assert [span["name"] for span in spans] == ["inner", "next request", "a later root"]
    traces = [span["context"]["trace_id"] for span in spans]  # type: ignore[index]
    assert traces[0] == traces[1] != traces[2]


def test_the_span_is_a_child_of_the_caller_and_says_so_to_the_next() -> None:
    said = facts(
        f"""
parent = incoming("{TRACEPARENT}")
assert telemetry.sampled(parent)
span = tracer.start_span("infer", context=parent)
metadata = telemetry.propagation(span)
again = trace.get_current_span(telemetry.parent_context(metadata)).get_span_context()
assert again.span_id == span.get_span_context().span_id
assert again.trace_flags.sampled
span.end()
say(
    trace_id=telemetry.trace_id(span),
    keys=[key for key, _ in metadata],
    ended=telemetry.propagation(span),
)
""",
        OTEL_TRACES_EXPORTER="console",
        OTEL_BSP_SCHEDULE_DELAY="60000",
    )
    assert said == {"trace_id": "ab" * 16, "keys": ["traceparent"], "ended": []}


def test_the_tracestate_is_handed_on() -> None:
    said = facts(
        f"""
parent = telemetry.parent_context(
    (("tracestate", "a=1"), ("traceparent", "{TRACEPARENT}"), ("tracestate", "b=2"))
)
assert telemetry.sampled(parent)
say(metadata=telemetry.propagation(tracer.start_span("infer", context=parent))[1])
""",
        OTEL_TRACES_EXPORTER="console",
        OTEL_BSP_SCHEDULE_DELAY="60000",
    )
    assert said == {"metadata": ["tracestate", "a=1,b=2"]}


def test_a_second_set_up_changes_nothing_and_after_the_end_all_is_off() -> None:
    said = facts(
        """
telemetry.configure("controller")
telemetry.shutdown()
telemetry.shutdown()
say(enabled=telemetry.enabled(), sampled=telemetry.sampled(None))
""",
        OTEL_TRACES_EXPORTER="console",
    )
    assert said == {"enabled": False, "sampled": False}


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
@pytest.mark.parametrize("answers", ["refuses", "is silent"])
def test_the_end_is_bounded_and_quiet_when_the_receiver_is_gone(
    protocol: str, answers: str
) -> None:
    with socket.socket() as receiver:
        receiver.bind(("127.0.0.1", 0))
        if answers == "is silent":
            receiver.listen()
        began = time.monotonic()
        ended = process(
            ONE_SPAN + "import time; t = time.monotonic(); telemetry.shutdown()\n"
            "say(took=time.monotonic() - t)",
            OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{receiver.getsockname()[1]}",
            OTEL_EXPORTER_OTLP_PROTOCOL=protocol,
        )
        took = time.monotonic() - began
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["took"] < 4
    assert took < 9  # the process itself ends too, importing included
    assert ended.stderr.splitlines() == [
        "the last spans were not sent: their receiver does not answer"
    ]


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        (("user-agent", "grpc-python"), ("x-bin", b"\x00")),
        (("traceparent", ""),),
        (("traceparent", "nonsense"),),
        (("traceparent", b"\xff"),),
        (("traceparent", TRACEPARENT.upper()),),
        (("traceparent", f"00-{'0' * 32}-{'cd' * 8}-01"),),
        (("traceparent", f"00-{'ab' * 16}-{'0' * 16}-01"),),
        (("traceparent", TRACEPARENT.replace("00-", "ff-", 1)),),
        (("traceparent", TRACEPARENT + "-more"),),
        (("traceparent", TRACEPARENT + " " * 1000),),
    ],
)
def test_no_valid_traceparent_is_no_parent(metadata: tuple[tuple[str, str | bytes], ...]) -> None:
    assert telemetry.parent_context(metadata) is None


@given(st.lists(st.tuples(st.sampled_from(("traceparent", "tracestate", "a")), st.text())))
def test_whatever_a_client_sends_is_survived(metadata: list[tuple[str, str]]) -> None:
    telemetry.parent_context(metadata)


def test_a_parent_is_read_from_what_grpc_hands_out() -> None:
    parent = telemetry.parent_context(grpc.aio.Metadata(("a", "b"), ("traceparent", TRACEPARENT)))
    span = trace.get_current_span(parent)
    assert telemetry.trace_id(span) == "ab" * 16
    assert span.get_span_context().is_remote
    assert telemetry.propagation(span) == ()


def test_no_trace_has_no_id() -> None:
    assert telemetry.trace_id(trace.INVALID_SPAN) == ""
