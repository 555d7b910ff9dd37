"""Names the most likely content type among the scores of the `magika` model."""

from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        labels = Path(args["model_repository"], args["model_version"], "labels.txt")
        self.labels = np.array(labels.read_bytes().split(), dtype=np.object_)

    def execute(self, requests: list[Any]) -> list[Any]:
        """SCORES FP32 [batch, 214] to LABEL BYTES [batch, 1] and SCORE FP32 [batch, 1]."""
        return [self.answer(request) for request in requests]

    def answer(self, request: Any) -> Any:
        scores = pb_utils.get_input_tensor_by_name(request, "SCORES").as_numpy()
        best = scores.argmax(axis=1)[:, np.newaxis]
        return pb_utils.InferenceResponse(
            output_tensors=[
                pb_utils.Tensor("LABEL", self.labels[best]),
                pb_utils.Tensor("SCORE", np.take_along_axis(scores, best, axis=1)),
            ]
        )
