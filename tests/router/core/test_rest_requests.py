"""What an inference request in JSON may say, and what it is told when it says it wrongly."""

from typing import Any

import pytest

from services.router.core.rest.generate import Declared, parse_generate
from services.router.core.rest.infer import (
    Infer,
    Input,
    Output,
    RegionPart,
    flat_elements,
    parse_infer,
)
from services.router.core.rest.values import WrongRequest

NUMBERS = {"name": "X", "datatype": "FP32", "shape": [2], "data": [1, 2.5]}


def asked(**more: Any) -> Infer:
    return parse_infer({"inputs": [NUMBERS], **more})


def one_input(**changed: Any) -> Infer:
    fields = {**NUMBERS, **changed}
    given = {key: value for key, value in fields.items() if value is not None}
    return parse_infer({"inputs": [given]})


def refusal(document: object) -> tuple[str, str]:
    with pytest.raises(WrongRequest) as caught:
        parse_infer(document)
    return caught.value.code, caught.value.text


def test_a_plain_request() -> None:
    assert asked() == Infer(inputs=(Input("X", "FP32", (2,), elements=[1, 2.5]),))


def test_all_that_a_request_can_say() -> None:
    found = asked(
        id="7",
        parameters={
            "sequence_id": 2**64 - 1,
            "sequence_start": True,
            "sequence_end": False,
            "priority": 3,
            "timeout": 1000,
            "binary_data_output": True,
            "temperature": 0.5,
            "top": 4,
            "beyond": 2**63,
            "mode": "fast",
            "flag": False,
        },
        outputs=[
            {"name": "A"},
            {"name": "B", "parameters": {"binary_data": True}},
            {"name": "C", "parameters": {"classification": 3}},
            {
                "name": "D",
                "parameters": {"shared_memory_region": "r", "shared_memory_byte_size": 8},
            },
        ],
    )
    assert found.id == "7"
    assert found.binary
    assert found.parameters == {
        "sequence_id": 2**64 - 1,
        "sequence_start": True,
        "sequence_end": False,
        "priority": 3,
        "timeout": 1000,
        "temperature": 0.5,
        "top": 4,
        "beyond": float(2**63),
        "mode": "fast",
        "flag": False,
    }
    assert found.outputs == (
        Output("A"),
        Output("B", binary=True),
        Output("C", classes=3),
        Output("D", region=RegionPart("r", 0, 8)),
    )


def test_inputs_that_lie_elsewhere() -> None:
    binary = one_input(data=None, parameters={"binary_data_size": 8})
    assert binary.inputs == (Input("X", "FP32", (2,), size=8),)
    shared = one_input(
        data=None,
        parameters={
            "shared_memory_region": "r",
            "shared_memory_offset": 16,
            "shared_memory_byte_size": 8,
        },
    )
    assert shared.inputs == (Input("X", "FP32", (2,), region=RegionPart("r", 16, 8)),)


def test_a_sequence_may_have_a_name() -> None:
    assert asked(parameters={"sequence_id": "abc"}).parameters == {"sequence_id": "abc"}


STRING = "attempt to access JSON non-string as string"
UNSIGNED = "attempt to access JSON non-unsigned-integer as unsigned-integer"
BOOLEAN = "attempt to access JSON non-boolean as boolean"


@pytest.mark.parametrize(
    ("document", "code", "text"),
    [
        (
            {},
            "INTERNAL",
            "Unable to parse 'inputs': attempt to access non-existing object member 'inputs'",
        ),
        (
            [1],
            "INTERNAL",
            "Unable to parse 'inputs': attempt to access non-existing object member 'inputs'",
        ),
        (
            {"inputs": {}},
            "INTERNAL",
            "Unable to parse 'inputs': attempt to access JSON non-array as array",
        ),
        ({"id": 4, "inputs": []}, "INTERNAL", f"Unable to parse 'id': {STRING}"),
        (
            {"parameters": [], "inputs": []},
            "INTERNAL",
            "failed to get request params.: attempt to get members for non-object",
        ),
        (
            {"parameters": {"triton_x": 1}, "inputs": []},
            "INVALID_ARGUMENT",
            "parameter keys starting with 'triton_' are reserved for Triton usage and should not "
            "be specified.",
        ),
        (
            {"parameters": {"x": [1]}, "inputs": []},
            "INVALID_ARGUMENT",
            "parameter 'x' has invalid type. It should be either 'int', 'bool', or 'string'.",
        ),
        (
            {"parameters": {"sequence_start": 1}, "inputs": []},
            "INTERNAL",
            f"Unable to parse 'sequence_start': {BOOLEAN}",
        ),
        (
            {"parameters": {"priority": -1}, "inputs": []},
            "INTERNAL",
            f"Unable to parse 'priority': {UNSIGNED}",
        ),
        (
            {"parameters": {"sequence_id": 1.5}, "inputs": []},
            "INTERNAL",
            f"Unable to parse 'sequence_id': {STRING}",
        ),
        (
            {"inputs": [], "outputs": [{"name": "A", "parameters": {"binary_data": 1}}]},
            "INTERNAL",
            f"Unable to parse 'binary_data': {BOOLEAN}",
        ),
        (
            {"inputs": [], "outputs": [{"name": "A", "parameters": {"classification": -1}}]},
            "INTERNAL",
            f"Unable to set 'classification': {UNSIGNED}",
        ),
        (
            {
                "inputs": [],
                "outputs": [
                    {
                        "name": "A",
                        "parameters": {"shared_memory_region": "r", "classification": 1},
                    }
                ],
            },
            "INVALID_ARGUMENT",
            "Output can't set both 'shared_memory_region' and 'classification'",
        ),
    ],
)
def test_what_is_refused_of_a_request(document: object, code: str, text: str) -> None:
    assert refusal(document) == (code, text)


SOURCES = (
    "Input must set only one of the following fields: 'data', 'binary_data_size' in 'parameters', "
    "'shared_memory_region' in 'parameters'. But"
)
DATA = "Unable to parse 'data': "
MISMATCH = DATA + "Shape does not match true shape of 'data' field"


@pytest.mark.parametrize(
    ("changed", "code", "text"),
    [
        ({"data": None}, "INVALID_ARGUMENT", f"{SOURCES} no field is set"),
        (
            {"parameters": {"binary_data_size": 8}},
            "INVALID_ARGUMENT",
            f"{SOURCES} set 'data' 'binary_data_size'",
        ),
        (
            {"name": None},
            "INTERNAL",
            "Unable to parse 'name': attempt to access non-existing object member 'name'",
        ),
        ({"datatype": 1}, "INTERNAL", f"Unable to parse 'datatype': {STRING}"),
        ({"shape": [-1]}, "INTERNAL", f"Unable to parse 'shape': {UNSIGNED}"),
        ({"shape": [2.0]}, "INTERNAL", f"Unable to parse 'shape': {UNSIGNED}"),
        ({"shape": [3]}, "INTERNAL", MISMATCH),
        ({"data": [1, 2, 3]}, "INTERNAL", MISMATCH),
        ({"data": 1}, "INTERNAL", DATA + "attempt to access JSON non-array as array"),
        (
            {"data": [1, "2"]},
            "INTERNAL",
            DATA + "attempt to access JSON non-number as double",
        ),
        (
            {"data": [1, True]},
            "INTERNAL",
            DATA + "attempt to access JSON non-number as double",
        ),
        ({"datatype": "BOOL"}, "INTERNAL", DATA + BOOLEAN),
        (
            {"datatype": "INT8"},
            "INTERNAL",
            DATA + "attempt to access JSON non-signed-integer as signed-integer",
        ),
        ({"datatype": "UINT8", "data": [1, -1]}, "INTERNAL", DATA + UNSIGNED),
        ({"datatype": "UINT64", "data": [1, 2**64]}, "INTERNAL", DATA + UNSIGNED),
        (
            {"datatype": "BYTES"},
            "INTERNAL",
            f"Unable to parse JSON bytes array: {STRING}",
        ),
        (
            {"datatype": "FP16"},
            "INVALID_ARGUMENT",
            "receiving FP16 data via JSON is not supported. Please use the binary data format for "
            "input X",
        ),
        ({"datatype": "FP31"}, "INVALID_ARGUMENT", "invalid datatype for input X"),
    ],
)
def test_what_is_refused_of_an_input(changed: dict[str, Any], code: str, text: str) -> None:
    given = {key: value for key, value in {**NUMBERS, **changed}.items() if value is not None}
    assert refusal({"inputs": [given]}) == (code, text)


@pytest.mark.parametrize(
    "data", [[1, 2, 3, 4, 5, 6], [[1, 2, 3], [4, 5, 6]], [[[1], [2, 3]], 4, [[5], 6]]]
)
def test_elements_may_be_nested_in_any_way(data: list[Any]) -> None:
    assert flat_elements("X", "INT32", (2, 3), data) == [1, 2, 3, 4, 5, 6]


def test_an_empty_tensor_has_no_elements_to_look_at() -> None:
    assert flat_elements("X", "INT32", (0, 3), ["whatever"]) == []


# --- generate -------------------------------------------------------------------------------------

PROMPT = {"PROMPT": Declared("BYTES", (1,)), "LIMIT": Declared("INT32", (-1, 2))}


def test_keys_are_inputs_or_parameters() -> None:
    found = parse_generate(
        {"PROMPT": "hello", "seed": 3, "parameters": {"LIMIT": [1, 2, 3, 4], "top": 0.5}}, PROMPT
    )
    assert found.inputs == (
        Input("PROMPT", "BYTES", (1,), elements=["hello"]),
        Input("LIMIT", "INT32", (2, 2), elements=[1, 2, 3, 4]),
    )
    assert found.parameters == {"seed": 3, "top": 0.5}


def test_parameters_are_for_the_model_whatever_they_are_called() -> None:
    """A NUL ends a name for the model, while the scheduler looks for names without it."""
    given = {"priority": -1, "timeout": 2.5, "sequence_id": "a", "sequence_start": True, "top": 1}
    found = parse_generate({**given, "parameters": {"sequence_end": 0}}, PROMPT)
    assert found.parameters == {
        "priority\0": -1,
        "timeout\0": 2.5,
        "sequence_id\0": "a",
        "sequence_start\0": True,
        "top": 1,
        "sequence_end\0": 0,
    }


def test_the_last_size_that_may_vary_takes_what_is_left() -> None:
    declared = {"X": Declared("FP32", (-1, -1, 2))}
    found = parse_generate({"X": [1, 2, 3, 4, 5, 6]}, declared)
    assert found.inputs[0].shape == (1, 3, 2)


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ([], "attempt to get members for non-object"),
        ({"id": 1}, f"Unable to parse 'id': {STRING}"),
        (
            {"LIMIT": [1, 2, 3]},
            "The schema can not convert input 'LIMIT' to tensor with proper shape",
        ),
        (
            {"PROMPT": ["a", "b"]},
            "The schema can not convert input 'PROMPT' to tensor with proper shape",
        ),
        (
            {"parameters": 3},
            "Expected JSON object for keyword: 'parameters': attempt to access JSON non-object as "
            "object",
        ),
        ({"priority\0": 1}, "parameter key 'priority' was not found in the JSON"),
        (
            {"triton_x": 1},
            "parameter keys starting with 'triton_' are reserved for Triton usage and should not "
            "be specified.",
        ),
        (
            {"parameters": {"x": None}},
            "Converting keyword: 'parameters': parameter 'x' has invalid type. It should be either "
            "'int', 'bool', or 'string'.",
        ),
    ],
)
def test_what_generate_refuses(document: object, text: str) -> None:
    with pytest.raises(WrongRequest) as caught:
        parse_generate(document, PROMPT)
    assert caught.value.text == text
