"""A model's tensors as its config describes them: those of requests, and those that Triton adds.

This file is put beside each backend's `model.py`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]
Shape = tuple[int, ...]
Entries = dict[str, dict[str, Any]]

# The data types of batch inputs.
BATCH_TYPES = {"TYPE_FP32": np.float32, "TYPE_INT32": np.int32}


@dataclass(frozen=True)
class State:
    """A tensor that a sequence keeps between its requests: an output, then the next input."""

    input: str
    output: str


@dataclass(frozen=True)
class BatchInput:
    """Inputs that describe a batch by the shapes of its requests' tensors `source`.

    These shapes have the batch size as their first dimension.
    """

    names: tuple[str, ...]
    kind: str
    data_type: str
    source: str

    def array(self, shapes: Sequence[Shape]) -> np.ndarray:
        """Return the tensor for requests with these shapes of `source`."""
        counts = [int(np.prod(shape, dtype=np.int64)) for shape in shapes]
        values: Any
        match self.kind.removeprefix("BATCH_"):
            case "ELEMENT_COUNT":
                values = counts
            case "ACCUMULATED_ELEMENT_COUNT":
                values = np.cumsum(counts)
            case "ACCUMULATED_ELEMENT_COUNT_WITH_ZERO":
                values = np.cumsum([0, *counts])
            case "MAX_ELEMENT_COUNT_AS_SHAPE":
                values = np.zeros(max(counts))  # the shape alone has a meaning
            case "ITEM_SHAPE":
                values = [shape[1:] for shape in shapes for _ in range(shape[0])]
            case "ITEM_SHAPE_FLATTEN":
                values = [size for shape in shapes for size in shape[1:] * shape[0]]
        return np.asarray(values, BATCH_TYPES[self.data_type])


@dataclass(frozen=True)
class Signature:
    """A model's tensors. Those of `batched` models carry the batch as their first axis."""

    #: The config's own inputs and outputs, which requests have.
    inputs: Entries
    outputs: Entries
    batched: bool
    #: Inputs that Triton adds to each request: sequence controls, and the states' initial values.
    controls: Entries
    state_inputs: Entries
    states: tuple[State, ...]
    state_outputs: Entries
    #: Inputs and outputs that the backend makes from a batch.
    batch_inputs: tuple[BatchInput, ...]
    #: The input whose shape tells how each of these outputs is divided among the requests.
    scattered: dict[str, str]

    @classmethod
    def of(cls, config: dict[str, Any]) -> "Signature":
        sequences = config.get("sequence_batching", {})
        states = sequences.get("state", [])
        return cls(
            inputs=_by_name(config["input"]),
            outputs=_by_name(config["output"]),
            batched=config["max_batch_size"] > 0,
            controls=_by_name(_controls(sequences)),
            state_inputs=_by_name(_state_entry(state, "input_name") for state in states),
            states=tuple(State(state["input_name"], state["output_name"]) for state in states),
            state_outputs=_by_name(_state_entry(state, "output_name") for state in states),
            batch_inputs=tuple(_batch_input(entry) for entry in config.get("batch_input", [])),
            scattered={
                name: entry["source_input"][0]
                for entry in config.get("batch_output", [])
                for name in entry["target_name"]
            },
        )

    @property
    def given(self) -> Entries:
        """The inputs that come with each request."""
        return {**self.inputs, **self.controls, **self.state_inputs}

    @property
    def made(self) -> Entries:
        """The inputs that describe a batch."""
        return _by_name(
            {"name": name, "data_type": one.data_type}
            for one in self.batch_inputs
            for name in one.names
        )

    @property
    def produced(self) -> Entries:
        """All outputs that the model must have."""
        return {**self.state_outputs, **self.outputs}

    def ragged(self, name: str) -> bool:
        """Return whether an input's requests are joined in one axis, whatever their shapes."""
        return bool(self.given[name].get("allow_ragged_batch"))


def model_shape(entry: dict[str, Any]) -> list[int]:
    """Return the shape of a tensor as the model sees it, without the batch."""
    dims = entry["reshape"].get("shape", []) if "reshape" in entry else entry["dims"]
    return [int(dim) for dim in dims]


def parameters(config: dict[str, Any]) -> dict[str, str]:
    """Return the config's `parameters` by name."""
    return {name: value["string_value"] for name, value in config.get("parameters", {}).items()}


def boolean(text: str) -> bool:
    return text.strip().lower() in {"1", "true"}


def _by_name(entries: Iterable[dict[str, Any]]) -> Entries:
    return {entry["name"]: entry for entry in entries}


def _controls(sequences: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"name": entry["name"], "data_type": _control_type(control), "dims": [1]}
        for entry in sequences.get("control_input", [])
        for control in entry["control"]
    ]


def _control_type(control: dict[str, Any]) -> str:
    """Return the data type of a control, which its pair of values tells if it has one."""
    for kind in ("int32", "fp32", "bool"):
        if control.get(f"{kind}_false_true"):
            return f"TYPE_{kind.upper()}"
    return str(control["data_type"])


def _state_entry(state: dict[str, Any], key: str) -> dict[str, Any]:
    return {"name": state[key], "data_type": state["data_type"]}


def _batch_input(entry: dict[str, Any]) -> BatchInput:
    names, source = tuple(entry["target_name"]), entry["source_input"][0]
    return BatchInput(names, entry["kind"], entry["data_type"], source)
