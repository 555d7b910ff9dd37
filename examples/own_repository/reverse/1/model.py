"""Answers texts with their characters in reverse order."""

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests: list[Any]) -> list[Any]:
        """TEXT BYTES [n], UTF-8, to REVERSED BYTES [n]."""
        return [self.answer(request) for request in requests]

    def answer(self, request: Any) -> Any:
        texts = pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy()
        backwards = np.array([text.decode()[::-1].encode() for text in texts], dtype=np.object_)
        output = pb_utils.Tensor("REVERSED", backwards)
        return pb_utils.InferenceResponse(output_tensors=[output])
