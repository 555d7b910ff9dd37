"""Tensors in JSON and in bytes, and the messages of Triton's protocol that carry them."""

from collections.abc import Mapping, Sequence
from itertools import islice
from math import prod
from typing import Any, Final, NamedTuple

import numpy as np
from tritonclient.grpc import service_pb2

from services.router.core.rest.infer import SIZES, Infer, Input, Output, RegionPart, Scalar
from services.router.core.rest.values import INTERNAL, INVALID, WrongRequest
from services.router.core.wire import framing
from services.router.rest.documents import NonFinite, is_finite
from shoal.tensors import pack_elements, unpack_elements

Array = np.ndarray[Any, Any]

DTYPES: Final[Mapping[str, Any]] = {
    "BOOL": np.bool_,
    **{name: getattr(np, name.lower()) for name in SIZES if "INT" in name},
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
}  # numpy has no BF16

_INT64: Final = 2**63
_FINAL: Final = "triton_final_response"  # only replies on gRPC streams have it


# --- requests -------------------------------------------------------------------------------------


def message(model: str, version: str, infer: Infer, binary: memoryview) -> bytes:
    """Return a serialized ModelInferRequest. `binary` is the part of the body after the JSON.
    Raises WrongRequest."""
    try:
        return _message(model, version, infer, binary)
    except UnicodeEncodeError as error:
        text = "names, parameters and the id have to be UTF-8; only elements of BYTES may be other"
        raise WrongRequest(INVALID, text) from error


def _message(model: str, version: str, infer: Infer, binary: memoryview) -> bytes:
    request = service_pb2.ModelInferRequest(model_name=model, model_version=version, id=infer.id)
    for name, value in infer.parameters.items():
        set_parameter(request.parameters[name], name, value)
    contents: list[bytes | memoryview] = []
    position = 0
    for one in infer.inputs:
        tensor = request.inputs.add(name=one.name, datatype=one.datatype, shape=one.shape)
        if one.region is not None:
            _set_region(tensor, one.region)
        elif one.size is not None:
            content = binary[position : position + one.size]
            position += len(content)
            if len(content) < one.size:
                raise WrongRequest(
                    INVALID,
                    f"unexpected size for input '{one.name}', expecting "
                    f"{one.size - len(content)} additional bytes for model '{model}'",
                )
            contents.append(content)
        else:
            contents.append(encoded_elements(one))
    if position != len(binary):
        raise WrongRequest(INVALID, f"unexpected additional input data for model '{model}'")
    for wanted in infer.outputs:
        output = request.outputs.add(name=wanted.name)
        if wanted.region is not None:
            _set_region(output, wanted.region)
        elif wanted.classes:
            output.parameters["classification"].int64_param = _int64(wanted.classes)
    return framing.with_raw_inputs(request.SerializeToString(), contents)


def set_parameter(parameter: Any, name: str, value: Scalar) -> None:
    """Set an inference.InferParameter, in the kind that Triton wants for that name."""
    if isinstance(value, bool):
        parameter.bool_param = value
    elif isinstance(value, int):
        if name == "priority":
            parameter.uint64_param = value
        else:
            parameter.int64_param = _int64(value)
    elif isinstance(value, float):
        parameter.double_param = value
    else:
        parameter.string_param = value


def encoded_elements(one: Input) -> bytes:
    """Return the elements of an input that came as JSON, as they lie in memory."""
    flat = one.elements or []
    if one.datatype == "BYTES":
        return pack_elements(map(_bytes, flat))
    wide = {"U": np.uint64, "I": np.int64}.get(one.datatype[0])
    with np.errstate(over="ignore"):
        if one.datatype == "BF16":
            bits = np.array(flat, np.float32).view(np.uint32)
            return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16).tobytes()
        if wide is not None:  # wraps, as a cast in C++
            return np.array(flat, wide).astype(DTYPES[one.datatype]).tobytes()
        return np.array(flat, DTYPES[one.datatype]).tobytes()


def _bytes(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise WrongRequest(INTERNAL, f"a string is no UTF-8: {error}") from error


def _set_region(tensor: Any, region: RegionPart) -> None:
    tensor.parameters["shared_memory_region"].string_param = region.name
    tensor.parameters["shared_memory_byte_size"].int64_param = _int64(region.size)
    if region.offset:
        tensor.parameters["shared_memory_offset"].int64_param = _int64(region.offset)


def _int64(value: int) -> int:
    return value if value < _INT64 else value - 2 * _INT64


# --- answers --------------------------------------------------------------------------------------


class Decoded(NamedTuple):
    """A ModelInferResponse and its raw tensors, in the order of its outputs."""

    response: Any
    contents: Sequence[memoryview]

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(map(len, self.contents))


def decoded(raw: bytes) -> Decoded:
    """Split a serialized ModelInferResponse."""
    head, contents = framing.split_raw_outputs(raw)
    return Decoded(service_pb2.ModelInferResponse.FromString(head), contents)


def json_size(answer: Decoded, infer: Infer) -> int:
    """Return the bytes of those tensors that `json_parts` puts into JSON."""
    wanted = {output.name: output for output in infer.outputs}
    return sum(
        len(content)
        for output, content in zip(answer.response.outputs, answer.contents, strict=False)
        if _is_json(wanted.get(output.name), infer)
    )


def _is_json(asked: Output | None, infer: Infer) -> bool:
    if asked is None:
        return not infer.binary
    return asked.region is None and not asked.binary


def json_parts(answer: Decoded, infer: Infer) -> tuple[dict[str, Any], list[memoryview]]:
    """Return an answer's JSON, and the binary part that follows it. Raises WrongRequest."""
    response = answer.response
    document: dict[str, Any] = {}
    if response.id:
        document["id"] = response.id
    document["model_name"] = response.model_name
    document["model_version"] = response.model_version
    if response.parameters:
        document["parameters"] = {
            name: scalar_of(value) for name, value in sorted(response.parameters.items())
        }
    wanted = {output.name: output for output in infer.outputs}
    outputs: list[dict[str, Any]] = []
    binary: list[memoryview] = []
    for output, content in zip(response.outputs, answer.contents, strict=False):
        asked = wanted.get(output.name)
        one: dict[str, Any] = {
            "name": output.name,
            "datatype": output.datatype,
            "shape": list(output.shape),
        }
        if _is_json(asked, infer):
            one["data"] = in_json(output.name, output.datatype, output.shape, content)
        elif asked is None or asked.region is None:
            one["parameters"] = {"binary_data_size": len(content)}
            if len(content):
                binary.append(content)
        outputs.append(one)
    document["outputs"] = outputs
    return document, binary


def flattened(answer: Decoded) -> dict[str, Any]:
    """Return an answer as one object with members by name. A tensor with one element is that
    element. Raises WrongRequest."""
    response = answer.response
    document: dict[str, Any] = {
        "model_name": response.model_name,
        "model_version": response.model_version,
    }
    if response.id:
        document["id"] = response.id
    for name, parameter in response.parameters.items():
        if name != _FINAL:
            document.setdefault(name, scalar_of(parameter))
    for output, content in zip(response.outputs, answer.contents, strict=False):
        data = in_json(output.name, output.datatype, output.shape, content)
        document.setdefault(output.name, _single(data) if prod(output.shape) == 1 else data)
    return dict(sorted(document.items()))


def _single(data: Any) -> Any:
    return NonFinite(data.array[0]) if isinstance(data, NonFinite) else data[0]


def scalar_of(parameter: Any) -> Any:
    """Return the value of an inference.InferParameter."""
    return getattr(parameter, parameter.WhichOneof("parameter_choice") or "int64_param")


def in_json(name: str, datatype: str, shape: Sequence[int], content: memoryview) -> Any:
    """Return the elements, flat, as `documents.dumps` writes them. Raises WrongRequest."""
    count = prod(shape)
    if datatype == "BYTES":
        return [
            text.decode("utf-8", "surrogateescape")
            for text in decoded_bytes_elements(name, count, content)
        ]
    if datatype in ("FP16", "BF16"):
        raise WrongRequest(
            INVALID,
            f"sending {datatype} data via JSON is not supported. Please use the binary data "
            "format for output",
        )
    elements = _elements(name, datatype, count, content)
    if datatype.startswith("FP"):
        elements = elements.astype(np.float64)  # as Triton writes them
    return for_json(elements)


def for_json(array: Array) -> Array | NonFinite:
    """Return an array, or an element of one, as `documents.dumps` takes it."""
    return array if is_finite(array) else NonFinite(array)


def decoded_bytes_elements(name: str, count: int, content: memoryview) -> list[bytes]:
    """Return the elements of a BYTES tensor. Raises WrongRequest."""
    try:
        found = list(islice(unpack_elements(content), count))
    except ValueError:
        raise _size_mismatch(name) from None
    if len(found) < count:
        raise _size_mismatch(name)
    return found


def array(name: str, datatype: str, shape: Sequence[int], content: memoryview) -> Array:
    """Return a tensor as a numpy array: BYTES as objects, BF16 as float32. Raises WrongRequest."""
    if datatype == "BYTES":
        made = np.empty(prod(shape), np.object_)
        made[:] = decoded_bytes_elements(name, prod(shape), content)
        return made.reshape(shape)
    return _elements(name, datatype, prod(shape), content).reshape(shape)


def _elements(name: str, datatype: str, count: int, content: memoryview) -> Array:
    if len(content) != count * SIZES.get(datatype, -1):
        raise _size_mismatch(name)
    if datatype == "BF16":
        return (np.frombuffer(content, np.uint16).astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(content, DTYPES[datatype])


def _size_mismatch(name: str) -> WrongRequest:
    return WrongRequest(INTERNAL, f"output tensor shape does not match size of output for '{name}'")
