"""Inference, health and metadata in Triton's protocol, at a Router or at a Triton server."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import grpc
from google.protobuf import json_format
from google.protobuf.message import DecodeError

from shoal.client import wire
from shoal.client.errors import Internal
from shoal.client.headers import Headers
from shoal.client.operations import Call, Operation

if TYPE_CHECKING:
    from shoal.client.tensors import Array

Parameter = bool | int | float | str

_FINAL: Final = "triton_final_response"
_INT64: Final = range(-(2**63), 2**63)


@dataclass(frozen=True, slots=True, eq=False)  # comparing arrays yields arrays
class Request:
    """A request for inference.

    Attributes:
        model: The model's name.
        inputs: Arrays by input name, or values that numpy can make arrays of: Python's numbers
            become INT64 and FP64, text and bytes become BYTES.
        version: A version or an alias; "" for the model's own choice (its traffic policy, else its
            default version).
        outputs: Names of the outputs to return, or a mapping of each name to the parameters of that
            output. Empty for all outputs.
        id: Returned with the answer.
        parameters: Further parameters of the request.
    """

    model: str
    inputs: Mapping[str, Any]
    version: int | str = ""
    outputs: Iterable[str] | Mapping[str, Mapping[str, Parameter]] = ()
    id: str = ""
    parameters: Mapping[str, Parameter] = field(default_factory=dict)

    def serialized(self, **more: Parameter) -> bytes:
        """Serialize the request as an `inference.ModelInferRequest`.

        Args:
            **more: Parameters in addition to the request's own.

        Raises:
            TypeError: The protocol has no datatype for an input, or no type for a parameter.
        """
        from shoal.client import tensors

        request = wire.message("ModelInferRequest")(
            model_name=self.model, model_version=str(self.version), id=self.id
        )
        _set(request.parameters, {**self.parameters, **more})
        wanted = self.outputs
        for name in wanted:
            output = request.outputs.add(name=name)
            if isinstance(wanted, Mapping):
                _set(output.parameters, wanted[name])
        given = [(name, tensors.encoded(name, value)) for name, value in self.inputs.items()]
        for name, tensor in given:
            request.inputs.add(name=name, datatype=tensor.datatype, shape=tensor.shape)
        return wire.request_bytes(request, (tensor.data for _, tensor in given))


@dataclass(frozen=True, slots=True, eq=False)  # comparing arrays yields arrays
class Result:
    """An answer. `result["NAME"]` is an output.

    Attributes:
        model: The name of the model that answered.
        version: The version that answered.
        outputs: Read-only arrays by output name. BYTES are object arrays of `bytes`. Each array
            keeps the whole answer in memory; `.copy()` it to change it or to keep it alone.
        id: The request's ID.
        parameters: Parameters of the answer.
    """

    model: str
    version: str
    outputs: "dict[str, Array]"
    id: str = ""
    parameters: dict[str, Parameter] = field(default_factory=dict)

    def __getitem__(self, output: str) -> "Array":
        return self.outputs[output]

    @property
    def final(self) -> bool:
        """True if this is the last answer to its request."""
        return self.parameters.get(_FINAL, True) is True


@dataclass(frozen=True, slots=True)
class TensorMetadata:
    """An input or an output of a model.

    Attributes:
        name: The tensor's name.
        datatype: Its datatype in Triton's protocol, such as FP32 or BYTES.
        shape: Its sizes, -1 where any size is accepted. Includes the batch dimension, if any.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """The inputs and outputs of a model.

    Attributes:
        name: The model's name.
        versions: The versions that can answer.
        platform: Triton's name of the model's framework.
        inputs: The inputs that a request must have.
        outputs: The outputs of an answer.
    """

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]


@dataclass(frozen=True, slots=True)
class ServerMetadata:
    """A server's description of itself.

    Attributes:
        name: The server's name.
        version: Its version.
        extensions: The extensions of the protocol that it supports.
    """

    name: str
    version: str
    extensions: tuple[str, ...]


# --- inference ------------------------------------------------------------------------------------


def infer(
    model: str,
    inputs: Mapping[str, Any],
    *,
    version: int | str = "",
    outputs: Iterable[str] | Mapping[str, Mapping[str, Parameter]] = (),
    id: str = "",  # noqa: A002
    parameters: Mapping[str, Parameter] | None = None,
    headers: Headers | None = None,
    timeout: float | None = None,
) -> Operation[Result]:
    """Send one request and return its answer. A model that is not in memory is loaded for it.

    Args:
        model: The model's name.
        inputs: Arrays by input name, or values that numpy can make arrays of: Python's numbers
            become INT64 and FP64, text and bytes become BYTES.
        version: A version or an alias; "" for the model's own choice (its traffic policy, else its
            default version).
        outputs: Names of the outputs to return, or a mapping of each name to the parameters of that
            output. Empty for all outputs.
        id: Returned with the answer.
        parameters: Further parameters of the request.
        headers: gRPC metadata.
        timeout: Seconds for everything, including loads and retries. None means the client's own.

    Returns:
        The answer, with its outputs as read-only arrays.

    Raises:
        CallFailed: The request was refused, or nobody answered.
        TypeError: The protocol has no datatype for one of the inputs.
    """
    request = Request(model, inputs, version, outputs, id, parameters or {})
    return (yield from answered(request.serialized(), headers=headers, timeout=timeout))


def answered(
    request: bytes, *, headers: Headers | None, timeout: float | None, repeatable: bool = True
) -> Operation[Result]:
    """Send a serialized ModelInferRequest and return its answer."""
    reply: bytes = yield Call("inference", "ModelInfer", request, timeout, headers, repeatable)
    return result(reply)


def result(response: bytes | memoryview) -> Result:
    """Return the answer in a serialized ModelInferResponse. Raises Internal if it is unreadable."""
    from shoal.client import tensors

    try:
        head, raw = wire.response_parts(response)
        if len(raw) != len(head.outputs):
            raise ValueError(f"{len(head.outputs)} outputs come with {len(raw)} raw contents")
        outputs = {
            output.name: tensors.decoded(output.datatype, tuple(output.shape), data)
            for output, data in zip(head.outputs, raw, strict=True)
        }
    except (DecodeError, ValueError, TypeError) as error:
        text = f"the answer cannot be read: {error}"
        raise Internal(grpc.StatusCode.INTERNAL, text) from error
    parameters = {name: _value(parameter) for name, parameter in head.parameters.items()}
    return Result(head.model_name, head.model_version, outputs, head.id, parameters)


# --- health and metadata --------------------------------------------------------------------------


def live(*, timeout: float | None = None) -> Operation[bool]:
    """Return whether the server is live.

    Args:
        timeout: Seconds for the call. None means the client's own.

    Raises:
        CallFailed: Nobody answered.
    """
    return bool((yield from _asked("ServerLive", timeout)).live)


def ready(
    model: str = "", version: int | str = "", *, timeout: float | None = None
) -> Operation[bool]:
    """Return whether a model can answer requests, in memory or not.

    Args:
        model: The model's name; "" asks whether the server is ready.
        version: A version or an alias; "" for the default version.
        timeout: Seconds for the call. None means the client's own.

    Raises:
        CallFailed: The call was refused, or nobody answered.
    """
    if not model:
        return bool((yield from _asked("ServerReady", timeout)).ready)
    return bool((yield from _asked("ModelReady", timeout, model, version)).ready)


def server_metadata(*, timeout: float | None = None) -> Operation[ServerMetadata]:
    """Return the server's name, version and protocol extensions.

    Args:
        timeout: Seconds for the call. None means the client's own.

    Raises:
        CallFailed: The call was refused, or nobody answered.
    """
    reply = yield from _asked("ServerMetadata", timeout)
    return ServerMetadata(reply.name, reply.version, tuple(reply.extensions))


def metadata(
    model: str, version: int | str = "", *, timeout: float | None = None
) -> Operation[ModelMetadata]:
    """Return a model's inputs and outputs, with their datatypes and shapes.

    Args:
        model: The model's name.
        version: A version or an alias; "" for the default version.
        timeout: Seconds for the call. None means the client's own.

    Raises:
        CallFailed: The call was refused, or nobody answered.
    """
    reply = yield from _asked("ModelMetadata", timeout, model, version)
    return ModelMetadata(
        reply.name,
        tuple(reply.versions),
        reply.platform,
        tuple(_tensor(one) for one in reply.inputs),
        tuple(_tensor(one) for one in reply.outputs),
    )


def config(
    model: str, version: int | str = "", *, timeout: float | None = None
) -> Operation[dict[str, Any]]:
    """Return a model's config.

    Args:
        model: The model's name.
        version: A version or an alias; "" for the default version.
        timeout: Seconds for the call. None means the client's own.

    Returns:
        The config with the keys of Triton's `ModelConfig`. 64-bit numbers are strings, as in
        protobuf's JSON.

    Raises:
        CallFailed: The call was refused, or nobody answered.
    """
    reply = yield from _asked("ModelConfig", timeout, model, version)
    found: dict[str, Any] = json_format.MessageToDict(
        reply.config, preserving_proto_field_name=True
    )
    return found


def _asked(
    method: str, timeout: float | None, model: str = "", version: int | str = ""
) -> Operation[Any]:
    about = {"name": model, "version": str(version)} if model else {}
    request = wire.message(f"{method}Request")(**about).SerializeToString()
    reply: bytes = yield Call("inference", method, request, timeout)
    try:
        return wire.message(f"{method}Response").FromString(reply)
    except DecodeError as error:
        text = f"the answer of {method} cannot be read: {error}"
        raise Internal(grpc.StatusCode.INTERNAL, text) from error


def _tensor(tensor: Any) -> TensorMetadata:
    return TensorMetadata(tensor.name, tensor.datatype, tuple(tensor.shape))


# --- parameters -----------------------------------------------------------------------------------


def _set(parameters: Any, values: Mapping[str, Parameter]) -> None:
    for name, value in values.items():
        match value:
            case bool():
                parameters[name].bool_param = value
            case int() if value in _INT64:
                parameters[name].int64_param = value
            case int():
                parameters[name].uint64_param = value
            case float():
                parameters[name].double_param = value
            case str():
                parameters[name].string_param = value
            case _:
                raise TypeError(
                    f"parameter {name} must be a bool, int, float or str, not "
                    f"{type(value).__name__}"
                )


def _value(parameter: Any) -> Parameter:
    chosen = parameter.WhichOneof("parameter_choice")
    value: Parameter = getattr(parameter, chosen) if chosen else ""
    return value
