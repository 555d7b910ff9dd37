"""Turns the content of a file into the features that the `magika` model takes."""

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

BLOCK = 4096  # bytes looked at, from each end
SIDE = 1024  # features kept, from each end
PADDING = 256  # one above every byte


class TritonPythonModel:
    def execute(self, requests: list[Any]) -> list[Any]:
        """CONTENT BYTES [batch, 1] to FEATURES INT32 [batch, 2048]."""
        return [self.answer(request) for request in requests]

    def answer(self, request: Any) -> Any:
        contents = pb_utils.get_input_tensor_by_name(request, "CONTENT").as_numpy()
        rows = np.stack([features(content) for content in contents[:, 0]])
        return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("FEATURES", rows)])


def features(content: bytes) -> np.ndarray:
    """INT32 [2048]: the first and the last 1024 bytes, white space at either end left out."""
    row = np.full(2 * SIDE, PADDING, dtype=np.int32)
    start = content[:BLOCK].lstrip()[:SIDE]
    end = content[-BLOCK:].rstrip()[-SIDE:]
    row[: len(start)] = np.frombuffer(start, dtype=np.uint8)
    row[2 * SIDE - len(end) :] = np.frombuffer(end, dtype=np.uint8)
    return row
