"""Doubles every number of its input."""

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

FACTOR = np.float32(2)


class TritonPythonModel:
    def execute(self, requests: list[Any]) -> list[Any]:
        """INPUT FP32 [batch, n] to OUTPUT FP32 [batch, n]."""
        return [self.answer(request) for request in requests]

    def answer(self, request: Any) -> Any:
        numbers = pb_utils.get_input_tensor_by_name(request, "INPUT").as_numpy()
        output = pb_utils.Tensor("OUTPUT", numbers * FACTOR)
        return pb_utils.InferenceResponse(output_tensors=[output])
