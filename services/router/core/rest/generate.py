"""Triton's generate extension: plain JSON keys that become inputs or parameters."""

from collections.abc import Mapping
from typing import Final, NamedTuple

from services.router.core.rest.infer import (
    RESERVED,
    Infer,
    Input,
    Scalar,
    flat_elements,
    request_id,
    scalar,
)
from services.router.core.rest.values import (
    INTERNAL,
    INVALID,
    MISSING,
    Repeating,
    WrongRequest,
    members,
    obj,
)

# Parameters of these names are the scheduler's in Triton's gRPC protocol. Triton's own generate
# gives them to the model, like all others.
_FOR_SCHEDULER: Final = frozenset(
    ("sequence_id", "sequence_start", "sequence_end", "priority", "timeout")
)
# Ends a name for the model, but not for the gRPC server that looks for those above.
_END: Final = "\0"


class Declared(NamedTuple):
    """An input as the model declares it. -1 in `shape` stands for any size."""

    datatype: str
    shape: tuple[int, ...]


def parse_generate(document: object, declared: Mapping[str, Declared]) -> Infer:
    """Return a request of Triton's generate extension. Each key, also under `parameters`, is an
    input if the model has one of that name, else a parameter for the model. Raises
    WrongRequest."""
    parameters: dict[str, Scalar] = {}
    inputs: list[Input] = []
    given: set[str] = set()
    id_ = request_id(document)

    def take(document: object, repeated: frozenset[str]) -> None:
        for name, value in members(document).items():
            if name in declared:
                inputs.append(_generated_input(name, declared[name], value))
                if name in repeated or name in given:
                    which = id_ or "<id_unknown>"
                    text = f"[request id: {which}] input '{name}' already exists in request"
                    raise WrongRequest(INVALID, text)
                given.add(name)
            else:
                parameters[_for_model(name)] = scalar(name, value)

    outer = members(document)
    nested = outer.get("parameters", MISSING)
    if nested is not MISSING and "parameters" in declared:
        raise WrongRequest(
            INVALID, "Keyword 'parameters' for nested schema also given as input tensor name"
        )
    take({name: value for name, value in outer.items() if name != "parameters"}, _repeated(outer))
    if nested is not MISSING:
        inner = obj(nested, "Expected JSON object for keyword: 'parameters'")
        try:
            take(inner, _repeated(inner))
        except WrongRequest as refused:
            text = f"Converting keyword: 'parameters': {refused.text}"
            raise WrongRequest(refused.code, text) from refused
    return Infer(id_, parameters, tuple(inputs))


def _repeated(document: object) -> frozenset[str]:
    return document.repeated if isinstance(document, Repeating) else frozenset()


def _for_model(name: str) -> str:
    """Return a parameter's name in Triton's gRPC protocol."""
    if _END in name:
        key = name.partition(_END)[0]
        raise WrongRequest(INTERNAL, f"parameter key '{key}' was not found in the JSON")
    if name.startswith("triton_"):
        raise WrongRequest(INVALID, RESERVED)
    return name + _END if name in _FOR_SCHEDULER else name


def _generated_input(name: str, declared: Declared, value: object) -> Input:
    data = value if isinstance(value, list) else [value]
    shape = _generated_shape(name, declared.shape, len(data))
    if declared.datatype == "BYTES" and not data:
        return Input(name, declared.datatype, shape, elements=[])
    return Input(
        name,
        declared.datatype,
        shape,
        elements=flat_elements(name, declared.datatype, (len(data),), data),
    )


def _generated_shape(name: str, declared: tuple[int, ...], count: int) -> tuple[int, ...]:
    """Return the shape of an input with `count` elements. Fixed sizes stand, the last variable one
    takes what is left, and others are 1."""
    left = count
    for dim in reversed(declared):
        if dim != -1:
            if dim == 0 or left % dim:
                raise _no_shape(name)
            left //= dim
    shape: list[int] = []
    for dim in reversed(declared):
        if dim == -1:
            dim, left = left, 1
        shape.append(dim)
    if left != 1:
        raise _no_shape(name)
    return tuple(reversed(shape))


def _no_shape(name: str) -> WrongRequest:
    return WrongRequest(
        INVALID, f"The schema can not convert input '{name}' to tensor with proper shape"
    )
