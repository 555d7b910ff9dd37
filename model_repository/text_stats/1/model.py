"""Counts what is in texts."""

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests: list[Any]) -> list[Any]:
        """TEXT BYTES [n], UTF-8, to three outputs with a row for each text.

        COUNTS INT64 [n, 3]: characters, words, lines. ENTROPY FP32 [n]: bits per byte.
        LONGEST_WORD BYTES [n].
        """
        return [self.answer(request) for request in requests]

    def answer(self, request: Any) -> Any:
        raw = pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy()
        try:
            texts = [item.decode() for item in raw]
        except UnicodeDecodeError as cause:
            error = pb_utils.TritonError(f"TEXT: {cause}", pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=error)
        counts = [[len(text), len(text.split()), len(text.splitlines())] for text in texts]
        longest = [max(text.split(), key=len, default="").encode() for text in texts]
        tensors = {
            "COUNTS": np.array(counts, dtype=np.int64).reshape(-1, 3),
            "ENTROPY": np.array([entropy(item) for item in raw], dtype=np.float32),
            "LONGEST_WORD": np.array(longest, dtype=np.object_),
        }
        return pb_utils.InferenceResponse(
            output_tensors=[pb_utils.Tensor(name, array) for name, array in tensors.items()]
        )


def entropy(content: bytes) -> float:
    """Bits of information per byte, from 0 to 8."""
    if not content:
        return 0.0
    shares = np.bincount(np.frombuffer(content, dtype=np.uint8)) / len(content)
    shares = shares[shares > 0]
    return float(-(shares * np.log2(shares)).sum())
