"""Answers with what it was sent.

Asked once when a server has started: a Python environment that doesn't suit the server (numpy 2
for a release built for numpy 1) loads every model without complaint and answers with empty tensors.
"""

from typing import Any

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests: list[Any]) -> list[Any]:
        """INPUT FP32 [n] to OUTPUT FP32 [n]."""
        return [self.answer(request) for request in requests]

    def answer(self, request: Any) -> Any:
        numbers = pb_utils.get_input_tensor_by_name(request, "INPUT").as_numpy()
        output = pb_utils.Tensor("OUTPUT", numbers)
        return pb_utils.InferenceResponse(output_tensors=[output])
