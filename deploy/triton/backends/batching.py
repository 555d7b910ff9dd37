"""Answers the requests that reach a Python-based backend together.

Triton hands over what its batcher joined: one list of requests. They run as one if their shapes
allow it, and otherwise one by one, so that a request that the model refuses fails alone.

This file is put beside each backend's `model.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from implicit_state import Forgotten, SequenceStates
from signature import Arrays, Signature, model_shape

# Runs the model over input arrays for the named outputs; BYTES are object arrays of `bytes`.
Run = Callable[[Arrays, list[str]], Arrays]


class Refused(Exception):
    """The model cannot answer these inputs; the text says why."""

    # A name, since the stub adds TritonError to pb_utils only after a model is imported.
    code = "INVALID_ARG"


class Failed(Refused):
    """The model broke down on inputs that look right."""

    code = "INTERNAL"


@dataclass(frozen=True)
class _Asked:
    """A request, with its arrays as it sent them or as Triton added them."""

    request: Any
    arrays: Arrays
    wanted: list[str]

    @property
    def size(self) -> int:
        """The batch size of a request to a model that batches."""
        return int(next(iter(self.arrays.values())).shape[0])


class Batches:
    """Runs a model over batches of requests, and keeps the state of its sequences."""

    def __init__(self, config: dict[str, Any], signature: Signature, run: Run) -> None:
        self._signature = signature
        self._run = run
        self._states = SequenceStates(config.get("sequence_batching", {}))

    def execute(self, requests: list[Any]) -> list[Any]:
        """Return one response for each request, in their order."""
        if self._signature.batched and len(requests) > 1:
            try:
                return self._answer(requests)
            except Refused:
                pass
        return [self._alone(request) for request in requests]

    def _alone(self, request: Any) -> Any:
        if request.is_cancelled():
            return _error("the request was cancelled", "CANCELLED")
        try:
            (response,) = self._answer([request])
        except Refused as refusal:
            return _error(str(refusal), refusal.code)
        return response

    def _answer(self, requests: list[Any]) -> list[Any]:
        asked = [self._read(request) for request in requests]
        names = {name for one in asked for name in one.wanted}
        names.update(self._signature.state_outputs)
        produced = self._run(self._joined(asked), sorted(names))
        parts = {name: self._divided(name, array, asked) for name, array in produced.items()}
        for at, one in enumerate(asked):
            if self._signature.states:
                kept = {state.input: parts[state.output][at] for state in self._signature.states}
                self._states.after(one.request, kept)
        return [
            _response({name: parts[name][at] for name in one.wanted})
            for at, one in enumerate(asked)
        ]

    def _read(self, request: Any) -> _Asked:
        arrays: Arrays = {}
        for name, entry in self._signature.given.items():
            tensor = pb_utils.get_input_tensor_by_name(request, name)
            if tensor is not None:
                arrays[name] = tensor.as_numpy()
            elif not entry.get("optional"):
                raise Refused(f"input {name!r} is missing")
        if self._signature.states:
            try:
                arrays.update(self._states.before(request))
            except Forgotten as error:
                raise Refused(str(error)) from None
        # The outputs that the request names; all of them if it names none.
        named = set(request.requested_output_names())
        outputs = list(self._signature.outputs)
        return _Asked(request, arrays, [name for name in outputs if name in named] or outputs)

    def _joined(self, asked: Sequence[_Asked]) -> Arrays:
        """Return the model's inputs for these requests. Raises Refused if they do not fit."""
        first, *others = [self._fit(one) for one in asked]
        if any(fit != first for fit in others):
            raise Refused("the requests differ in shape")
        joined: Arrays = {}
        for name in asked[0].arrays:
            arrays = [one.arrays[name] for one in asked]
            if self._signature.ragged(name):
                arrays = [array.reshape(-1) for array in arrays]
            joined[name] = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        for batch_input in self._signature.batch_inputs:
            shapes = [_source(one, batch_input.source).shape for one in asked]
            joined.update(dict.fromkeys(batch_input.names, batch_input.array(shapes)))
        return joined

    def _fit(self, one: _Asked) -> dict[str, Any]:
        """Return what is the same for all requests of a batch."""
        return {
            name: (array.dtype, None if self._signature.ragged(name) else array.shape[1:])
            for name, array in one.arrays.items()
        }

    def _divided(self, name: str, array: np.ndarray, asked: Sequence[_Asked]) -> list[np.ndarray]:
        """Return each request's part of an output. Raises Refused if it has not as many."""
        if name in self._signature.scattered:
            return self._scattered(name, array, asked)
        if not self._signature.batched:
            return [array]
        sizes = [one.size for one in asked]
        if array.ndim == 0 or array.shape[0] != sum(sizes):
            raise Refused(
                f"output {name!r} has shape {list(array.shape)} for a batch of {sum(sizes)}: "
                "the model doesn't batch, so its max_batch_size has to be 0"
            )
        return np.split(array, np.cumsum(sizes)[:-1])

    def _scattered(self, name: str, array: np.ndarray, asked: Sequence[_Asked]) -> list[np.ndarray]:
        """Divide an output by the shapes of an input: its open dimensions are the input's."""
        dims = [*([-1] if self._signature.batched else []), *self._output_shape(name)]
        parts, flat, at = [], array.reshape(-1), 0
        for one in asked:
            given = _source(one, self._signature.scattered[name]).shape
            shape = [dim if dim != -1 else given[axis] for axis, dim in enumerate(dims)]
            end = at + int(np.prod(shape))
            if end > flat.size:
                raise Refused(f"output {name!r} has {flat.size} elements, too few for its requests")
            parts.append(flat[at:end].reshape(shape))
            at = end
        return parts

    def _output_shape(self, name: str) -> list[int]:
        return model_shape(self._signature.outputs[name])


def _source(one: _Asked, name: str) -> np.ndarray:
    if name not in one.arrays:
        raise Refused(f"input {name!r} is missing, which describes the batch")
    return one.arrays[name]


def _error(text: str, code: str) -> Any:
    error = pb_utils.TritonError(text, getattr(pb_utils.TritonError, code))
    return pb_utils.InferenceResponse(error=error)


def _response(arrays: Arrays) -> Any:
    tensors = [pb_utils.Tensor(name, np.asarray(a, order="C")) for name, a in arrays.items()]
    return pb_utils.InferenceResponse(output_tensors=tensors)
