"""Answers the requests that reach a Python-based backend together.

Triton hands over what its batcher joined: one list of requests. They run as one when their shapes
allow it, and otherwise one by one, so that a request which the model refuses fails alone.

This file is put beside each backend's `model.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

Arrays = dict[str, np.ndarray]
# Runs the model over input arrays for the named outputs; BYTES are object arrays of `bytes`.
Run = Callable[[Arrays, list[str]], Arrays]


class Refused(Exception):
    """The model can't answer these inputs, and the text says why."""

    # A name, since the stub adds TritonError to pb_utils only after a model is imported.
    code = "INVALID_ARG"


class Failed(Refused):
    """The model broke down on inputs that look right."""

    code = "INTERNAL"


@dataclass(frozen=True)
class Signature:
    """A model's tensors by its config, where `batched` ones carry the batch as first axis."""

    inputs: dict[str, dict[str, Any]]
    outputs: dict[str, dict[str, Any]]
    batched: bool

    @classmethod
    def of(cls, config: dict[str, Any]) -> "Signature":
        return cls(
            inputs={entry["name"]: entry for entry in config["input"]},
            outputs={entry["name"]: entry for entry in config["output"]},
            batched=config["max_batch_size"] > 0,
        )


def parameters(config: dict[str, Any]) -> dict[str, str]:
    """The config's `parameters`, as text by name."""
    return {name: value["string_value"] for name, value in config.get("parameters", {}).items()}


def boolean(text: str) -> bool:
    return text.strip().lower() in {"1", "true"}


def execute(requests: list[Any], signature: Signature, run: Run) -> list[Any]:
    """One response for each request, in their order."""
    if signature.batched and len(requests) > 1:
        try:
            return _together(requests, signature, run)
        except Refused:
            pass
    return [_alone(request, signature, run) for request in requests]


def _alone(request: Any, signature: Signature, run: Run) -> Any:
    if request.is_cancelled():
        error = pb_utils.TritonError("the request was cancelled", pb_utils.TritonError.CANCELLED)
        return pb_utils.InferenceResponse(error=error)
    try:
        arrays = _read(request, signature)
        return _response(_run(arrays, _wanted(request, signature), signature, run))
    except Refused as refusal:
        error = pb_utils.TritonError(str(refusal), getattr(pb_utils.TritonError, refusal.code))
        return pb_utils.InferenceResponse(error=error)


def _together(requests: list[Any], signature: Signature, run: Run) -> list[Any]:
    reads = [_read(request, signature) for request in requests]
    shapes = [{name: (a.shape[1:], a.dtype) for name, a in read.items()} for read in reads]
    if any(shape != shapes[0] for shape in shapes):
        raise Refused("the requests differ in shape")
    wanted = [_wanted(request, signature) for request in requests]
    joined = {name: np.concatenate([read[name] for read in reads]) for name in reads[0]}
    names = sorted({name for names in wanted for name in names})
    produced = _run(joined, names, signature, run)
    ends = np.cumsum([_batch_size(read) for read in reads])[:-1]
    parts = {name: np.split(array, ends) for name, array in produced.items()}
    return [_response({name: parts[name][at] for name in names}) for at, names in enumerate(wanted)]


def _read(request: Any, signature: Signature) -> Arrays:
    arrays: Arrays = {}
    for name, entry in signature.inputs.items():
        tensor = pb_utils.get_input_tensor_by_name(request, name)
        if tensor is not None:
            arrays[name] = tensor.as_numpy()
        elif not entry.get("optional"):
            raise Refused(f"input {name!r} is missing")
    return arrays


def _run(arrays: Arrays, names: list[str], signature: Signature, run: Run) -> Arrays:
    produced = run(arrays, names)
    if signature.batched:
        size = _batch_size(arrays)
        for name, array in produced.items():
            if array.ndim == 0 or array.shape[0] != size:
                raise Refused(
                    f"output {name!r} has shape {list(array.shape)} for a batch of {size}: "
                    "the model doesn't batch, so its max_batch_size has to be 0"
                )
    return produced


def _wanted(request: Any, signature: Signature) -> list[str]:
    """The outputs the request asks for; all of them when it names none."""
    named = set(request.requested_output_names())
    return [name for name in signature.outputs if name in named] or list(signature.outputs)


def _batch_size(arrays: Arrays) -> int:
    return int(next(iter(arrays.values())).shape[0])


def _response(arrays: Arrays) -> Any:
    tensors = [pb_utils.Tensor(name, np.asarray(a, order="C")) for name, a in arrays.items()]
    return pb_utils.InferenceResponse(output_tensors=tensors)
