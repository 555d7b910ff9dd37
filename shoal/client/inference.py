"""Inference and what is asked about models, in Triton's protocol: at a Router or at a Triton."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import grpc
from google.protobuf import json_format
from google.protobuf.message import DecodeError

from shoal.client import messages
from shoal.client.errors import CallFailed, Internal
from shoal.client.steps import Call, Headers, Operation

if TYPE_CHECKING:
    from shoal.client.tensors import Array

SERVICE: Final = "inference.GRPCInferenceService"

Parameter = bool | int | float | str

_FINAL: Final = "triton_final_response"
_INT64: Final = range(-(2**63), 2**63)


@dataclass(frozen=True, slots=True, eq=False)  # arrays have no truth
class Request:
    """`inputs`: arrays by name, or what numpy makes arrays of. `version`: a number or an alias, ""
    for the model's own choice. `outputs`: the names of those that are wanted, or of each its
    parameters; none for all. `id`: comes back with the answer.
    """

    model: str
    inputs: Mapping[str, Any]
    version: int | str = ""
    outputs: Iterable[str] | Mapping[str, Mapping[str, Parameter]] = ()
    id: str = ""
    parameters: Mapping[str, Parameter] = field(default_factory=dict)

    def serialized(self, **more: Parameter) -> bytes:
        """As a ModelInferRequest; `more` are parameters too. Raises TypeError."""
        from shoal.client import tensors

        request = messages.message("ModelInferRequest")(
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
        return messages.request_bytes(request, (tensor.data for _, tensor in given))


@dataclass(frozen=True, slots=True, eq=False)  # arrays have no truth
class Result:
    """An answer. `version`: the one that answered. `outputs`: read-only arrays by name, which keep
    the whole answer in memory: `.copy()` one to change it, or to keep it alone.
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
        """Whether it is the last one to its request."""
        return self.parameters.get(_FINAL, True) is True


@dataclass(frozen=True, slots=True)
class TensorMetadata:
    """`shape`: -1 where any size is taken."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]


@dataclass(frozen=True, slots=True)
class ServerMetadata:
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
    """One request and its answer; a model that is not in memory is loaded for it.

    Arguments are as in Request. `headers`: gRPC metadata. `timeout`: seconds for everything, loads
    and repeats included; None: the client's own. Raises CallFailed, and TypeError for arrays that
    the protocol has no datatype for.
    """
    request = Request(model, inputs, version, outputs, id, parameters or {})
    return (yield from answered(request.serialized(), headers=headers, timeout=timeout))


def answered(
    request: bytes, *, headers: Headers | None, timeout: float | None, repeatable: bool = True
) -> Operation[Result]:
    """The answer to a serialized ModelInferRequest."""
    reply: bytes = yield Call("inference", "ModelInfer", request, timeout, headers, repeatable)
    return result(reply)


def result(response: bytes | memoryview) -> Result:
    """From a serialized ModelInferResponse. Raises CallFailed where it cannot be read."""
    from shoal.client import tensors

    try:
        head, raw = messages.response_parts(response)
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


# --- what there is --------------------------------------------------------------------------------


def live(*, timeout: float | None = None) -> Operation[bool]:
    """Whether the server answers at all. Raises CallFailed where nobody does."""
    return bool((yield from _asked("ServerLive", timeout)).live)


def ready(
    model: str = "", version: int | str = "", *, timeout: float | None = None
) -> Operation[bool]:
    """Whether the model can be asked, in memory or not; without a model, whether the server can."""
    if not model:
        return bool((yield from _asked("ServerReady", timeout)).ready)
    return bool((yield from _asked("ModelReady", timeout, model, version)).ready)


def server_metadata(*, timeout: float | None = None) -> Operation[ServerMetadata]:
    reply = yield from _asked("ServerMetadata", timeout)
    return ServerMetadata(reply.name, reply.version, tuple(reply.extensions))


def metadata(
    model: str, version: int | str = "", *, timeout: float | None = None
) -> Operation[ModelMetadata]:
    """What a model takes and gives."""
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
    """The model's config as Triton prints it in JSON; 64-bit numbers are strings."""
    reply = yield from _asked("ModelConfig", timeout, model, version)
    found: dict[str, Any] = json_format.MessageToDict(
        reply.config, preserving_proto_field_name=True
    )
    return found


def _asked(
    method: str, timeout: float | None, model: str = "", version: int | str = ""
) -> Operation[Any]:
    about = {"name": model, "version": str(version)} if model else {}
    request = messages.message(f"{method}Request")(**about).SerializeToString()
    reply: bytes = yield Call("inference", method, request, timeout)
    try:
        return messages.message(f"{method}Response").FromString(reply)
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
                    f"parameter {name}: {type(value).__name__} is no bool, int, float, str"
                )


def _value(parameter: Any) -> Parameter:
    chosen = parameter.WhichOneof("parameter_choice")
    value: Parameter = getattr(parameter, chosen) if chosen else ""
    return value


def failure_in_stream(text: str, id_: str, address: str) -> CallFailed:
    """An error that came as a stream's answer, where Triton gives no status."""
    return CallFailed(
        grpc.StatusCode.UNKNOWN, text, metadata={"id": id_} if id_ else None, address=address
    )
