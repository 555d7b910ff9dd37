"""Inference requests in Triton's JSON, checked in Triton's order and refused in its words."""

from collections.abc import Mapping
from itertools import chain
from math import prod
from typing import Any, Final, NamedTuple

from services.router.core.rest.values import (
    INTERNAL,
    INVALID,
    MISSING,
    WrongRequest,
    array,
    boolean,
    find,
    is_signed,
    member,
    members,
    string,
    unsigned,
    wrong,
)
from shoal.protobuf import signed

Scalar = bool | int | float | str

SIZES: Final[Mapping[str, int]] = {
    **dict.fromkeys(("BOOL", "UINT8", "INT8"), 1),
    **dict.fromkeys(("UINT16", "INT16", "FP16", "BF16"), 2),
    **dict.fromkeys(("UINT32", "INT32", "FP32"), 4),
    **dict.fromkeys(("UINT64", "INT64", "FP64"), 8),
}  # bytes of an element; BYTES elements vary

_MISMATCH: Final = "Unable to parse 'data': Shape does not match true shape of 'data' field"
_BINARY_ONLY: Final = ("FP16", "BF16")
RESERVED: Final = (
    "parameter keys starting with 'triton_' are reserved for Triton usage and should not be "
    "specified."
)


class RegionPart(NamedTuple):
    """A part of a region of shared memory. `offset` and `size` are in bytes."""

    name: str
    offset: int
    size: int


class Input(NamedTuple):
    """An input. Its data is one of three: `size` bytes of the binary part, `elements` from JSON, or
    a `region`."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    size: int | None = None
    elements: tuple[Any, ...] | list[Any] | None = None
    region: RegionPart | None = None


class Output(NamedTuple):
    """An output that is asked for. `classes` is how many of the best classes to return, 0 for the
    tensor itself."""

    name: str
    binary: bool = False
    classes: int = 0
    region: RegionPart | None = None


class Infer(NamedTuple):
    """An inference request. `binary` says whether outputs that are not named come in binary."""

    id: str = ""
    parameters: Mapping[str, Scalar] = {}
    inputs: tuple[Input, ...] = ()
    outputs: tuple[Output, ...] = ()
    binary: bool = False


def parse_infer(document: object) -> Infer:
    """Return the request in a JSON document. Raises WrongRequest."""
    id_ = request_id(document)
    parameters, binary = _parameters(document)
    inputs = array(
        member(document, "inputs", "Unable to parse 'inputs'"), "Unable to parse 'inputs'"
    )
    outputs: list[Any] = []
    if find(document, "outputs") is not MISSING:
        outputs = array(member(document, "outputs"), "Unable to parse 'outputs'")
    return Infer(
        id_,
        parameters,
        tuple(map(_input, inputs)),
        tuple(map(_output, outputs)),
        binary,
    )


def request_id(document: object) -> str:
    """Return the id that a document gives the request, or "". Raises WrongRequest."""
    found = find(document, "id")
    return "" if found is MISSING else string(found, "Unable to parse 'id'")


def scalar(name: str, value: object) -> Scalar:
    """Return the value of a parameter. Numbers beyond int64 become doubles. Raises WrongRequest."""
    if isinstance(value, str | bool | float):
        return value
    if isinstance(value, int):
        return value if is_signed(value) else float(value)
    raise WrongRequest(
        INVALID,
        f"parameter '{name}' has invalid type. It should be either 'int', 'bool', or 'string'.",
    )


def flat_elements(name: str, datatype: str, shape: tuple[int, ...], data: object) -> list[Any]:
    """Return `data`, nested in any way, as a flat list of elements of `datatype`. Raises
    WrongRequest."""
    if datatype not in SIZES and datatype != "BYTES":
        raise WrongRequest(INVALID, f"invalid datatype for input {name}")
    expected = prod(shape) if shape else 0
    if not expected:
        return []  # Triton does not look at the data then
    flat, kinds = _flat(array(data, "Unable to parse 'data'"))
    if datatype == "BYTES":
        if kinds - {str}:
            raise wrong(_WRONG_TYPE["string"], "Unable to parse JSON bytes array")
        return flat
    if datatype in _BINARY_ONLY:
        raise WrongRequest(
            INVALID,
            f"receiving {datatype} data via JSON is not supported. Please use the binary data "
            f"format for input {name}",
        )
    _check(datatype, flat, kinds)
    if len(flat) != expected:
        raise WrongRequest(INTERNAL, _MISMATCH)
    return flat


_WRONG_TYPE: Final = {
    "string": "attempt to access JSON non-string as string",
    "boolean": "attempt to access JSON non-boolean as boolean",
    "unsigned": "attempt to access JSON non-unsigned-integer as unsigned-integer",
    "signed": "attempt to access JSON non-signed-integer as signed-integer",
    "double": "attempt to access JSON non-number as double",
}


_ACCEPTED: Final[Mapping[str, tuple[str, tuple[type, ...], tuple[int, int] | None]]] = {
    "B": ("boolean", (bool,), None),
    "F": ("double", (int, float), None),
    "U": ("unsigned", (int,), (0, 2**64 - 1)),
    "I": ("signed", (int,), (-(2**63), 2**63 - 1)),
}  # by a datatype's first letter: its name in texts, the types and the bounds of its elements


def _check(datatype: str, flat: list[Any], kinds: set[type]) -> None:
    kind, allowed, bounds = _ACCEPTED[datatype[0]]
    bad = not kinds.issubset(allowed)
    if not bad and bounds is not None and flat:
        bad = min(flat) < bounds[0] or max(flat) > bounds[1]
    if bad:
        raise wrong(_WRONG_TYPE[kind], "Unable to parse 'data'")


def _flat(data: list[Any]) -> tuple[list[Any], set[type]]:
    """Return the leaves of nested lists in order, and their types."""
    kinds = set(map(type, data))
    while list in kinds:
        if len(kinds) == 1:
            data = list(chain.from_iterable(data))
        else:
            data = [leaf for one in data for leaf in (one if type(one) is list else (one,))]
        kinds = set(map(type, data))
    return data, kinds


def _parameters(document: object) -> tuple[dict[str, Scalar], bool]:
    """Return the parameters for Triton, and `binary_data_output`."""
    given = find(document, "parameters")
    found: dict[str, Scalar] = {}
    binary = False
    if given is MISSING:
        return found, binary
    for name, value in members(given, "failed to get request params.").items():
        what = f"Unable to parse '{name}'"
        if name == "sequence_id":
            found[name] = _sequence(value, what)
        elif name in ("sequence_start", "sequence_end"):
            found[name] = boolean(value, what)
        elif name in ("priority", "timeout"):
            found[name] = unsigned(value, what)
        elif name == "binary_data_output":
            binary = boolean(value, what)
        elif "\0" in name:
            key = name.partition("\0")[0]
            raise WrongRequest(INTERNAL, f"parameter key '{key}' was not found in the JSON")
        elif name.startswith("triton_"):
            raise WrongRequest(INVALID, RESERVED)
        else:
            found[name] = scalar(name, value)
    return found, binary


def _sequence(value: object, what: str) -> int | str:
    if type(value) is int and 0 <= value < 2**64:
        return value
    return string(value, what)


def _input(document: object) -> Input:
    _one_source(document)
    given = find(document, "parameters")
    name = string(member(document, "name", "Unable to parse 'name'"), "Unable to parse 'name'")
    what = "Unable to parse 'datatype'"
    datatype = string(member(document, "datatype", what), what)
    what = "Unable to parse 'shape'"
    dims = array(member(document, "shape", what), what)
    # -1 comes as the largest unsigned number.
    shape = tuple(signed(unsigned(dim, what)) for dim in dims)
    size = find(given, "binary_data_size")
    if size is not MISSING:
        count = unsigned(size, "Unable to parse 'binary_data_size'")
        return Input(name, datatype, shape, size=count)
    region = _region(given)
    if region is not None:
        return Input(name, datatype, shape, region=region)
    leaves = flat_elements(name, datatype, shape, find(document, "data"))
    return Input(name, datatype, shape, elements=leaves)


def _output(document: object) -> Output:
    given = find(document, "parameters")
    _one_form(given)
    name = string(member(document, "name", "Unable to parse 'name'"), "Unable to parse 'name'")
    classes = find(given, "classification")
    count = 0 if classes is MISSING else unsigned(classes, "Unable to set 'classification'")
    region = _region(given)
    if region is not None:
        return Output(name, classes=count, region=region)
    binary = find(given, "binary_data")
    as_binary = binary is not MISSING and boolean(binary, "Unable to parse 'binary_data'")
    return Output(name, as_binary, count)


def _region(given: object) -> RegionPart | None:
    name = find(given, "shared_memory_region")
    offset, size = find(given, "shared_memory_offset"), find(given, "shared_memory_byte_size")
    region = "" if name is MISSING else string(name, "Unable to parse 'shared_memory_region'")
    what = "Unable to parse 'shared_memory_offset'"
    start = 0 if offset is MISSING else unsigned(offset, what)
    what = "Unable to parse 'shared_memory_byte_size'"
    count = 0 if size is MISSING else unsigned(size, what)
    return None if name is MISSING else RegionPart(region, start, count)


def _one_source(document: object) -> None:
    given = find(document, "parameters")
    there = {
        "data": find(document, "data") is not MISSING,
        "binary_data_size": find(given, "binary_data_size") is not MISSING,
        "shared_memory_region": find(given, "shared_memory_region") is not MISSING,
    }
    fields = [f" '{name}'" for name, found in there.items() if found]
    if len(fields) != 1:
        raise WrongRequest(
            INVALID,
            "Input must set only one of the following fields: 'data', 'binary_data_size' in "
            "'parameters', 'shared_memory_region' in 'parameters'. But"
            + (" set" + "".join(fields) if fields else " no field is set"),
        )


def _one_form(given: object) -> None:
    if find(given, "shared_memory_region") is MISSING:
        return
    if find(given, "classification") is not MISSING:
        raise WrongRequest(
            INVALID, "Output can't set both 'shared_memory_region' and 'classification'"
        )
    binary = find(given, "binary_data")
    if binary is not MISSING and boolean(binary, "Unable to set 'binary_data'"):
        raise WrongRequest(
            INVALID, "Output can't set both 'shared_memory_region' and 'binary_data'"
        )
