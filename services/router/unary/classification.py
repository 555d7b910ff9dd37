"""Refuses to classify outputs that cannot be classified.

A Triton asked for the classes of text crashes (seen on release 24.10): it divides by the size of an
element, which is 0."""

from typing import Any, Final

from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from services.router.control.model_info import datatype
from services.router.core.errors import NoClasses
from shoal.protobuf import Malformed

_NONE: Final = frozenset({"BYTES", "BOOL", "FP16", "BF16"})
_PARAMETER: Final = "classification"


def check(message: bytes, config: Any) -> None:
    """Raises NoClasses if a serialized ModelInferRequest asks for the classes of an output that has
    none, and Malformed if protobuf cannot read it. `config` is an inference.ModelConfig."""
    try:
        request: Any = service_pb2.ModelInferRequest.FromString(message)
    except DecodeError as error:
        raise Malformed(f"an output is none: {error}") from error
    datatypes = {output.name: datatype(output.data_type) for output in config.output}
    for output in request.outputs:
        found = datatypes.get(output.name, "")
        if found in _NONE and _PARAMETER in output.parameters:
            raise NoClasses(datatype=found)
