"""What a model takes and returns, whatever its format."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tensor:
    """A model's input or output.

    `data_type` is Triton's name (TYPE_FP32). A -1 in `shape` is a size that the model leaves open.
    """

    name: str
    data_type: str
    shape: tuple[int, ...]
