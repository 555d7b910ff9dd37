"""`shoal infer`: one request, as any client of Triton would send it."""

import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from shoal.cli.calling import addresses, reported
from shoal.cli.output import Document, JsonFlag, print_json, printable
from shoal.cli.units import Unit, UnitArgument, parse_unit

if TYPE_CHECKING:
    from shoal.cli.tensors import Tensor

_METADATA_TIMEOUT: Final = 15.0  # seconds
_OPTIONS: Final = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
)


def infer(
    context: typer.Context,
    model: UnitArgument,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            metavar="NAME=VALUE",
            help="VALUE is FILE.npy; or a number (it fills the tensor) or numbers with commas; for "
            "BYTES a text, or @FILE for a file's content. Repeat it for more inputs, or with the "
            "same NAME for more elements.",
        ),
    ] = None,
    outputs: Annotated[
        list[str] | None,
        typer.Option("--output", metavar="NAME", help="Answer with this one only; repeatable."),
    ] = None,
    timeout: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", min=0.001, help="Time for the answer, a load that it needs included."
        ),
    ] = 60.0,
    trace: Annotated[
        bool, typer.Option("--trace", help="Have it traced, and print the trace's ID.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Ask a model, through the Router.

    JSON is as in the KServe protocol: model_name, model_version, outputs (name, datatype, shape,
    flat data); beside them milliseconds and trace_id.
    """
    unit = parse_unit(model)
    with _router(context) as stub:
        tensors = _signature(stub, unit)
        arrays = _arrays(unit, inputs or [], tensors)
        trace_id = secrets.token_hex(16) if trace else None
        request = _request(unit, tensors, arrays, outputs or [])
        began = time.perf_counter()
        response = stub.ModelInfer(request, timeout=timeout, metadata=_traceparent(trace_id))
        milliseconds = (time.perf_counter() - began) * 1000
    answer = _Answer(response, milliseconds, trace_id)
    if json:
        print_json(answer.as_json())
    else:
        answer.show()


@contextmanager
def _router(context: typer.Context) -> Iterator[Any]:
    """The stub of Triton's protocol; a call that fails ends the command."""
    import grpc
    from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

    from shoal.client import CallFailed

    at = addresses(context)
    with reported(at), grpc.insecure_channel(at.router, options=_OPTIONS) as channel:
        try:
            yield GRPCInferenceServiceStub(channel)
        except grpc.RpcError as error:
            raise CallFailed.of(error, at.router) from error


def _signature(stub: Any, model: Unit) -> dict[str, "Tensor"]:
    """The model's inputs by name."""
    from tritonclient.grpc.service_pb2 import ModelMetadataRequest

    from shoal.cli.tensors import Tensor

    request = ModelMetadataRequest(name=model.model, version=model.version)
    reply = stub.ModelMetadata(request, timeout=_METADATA_TIMEOUT)
    return {one.name: Tensor(one.name, one.datatype, tuple(one.shape)) for one in reply.inputs}


def _arrays(model: Unit, inputs: list[str], tensors: Mapping[str, "Tensor"]) -> dict[str, Any]:
    from shoal.cli.tensors import UnusableInput, parse_inputs

    if not inputs and tensors:
        wanted = ", ".join(map(str, tensors.values()))
        raise typer.BadParameter(f"{model} takes --input NAME=VALUE for each of {wanted}")
    try:
        return dict(parse_inputs(inputs, tensors))
    except UnusableInput as error:
        raise typer.BadParameter(str(error)) from error


def _request(
    model: Unit, tensors: Mapping[str, "Tensor"], arrays: Mapping[str, Any], outputs: list[str]
) -> Any:
    from tritonclient.grpc.service_pb2 import ModelInferRequest

    from shoal.cli.tensors import serialized

    request = ModelInferRequest(model_name=model.model, model_version=model.version)
    for name, array in arrays.items():
        datatype = tensors[name].datatype
        request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        request.raw_input_contents.append(serialized(array, datatype))
    for name in outputs:
        request.outputs.add(name=name)
    return request


def _traceparent(trace_id: str | None) -> tuple[tuple[str, str], ...]:
    """W3C trace context, sampled."""
    return (
        () if trace_id is None else (("traceparent", f"00-{trace_id}-{secrets.token_hex(8)}-01"),)
    )


class _Answer:
    def __init__(self, response: Any, milliseconds: float, trace_id: str | None) -> None:
        from tritonclient.grpc import InferResult

        self._response = response
        self._result = InferResult(response)
        self._milliseconds = milliseconds
        self._trace_id = trace_id

    def as_json(self) -> Document:
        from shoal.cli.tensors import values_json

        return {
            "model_name": self._response.model_name,
            "model_version": self._response.model_version,
            "outputs": [
                {
                    "name": output.name,
                    "datatype": output.datatype,
                    "shape": list(output.shape),
                    "data": values_json(self._result.as_numpy(output.name)),
                }
                for output in self._response.outputs
            ],
            "milliseconds": round(self._milliseconds, 3),
            "trace_id": self._trace_id,
        }

    def show(self) -> None:
        from shoal.cli.tensors import lines

        version = f"{self._response.model_name}:{self._response.model_version}"
        print(f"{version} answered in {self._milliseconds:.1f} ms")
        for output in self._response.outputs:
            print(f"{printable(output.name)}  {output.datatype} {list(output.shape)}")
            for line in lines(self._result.as_numpy(output.name)):
                print(f"  {printable(line)}")
        if self._trace_id is not None:
            print(f"trace {self._trace_id}: `shoal trace {self._trace_id}` shows it")
