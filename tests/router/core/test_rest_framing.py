"""Cutting tensors out of messages, against protobuf's own parser."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from services.router.core.wire.framing import split_raw_outputs, with_raw_inputs

CONTENTS = st.lists(st.binary(max_size=300), max_size=4)


@given(CONTENTS, st.text(max_size=20))
def test_inputs_come_in_as_protobuf_would_have_put_them(contents: list[bytes], name: str) -> None:
    head = service_pb2.ModelInferRequest(model_name=name, id="7")
    framed = with_raw_inputs(head.SerializeToString(), map(memoryview, contents))
    read = service_pb2.ModelInferRequest.FromString(framed)
    assert list(read.raw_input_contents) == contents
    assert (read.model_name, read.id) == (name, "7")


@given(CONTENTS, st.integers(0, 2**63 - 1), st.floats(allow_nan=False))
def test_outputs_are_cut_out_and_the_rest_stays(
    contents: list[bytes], number: int, real: float
) -> None:
    response = service_pb2.ModelInferResponse(model_name="m", id="7")
    response.parameters["n"].int64_param = number
    response.parameters["r"].double_param = real
    response.outputs.add(name="OUT", datatype="FP32", shape=[number])
    rest = response.SerializeToString()
    response.raw_output_contents.extend(contents)
    head, found = split_raw_outputs(response.SerializeToString() + b"\x12\x012")
    assert list(map(bytes, found)) == contents
    read = service_pb2.ModelInferResponse.FromString(head)
    assert read.model_version == "2", "what was appended counts"
    read.model_version = ""
    assert read == service_pb2.ModelInferResponse.FromString(rest)


@given(st.binary(max_size=40))
def test_any_bytes_are_cut_or_refused(message: bytes) -> None:
    try:
        head, found = split_raw_outputs(message)
    except ValueError:
        return
    assert len(head) + sum(map(len, found)) <= len(message)


@pytest.mark.parametrize("message", [b"\x32", b"\x32\x05ab", b"\x0f", b"\x09ab", b"\x80"])
def test_what_ends_too_early_is_refused(message: bytes) -> None:
    with pytest.raises(ValueError, match=r"ends|wire type"):
        split_raw_outputs(message)
