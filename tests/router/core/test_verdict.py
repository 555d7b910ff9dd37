"""What a failed call means. The texts are Triton's own (release 24.10) and gRPC's."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.core.wire.verdict import (
    Speaker,
    Verdict,
    called_model,
    code_in_stream,
    is_decoupled,
    speaker,
    status_of_lost_stream,
    verdict,
    verdict_in_stream,
    verdict_of_lost_stream,
    was_begun,
)

UNKNOWN = "Request for unknown model: "


@pytest.mark.parametrize(
    ("code", "text", "meaning"),
    [
        pytest.param("NOT_FOUND", f"{UNKNOWN}'m' is not found", Verdict.MISS, id="never loaded"),
        pytest.param(
            "NOT_FOUND",
            f"{UNKNOWN}'m' has no available versions",
            Verdict.MISS,
            id="loading, unloading or failed; no version given",
        ),
        pytest.param(
            "UNAVAILABLE",
            f"{UNKNOWN}'m' version 1 is not at ready state",
            Verdict.MISS,
            id="loading, unloading or failed; known version given",
        ),
        pytest.param(
            "NOT_FOUND", f"{UNKNOWN}'m' version 7 is not found", Verdict.MISS, id="never seen"
        ),
        pytest.param("UNAVAILABLE", "Exceeds maximum queue size", Verdict.ANSWER, id="queue full"),
        pytest.param("UNAVAILABLE", "Request timeout expired", Verdict.ANSWER, id="queue timeout"),
        pytest.param(
            "UNIMPLEMENTED",
            "ModelInfer RPC doesn't support models with decoupled transaction policy",
            Verdict.ANSWER,
            id="decoupled",
        ),
        pytest.param(
            "NOT_FOUND",
            f"{UNKNOWN}'m' has no available versions",
            Verdict.MISS,
            id="shutting down",
        ),
        pytest.param(
            "UNAVAILABLE", "Server exiting", Verdict.UNREACHED, id="shutting down, its health"
        ),
        pytest.param(
            "UNAVAILABLE",
            "[request id: <id_unknown>] Server is stopping, scheduler for model has stopped "
            "accepting new inference requests",
            Verdict.UNREACHED,
            id="shutting down, its queues",
        ),
        pytest.param("UNAVAILABLE", "Server not ready", Verdict.UNREACHED, id="starting"),
    ],
)
def test_what_a_request_gets(code: str, text: str, meaning: Verdict) -> None:
    assert speaker(code, text) is Speaker.SERVER
    assert verdict(code, text, from_server=True) is meaning


REFUSED = (
    "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:8001: "
    "Failed to connect to remote host: connect: Connection refused (111)"
)
# As gRPC 1.85 says it; before that without the words around.
CLOSED = "Stream removed (Socket closed)"
CUT_OFF = (
    "Stream removed (RST_STREAM (Received RST_STREAM with error code 7))",
    "RST_STREAM",
    "Received RST_STREAM with error code 7",
    "Received http2 header with status: 503",
)


@pytest.mark.parametrize(
    "text",
    [
        REFUSED,
        "failed to connect to all addresses; last error: UNAVAILABLE: ipv4:127.0.0.1:8001: "
        "recvmsg:Connection reset by peer",
        "connect: No route to host (113)",
        "DNS resolution failed for triton-0:8001: UNKNOWN: Could not contact DNS servers",
        "Stream removed (Transport closed (Delayed close due to in-progress write (Socket "
        "closed)))",
    ],
)
def test_a_server_that_never_got_the_request(text: str) -> None:
    assert speaker("UNAVAILABLE", text) is Speaker.CONNECTION
    assert verdict("UNAVAILABLE", text, from_server=False) is Verdict.UNREACHED


@pytest.mark.parametrize(
    "text",
    [
        CLOSED,
        "Stream removed (recvmsg:Connection reset by peer)",
        "Stream removed (sendmsg: Broken pipe (32))",
        "Stream removed (ping timeout)",
        "Stream removed (GOAWAY received; Error code: 0; Debug Text: )",
        "Stream removed (Socket closed (GOAWAY received; Error code: 0; Debug Text: bye))",
        *("Socket closed", "recvmsg:Connection reset by peer", "GOAWAY received"),
        *("keepalive watchdog timeout", "End of TCP stream", "Broken pipe", ""),
    ],
)
def test_a_server_that_broke_off(text: str) -> None:
    assert speaker("UNAVAILABLE", text) is Speaker.CONNECTION
    assert verdict("UNAVAILABLE", text, from_server=False) is Verdict.BROKEN


@pytest.mark.parametrize("text", CUT_OFF)
def test_a_call_that_was_cut_off_alone(text: str) -> None:
    assert speaker("UNAVAILABLE", text) is Speaker.GRPC
    assert verdict("UNAVAILABLE", text, from_server=False) is Verdict.BROKEN


@pytest.mark.parametrize("text", ["too many users", "the index is being built", "\N{FISH}"])
def test_a_model_that_is_unavailable_says_so_itself(text: str) -> None:
    assert speaker("UNAVAILABLE", text) is Speaker.SERVER


@pytest.mark.parametrize(
    "text",
    [
        *(REFUSED, CLOSED, *CUT_OFF, "", "too many users"),
        *("it is not at ready state", "the model that it asks: Server exiting"),
    ],
)
def test_what_a_server_answered_is_the_clients_whatever_it_says(text: str) -> None:
    assert verdict("UNAVAILABLE", text, from_server=True) is Verdict.ANSWER


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("INVALID_ARGUMENT", "[request id: <id_unknown>] unexpected shape for input 'IN'"),
        (
            "INTERNAL",
            "Failed to process the request(s) for model instance 'm_0_0', message: "
            "Exception: Stub process 'm_0_0' is not healthy.",
        ),
        ("UNAVAILABLE", "Stub process 'm_0_0' is not healthy, and exceeds maximum queue size"),
        ("NOT_FOUND", "the model's own: no such user"),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded"),
        ("CANCELLED", "request cancelled"),
        ("RESOURCE_EXHAUSTED", "out of memory"),
    ],
)
def test_a_models_own_error_is_the_clients(code: str, text: str) -> None:
    assert speaker(code, text) is Speaker.SERVER
    assert verdict(code, text, from_server=True) is Verdict.ANSWER


@pytest.mark.parametrize("code", ["OK", "INVALID_ARGUMENT", "INTERNAL", "ABORTED", "UNKNOWN"])
@pytest.mark.parametrize(
    "text", ["is not at ready state", "has no available versions", "connection refused"]
)
def test_only_two_codes_can_mean_not_resident(code: str, text: str) -> None:
    """A model may put any text into its error."""
    assert speaker(code, text) is Speaker.SERVER
    assert verdict(code, text, from_server=True) is Verdict.ANSWER


@pytest.mark.parametrize("change", [str.lower, str.upper, str.title])
def test_case_does_not_matter(change: Callable[[str], str]) -> None:
    unknown, refused = change(f"{UNKNOWN}'m' is not found"), change("Connection refused")
    assert verdict("NOT_FOUND", unknown, from_server=True) is Verdict.MISS
    assert speaker("UNAVAILABLE", change("Exceeds maximum queue size")) is Speaker.SERVER
    assert speaker("UNAVAILABLE", change(CLOSED)) is Speaker.CONNECTION
    assert verdict("UNAVAILABLE", refused, from_server=False) is Verdict.UNREACHED


@pytest.mark.parametrize(
    "text",
    [
        "Stub process 'm_0_0' is not healthy.",
        "in ensemble 'outer', in ensemble 'inner', Stub process 'm_group_0_0' is not healthy.",
    ],
)
def test_a_dead_model_process_is_no_answer(text: str) -> None:
    assert verdict("INTERNAL", text, from_server=True) is Verdict.UNHEALTHY


# --- in streams -----------------------------------------------------------------------------------

DEAD = "Stub process 'm_0_0' is not healthy."


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        (f"{UNKNOWN}'m' is not found", Verdict.MISS),
        (f"{UNKNOWN}'m' has no available versions", Verdict.MISS),
        (f"{UNKNOWN}'m' version 1 is not at ready state", Verdict.MISS),
        (f"{UNKNOWN}'m' version 7 is not found", Verdict.MISS),
        (
            "[request id: 7] Server is stopping, scheduler for model has stopped accepting new "
            "inference requests",
            Verdict.UNREACHED,
        ),
        ("[request id: <id_unknown>] unexpected shape for input 'IN'", Verdict.ANSWER),
        ("[request id: <id_unknown>] Exceeds maximum queue size", Verdict.ANSWER),
        (DEAD, Verdict.ANSWER),
    ],
)
def test_what_is_refused_at_once(text: str, meaning: Verdict) -> None:
    assert verdict_in_stream(text, begun=False) is meaning


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        (DEAD, Verdict.UNHEALTHY),
        (f"in ensemble 'outer', {DEAD}", Verdict.UNHEALTHY),
        (f"ValueError: {DEAD}", Verdict.ANSWER),
        (f"{UNKNOWN}'m' is not found", Verdict.ANSWER),
        ("server exiting", Verdict.ANSWER),
    ],
)
def test_a_model_cannot_say_that_it_is_not_there(text: str, meaning: Verdict) -> None:
    assert verdict_in_stream(text, begun=True) is meaning


@pytest.mark.parametrize(
    ("code", "text", "meaning"),
    [
        ("UNAVAILABLE", "Socket closed", Verdict.BROKEN),
        ("UNAVAILABLE", "connection refused", Verdict.UNREACHED),
        ("OK", "", Verdict.BROKEN),
        ("CANCELLED", "", Verdict.BROKEN),
        ("INTERNAL", "RST_STREAM", Verdict.BROKEN),
    ],
)
def test_what_the_end_of_a_stream_means(code: str, text: str, meaning: Verdict) -> None:
    assert verdict_of_lost_stream(code, text) is meaning


@given(
    st.sampled_from(["OK", "CANCELLED", "INTERNAL", "UNAVAILABLE", "NOT_FOUND", "UNKNOWN"]),
    st.sampled_from(
        [
            *("", "Socket closed", "connection refused", "Server exiting", "Received RST_STREAM"),
            *(DEAD, "anything", f"{UNKNOWN}'m' version 1 is not at ready state"),
        ]
    ),
)
def test_the_end_of_a_stream_is_no_answer_to_a_request(code: str, text: str) -> None:
    told = status_of_lost_stream(code, text)
    own = speaker(*told) is Speaker.SERVER
    assert (
        verdict(*told, from_server=own) is verdict_of_lost_stream(code, text) is not Verdict.ANSWER
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[request id: <id_unknown>] unexpected shape for input 'IN'", False),
        (f"{UNKNOWN}'m' version 1 is not at ready state", False),
        ("Failed to process the request(s) for model 'm_0_0', message: [request id: 1]", True),
        ("", True),
    ],
)
def test_whether_triton_had_begun(text: str, expected: bool) -> None:
    assert was_begun(text) is expected


@pytest.mark.parametrize(
    ("code", "text", "expected"),
    [
        (
            "UNIMPLEMENTED",
            "ModelInfer RPC doesn't support models with decoupled transaction policy",
            True,
        ),
        ("UNIMPLEMENTED", "not this", False),
        ("INTERNAL", "it doesn't support models with decoupled transaction policy", False),
    ],
)
def test_whether_a_model_is_decoupled(code: str, text: str, expected: bool) -> None:
    assert is_decoupled(code, text) is expected


@pytest.mark.parametrize(
    ("text", "had_begun", "code"),
    [
        ("Failed to process the request(s)", True, "INTERNAL"),
        ("[request id: 7] Request timeout expired", True, "UNAVAILABLE"),
        ("[request id: 7] Exceeds maximum queue size", False, "UNAVAILABLE"),
        ("[request id: 7] unexpected shape for input 'IN'", False, "INVALID_ARGUMENT"),
        (f"{UNKNOWN}'m' is not found", False, "NOT_FOUND"),
        ("Server exiting", False, "UNAVAILABLE"),
    ],
)
def test_the_code_of_what_came_without_one(text: str, had_begun: bool, code: str) -> None:
    assert code_in_stream(text, begun=had_begun) == code


NOT_BESIDE = (
    "Model callee - Error when running inference: Failed for execute the inference request. "
    "Model 'callee' is not ready."
)


@pytest.mark.parametrize(
    "text",
    [
        NOT_BESIDE,
        "Failed to process the request(s) for model 'caller_0', message: TritonModelException: "
        f"{NOT_BESIDE}\n\nAt:\n  /repo/caller/1/model.py(14): execute\n",
    ],
)
def test_a_model_that_called_another_in_vain_is_told_apart(text: str) -> None:
    assert called_model(text) == "callee"
    assert verdict("INTERNAL", text, from_server=True) is Verdict.NEEDS_PART
    assert verdict_in_stream(text, begun=True) is Verdict.NEEDS_PART
    assert verdict_in_stream(text, begun=False) is Verdict.ANSWER
    assert verdict("NOT_FOUND", text, from_server=True) is Verdict.ANSWER


@pytest.mark.parametrize(
    "text", ["Model 'callee' is not ready", NOT_BESIDE.replace("'callee'", "'other'"), ""]
)
def test_other_words_name_no_called_model(text: str) -> None:
    assert called_model(text) == ""
    assert verdict("INTERNAL", text, from_server=True) is Verdict.ANSWER
