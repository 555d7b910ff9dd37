"""Models that are logged with MLflow: `python -m tests.support.mlflow_models URL`.

A program of its own, as a data scientist would run it.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import mlflow
import mlflow.onnx
import mlflow.pyfunc
import numpy as np
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec
from onnx import load_from_string

from tests.support.onnx_models import rows

SIGNATURE = ModelSignature(
    inputs=Schema([TensorSpec(np.dtype(np.float32), (-1, 4), "x")]),
    outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, 4), "y")]),
)


class Doubled(mlflow.pyfunc.PythonModel):  # type: ignore[misc]  # its stubs are not read
    def predict(self, context: Any, model_input: Any) -> Any:
        return model_input


def log_onnx(operator: str) -> None:
    with mlflow.start_run():
        mlflow.onnx.log_model(
            load_from_string(rows(operator)),
            name="model",
            signature=SIGNATURE,
            registered_model_name="fraud",
        )


def log_triton() -> None:
    """Log what NVIDIA's plugin logs: a model's folder, named by the flavour."""
    with tempfile.TemporaryDirectory() as folder, mlflow.start_run() as run:
        version = Path(folder, "ranker", "1")
        version.mkdir(parents=True)
        version.joinpath("model.onnx").write_bytes(rows())
        version.with_name("config.pbtxt").write_text('backend: "onnxruntime"')
        described = Model(artifact_path="model", run_id=run.info.run_id)
        described.add_flavor("triton", triton_version="2.51.0", data="ranker")
        described.save(str(Path(folder, "MLmodel")))
        mlflow.log_artifacts(folder, "model")
        mlflow.register_model(f"runs:/{run.info.run_id}/model", "ranker")


def log_python() -> None:
    with mlflow.start_run():
        mlflow.pyfunc.log_model(
            name="model", python_model=Doubled(), registered_model_name="doubled"
        )


def main(url: str) -> None:
    mlflow.set_tracking_uri(url)
    log_onnx("Identity")
    log_onnx("Neg")
    log_triton()
    log_python()
    client = mlflow.MlflowClient()
    client.set_registered_model_alias("fraud", "champion", "1")
    client.set_model_version_tag("fraud", "1", "team", "payments")


if __name__ == "__main__":
    main(sys.argv[1])
