"""shoal_probe.json: an inference that a server must answer before a version counts as READY.

It is written as a REST request of the Open Inference Protocol (KServe v2), checked against the
completed config, and stored as the gRPC message that a server is sent.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig, ModelInput
from tritonclient.grpc.service_pb2 import ModelInferRequest

from services.registry.formats.refusal import Unservable
from shoal.tensors import pack_elements

PROBE_FILE: Final = "shoal_probe.json"
MAX_TEXT: Final = 2**20  # bytes of the file
# Bytes of the message, which is part of every copy of the catalogue.
MAX_PROBE: Final = 64 * 1024
MAX_DIMENSIONS: Final = 32

_STRICT = ConfigDict(strict=True, extra="forbid")
_INT64 = Annotated[int, Field(ge=-(2**63), lt=2**63)]
_PARAMETERS: Final = {
    bool: "bool_param",
    int: "int64_param",
    float: "double_param",
    str: "string_param",
}


class _Input(BaseModel):
    model_config = _STRICT

    name: str
    shape: list[Annotated[int, Field(ge=0, lt=2**63)]] = Field(max_length=MAX_DIMENSIONS)
    datatype: str
    data: list[Any]


class _Output(BaseModel):
    model_config = _STRICT

    name: str


class _Probe(BaseModel):
    model_config = _STRICT

    id: str = ""
    parameters: dict[str, bool | _INT64 | FiniteFloat | str] = {}
    inputs: list[_Input]
    outputs: list[_Output] = []


def read(text: bytes, config: ModelConfig) -> bytes:
    """Turn the file's text into a serialized inference.ModelInferRequest.

    It has no names of model and version. Raises Unservable.
    """
    try:
        probe = _Probe.model_validate_json(text)
    except ValidationError as error:
        raise _unservable(_first(error)) from None
    if config.model_transaction_policy.decoupled:
        raise _unservable("its config is decoupled, and a probe has one answer: remove the file")
    _check_names("input", [one.name for one in probe.inputs], config.input)
    _check_names("output", [one.name for one in probe.outputs], config.output)
    given = {one.name for one in probe.inputs}
    for entry in config.input:
        if entry.name not in given and not entry.optional:
            raise _unservable(f"the input {entry.name!r} is missing")
    request = _request(probe, {entry.name: entry for entry in config.input}, config.max_batch_size)
    content = bytes(request.SerializeToString(deterministic=True))
    if len(content) > MAX_PROBE:
        raise _unservable(
            f"its inputs take {len(content)} bytes, more than {MAX_PROBE}: give smaller ones, or "
            "use model_warmup in config.pbtxt, which can generate them"
        )
    return content


def _request(probe: _Probe, entries: dict[str, ModelInput], max_batch: int) -> ModelInferRequest:
    request = ModelInferRequest(id=probe.id)
    for name, value in probe.parameters.items():
        setattr(request.parameters[name], _PARAMETERS[type(value)], value)
    for given in probe.inputs:
        entry = entries[given.name]
        _check_type(given, entry)
        _check_shape(given, entry, max_batch)
        request.inputs.add(name=given.name, datatype=given.datatype, shape=given.shape)
        request.raw_input_contents.append(_content(given))
    for output in probe.outputs:
        request.outputs.add(name=output.name)
    return request


def _check_names(kind: str, given: Sequence[str], entries: Iterable[Any]) -> None:
    known = {entry.name for entry in entries}
    for name in given:
        if name not in known:
            listed = ", ".join(sorted(known)) or "none"
            raise _unservable(f"there is no {kind} {name[:128]!r}; the config has: {listed}")
    if len(set(given)) < len(given):
        raise _unservable(f"an {kind} is given twice")


def _check_type(given: _Input, entry: ModelInput) -> None:
    wanted = DataType.Name(entry.data_type).removeprefix("TYPE_").replace("STRING", "BYTES")
    if given.datatype != wanted:
        raise _unservable(
            f"input {given.name!r} is {given.datatype[:32]!r}, the config says {wanted!r}"
        )


def _check_shape(given: _Input, entry: ModelInput, max_batch: int) -> None:
    """Check a shape, but leave shape tensors to Triton: their batch depends on the engine."""
    if entry.is_shape_tensor:
        return
    dims, batched = list(entry.dims), max_batch > 0
    wanted = ["batch", *dims] if batched else dims
    sizes = given.shape[1:] if batched else given.shape
    fits = len(given.shape) == len(wanted) and all(
        dim in (-1, size) for dim, size in zip(dims, sizes, strict=True)
    )
    if not fits:
        shown = ", ".join(map(str, wanted))
        raise _unservable(
            f"input {given.name!r} has shape {given.shape}, the config says [{shown}]"
        )
    if batched and not 1 <= given.shape[0] <= max_batch:
        raise _unservable(
            f"input {given.name!r} has a batch of {given.shape[0]}, the config's max_batch_size "
            f"says 1 to {max_batch}"
        )


# The JSON types of an element; those of all other datatypes are whole numbers.
_ELEMENTS: Final[dict[str, tuple[type, ...]]] = {
    "BOOL": (bool,),
    "BYTES": (str,),
    **dict.fromkeys(("FP16", "FP32", "FP64", "BF16"), (int, float)),
}


def _content(given: _Input) -> bytes:
    """Return the tensor's bytes for raw_input_contents."""
    values = _flat(given)
    wanted = math.prod(given.shape)
    if len(values) != wanted:
        raise _unservable(
            f"input {given.name!r} has {len(values)} elements, its shape {given.shape} says "
            f"{wanted}"
        )
    allowed = _ELEMENTS.get(given.datatype, (int,))
    for value in values:
        if type(value) not in allowed:
            names = " or ".join(kind.__name__ for kind in allowed)
            raise _unservable(
                f"input {given.name!r} has an element of type {type(value).__name__}; elements "
                f"of {given.datatype} are {names}"
            )
    try:
        if given.datatype == "BYTES":
            return pack_elements(value.encode() for value in values)
        return _numbers(given.datatype, values)
    except (ArithmeticError, ValueError) as error:
        raise _unservable(f"input {given.name!r} has an unusable element: {error}") from None


def _flat(given: _Input) -> list[Any]:
    """Return the elements, row by row, of data that is flat or nested like the shape."""
    if not any(isinstance(item, list) for item in given.data):
        return given.data
    rows: list[Any] = [given.data]
    for size in given.shape:
        if not all(isinstance(row, list) and len(row) == size for row in rows):
            raise _unservable(f"input {given.name!r}: its data is not nested as {given.shape}")
        rows = [item for row in rows for item in row]
    return rows


def _numbers(datatype: str, values: Sequence[Any]) -> bytes:
    import numpy as np  # few models have a probe
    from tritonclient.utils import triton_to_np_dtype

    with np.errstate(over="raise"):
        return np.array(values, dtype=triton_to_np_dtype(datatype)).tobytes()


def _first(error: ValidationError) -> str:
    (first, *_) = error.errors(include_url=False, include_context=False, include_input=False)
    place = ".".join(map(str, first["loc"]))
    return f"{place[:128]!r}: {first['msg']}" if place else first["msg"]


def _unservable(problem: str) -> Unservable:
    return Unservable(f"{PROBE_FILE}: {problem}")
