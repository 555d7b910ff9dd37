"""Tensors between JSON, memory and Triton's messages."""

import contextlib
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from services.router.core.rest.generate import Declared, parse_generate
from services.router.core.rest.infer import SIZES, Input, parse_infer
from services.router.core.rest.values import WrongRequest
from services.router.rest import documents, tensors

NONE = memoryview(b"")
NAMES = st.sampled_from(["X", "FP32", "BYTES", "INT8", "id", "inputs", "parameters", "data", "é"])
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=3)
    | st.sampled_from(sorted(SIZES))
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)
INPUT = st.fixed_dictionaries(
    {},
    optional={
        "name": NAMES | ANYTHING,
        "datatype": st.sampled_from([*SIZES, "BYTES"]) | ANYTHING,
        "shape": st.lists(st.integers(0, 3), max_size=3) | ANYTHING,
        "data": st.lists(SCALARS, max_size=4) | ANYTHING,
        "parameters": st.dictionaries(
            st.sampled_from(["binary_data_size", "shared_memory_region", "x"]), ANYTHING
        ),
    },
)
REQUEST = st.fixed_dictionaries(
    {},
    optional={
        "id": st.text(max_size=3) | ANYTHING,
        "inputs": st.lists(INPUT, max_size=2) | ANYTHING,
        "outputs": st.lists(
            st.fixed_dictionaries({"name": NAMES}, optional={"parameters": ANYTHING}), max_size=2
        ),
        "parameters": st.dictionaries(
            st.sampled_from(["sequence_id", "priority", "timeout", "sequence_start", "y"]), SCALARS
        ),
    },
)


@given(REQUEST | ANYTHING, st.binary(max_size=8))
def test_whatever_is_asked_becomes_a_message_or_is_refused(document: Any, rest: bytes) -> None:
    try:
        asked = parse_infer(documents.loads(json.dumps(document).encode()))
        message = tensors.message("m", "", asked, memoryview(rest))
    except WrongRequest:
        return
    found = service_pb2.ModelInferRequest.FromString(message)
    assert [one.name for one in found.inputs] == [one.name for one in asked.inputs]
    inside = [one for one in asked.inputs if one.region is None]
    assert len(found.raw_input_contents) == len(inside)
    for one, content in zip(inside, found.raw_input_contents, strict=True):
        if one.elements is not None and one.datatype in SIZES:
            assert len(content) == len(one.elements) * SIZES[one.datatype]


CONVERTING = "Converting keyword: 'parameters': "


@given(ANYTHING)
def test_whatever_generate_is_asked_becomes_a_message_or_is_refused(document: Any) -> None:
    declared = {"X": Declared("FP32", (-1, 2)), "BYTES": Declared("BYTES", (1,))}
    try:
        asked = parse_generate(documents.loads(json.dumps(document).encode()), declared)
        message = tensors.message("m", "", asked, NONE)
    except WrongRequest:
        return
    service_pb2.ModelInferRequest.FromString(message)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"X": [1, 2], "X": [3, 4]}', "[request id: <id_unknown>] {}"),
        (b'{"X": [1, 2], "X": "a", "id": "7"}', "[request id: 7] {}"),
        (
            b'{"X": [1, 2], "parameters": {"X": [3, 4]}}',
            f"{CONVERTING}[request id: <id_unknown>] {{}}",
        ),
        (b'{"parameters": {"X": [1, 2], "X": 3}}', f"{CONVERTING}[request id: <id_unknown>] {{}}"),
    ],
)
def test_generate_takes_an_input_once(body: bytes, text: str) -> None:
    with pytest.raises(WrongRequest) as caught:
        parse_generate(documents.loads(body), {"X": Declared("FP32", (-1, 2))})
    expected = text.format("input 'X' already exists in request")
    assert (caught.value.code, caught.value.text) == ("INVALID_ARGUMENT", expected)


def test_of_a_parameter_that_is_given_twice_generate_takes_the_first() -> None:
    document = documents.loads(b'{"a": 1, "a": [], "parameters": {"b": 2}, "parameters": 3}')
    assert parse_generate(document, {}).parameters == {"a": 1, "b": 2}


@given(st.binary(max_size=30))
def test_any_bytes_are_json_or_are_refused(body: bytes) -> None:
    with contextlib.suppress(WrongRequest):
        found = documents.loads(body)
        json.loads(documents.dumps(found))


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "The document is empty. at 0"),
        (b'{"a": }', "Invalid value. at 6"),
        (b"[1,", "Invalid value. at 3"),
        (b"[] x", "The document root must not be followed by other values. at 3"),
    ],
)
def test_broken_json_is_told_where_as_triton_tells(body: bytes, why: str) -> None:
    with pytest.raises(WrongRequest) as caught:
        documents.loads(body)
    assert caught.value.text == f"failed to parse the request JSON buffer: {why}"


DEEP = b"[[[]]," * 600 + b"NaN" + b"]" * 600  # for the parser that is asked last


@pytest.mark.parametrize("also", [b"NaN", DEEP], ids=["shallow", "deep"])
def test_numbers_of_any_length_and_halves_of_characters(also: bytes) -> None:
    found = documents.loads(b"[%b, 18446744073709551615, 123456789012345678901234567890]" % also)
    assert found[1] == 2**64 - 1
    assert isinstance(found[2], float)
    assert math.isclose(found[2], 1.2345678901234567e29)
    with pytest.raises(WrongRequest):
        documents.loads(b'[%b, "\\ud800"]' % also)


def test_integers_wrap_as_they_do_in_triton() -> None:
    found = tensors.encoded_elements(Input("X", "INT8", (3,), elements=[127, 128, -129]))
    assert np.frombuffer(found, np.int8).tolist() == [127, -128, 127]
    found = tensors.encoded_elements(Input("X", "UINT16", (1,), elements=[65537]))
    assert np.frombuffer(found, np.uint16).tolist() == [1]


def test_what_is_too_large_for_a_float_is_infinite() -> None:
    found = tensors.encoded_elements(Input("X", "FP32", (2,), elements=[1e300, -1e300]))
    assert np.frombuffer(found, np.float32).tolist() == [math.inf, -math.inf]


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=5))
def test_bfloat16_there_and_back(numbers: list[float]) -> None:
    content = tensors.encoded_elements(Input("X", "BF16", (len(numbers),), elements=numbers))
    found = tensors.array("X", "BF16", [len(numbers)], memoryview(content))
    for number, back in zip(numbers, found.tolist(), strict=True):
        assert (
            back == number
            or math.isclose(back, number, rel_tol=2**-8, abs_tol=2**-133)
            or (math.isinf(back) and abs(number) > 3.3e38)
        )


@pytest.mark.parametrize("datatype", ["FP32", "INT8", "UINT64", "BOOL", "BF16"])
def test_many_are_read_as_few_are(datatype: str) -> None:
    count = 130_000
    numbers = [bool(i % 3) if datatype == "BOOL" else i for i in range(count)]
    one = Input("X", datatype, (count,), elements=numbers)
    few = Input("X", datatype, (1,), elements=numbers[-1:])
    found = tensors.encoded_elements(one)
    assert found.endswith(tensors.encoded_elements(few))
    if datatype != "BF16":
        expected = np.array(numbers).astype(tensors.DTYPES[datatype])
        assert found == expected.tobytes()


def test_documents_say_what_numbers_are_none() -> None:
    arrays = {
        "a": tensors.for_json(np.array([[1.5, math.nan]], np.float32)),
        "b": tensors.for_json(np.array([1, 2], np.int64)),
        "c": tensors.for_json(np.array(-math.inf, np.float32)),
    }
    assert documents.dumps(arrays) == b'{"a":[[1.5,NaN]],"b":[1,2],"c":-Infinity}'


@pytest.mark.parametrize(
    ("datatype", "shape", "content"),
    [("FP32", [2], b"1234"), ("BYTES", [1], b"\x05\x00\x00\x00ab"), ("BYTES", [1], b"\x01\x00")],
)
def test_outputs_of_another_size_are_refused(
    datatype: str, shape: list[int], content: bytes
) -> None:
    with pytest.raises(
        WrongRequest, match="output tensor shape does not match size of output for 'X'"
    ):
        tensors.in_json("X", datatype, shape, memoryview(content))
