"""`shoal infer`: one request to a model, as any client would send it."""

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from shoal.cli.connections import connected
from shoal.cli.output import Document, JsonFlag, print_json, printable
from shoal.cli.references import Reference, ReferenceArgument, parse_reference

if TYPE_CHECKING:
    from shoal.cli.tensors import InputSpec
    from shoal.client import Client, Result

_METADATA_TIMEOUT: Final = 15.0  # seconds


def infer(
    context: typer.Context,
    model: ReferenceArgument,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            metavar="NAME=VALUE",
            help="An input. VALUE is a file FILE.npy; or one number, which fills the tensor; or "
            "numbers separated by commas. For BYTES it is a text, or @FILE for the content of a "
            "file. Repeat it for further inputs, or with the same NAME for further elements.",
        ),
    ] = None,
    outputs: Annotated[
        list[str] | None,
        typer.Option(
            "--output",
            metavar="NAME",
            help="Return only this output. Can be repeated. All outputs are returned by default.",
        ),
    ] = None,
    timeout: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            min=0.001,
            help="Time to wait for the answer, including a load of the model.",
        ),
    ] = 60.0,
    trace: Annotated[
        bool, typer.Option("--trace", help="Trace the request, and print the ID of the trace.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Send one request to a model, through the Router, and print its answer.

    With `--json`, the answer is as in the KServe protocol: model_name, model_version and outputs
    (name, datatype, shape and flat data), with milliseconds and trace_id in addition.
    """
    reference = parse_reference(model)
    with connected(context) as shoal:
        tensors = _inputs_of(shoal, reference)
        arrays = _arrays(reference, inputs or [], tensors)
        trace_id = secrets.token_hex(16) if trace else None
        began = time.perf_counter()
        result = shoal.infer(
            reference.model,
            arrays,
            version=reference.version,
            outputs=outputs or (),
            headers=_traceparent(trace_id),
            timeout=timeout,
        )
        milliseconds = (time.perf_counter() - began) * 1000
    answer = _Answer(result, milliseconds, trace_id)
    if json:
        print_json(answer.as_json())
    else:
        answer.show()


def _inputs_of(shoal: "Client", model: Reference) -> dict[str, "InputSpec"]:
    """Return the model's inputs by name. Raises CallFailed."""
    from shoal.cli.tensors import InputSpec

    metadata = shoal.metadata(model.model, model.version, timeout=_METADATA_TIMEOUT)
    return {one.name: InputSpec(one.name, one.datatype, one.shape) for one in metadata.inputs}


def _arrays(
    model: Reference, inputs: list[str], tensors: Mapping[str, "InputSpec"]
) -> dict[str, Any]:
    """Return arrays from the --input options. Raises typer.BadParameter."""
    from shoal.cli.tensors import UnusableInput, parse_inputs

    if not inputs and tensors:
        wanted = ", ".join(map(str, tensors.values()))
        raise typer.BadParameter(f"{model} takes --input NAME=VALUE for each of {wanted}")
    try:
        return dict(parse_inputs(inputs, tensors))
    except UnusableInput as error:
        raise typer.BadParameter(str(error)) from error


def _traceparent(trace_id: str | None) -> dict[str, str]:
    """Return W3C trace context that has the request sampled."""
    return {} if trace_id is None else {"traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01"}


@dataclass(frozen=True)
class _Answer:
    result: "Result"
    milliseconds: float
    trace_id: str | None

    def as_json(self) -> Document:
        from shoal.cli.tensors import values_json
        from shoal.client.tensors import datatype_of

        return {
            "model_name": self.result.model,
            "model_version": self.result.version,
            "outputs": [
                {
                    "name": name,
                    "datatype": datatype_of(array),
                    "shape": list(array.shape),
                    "data": values_json(array),
                }
                for name, array in self.result.outputs.items()
            ],
            "milliseconds": round(self.milliseconds, 3),
            "trace_id": self.trace_id,
        }

    def show(self) -> None:
        from shoal.cli.tensors import lines
        from shoal.client.tensors import datatype_of

        version = f"{self.result.model}:{self.result.version}"
        print(f"{version} answered in {self.milliseconds:.1f} ms")
        for name, array in self.result.outputs.items():
            print(f"{printable(name)}  {datatype_of(array)} {list(array.shape)}")
            for line in lines(array):
                print(f"  {printable(line)}")
        if self.trace_id is not None:
            print(f"trace {self.trace_id}: `shoal trace {self.trace_id}` shows it")
