"""MLflow models: which of their files Triton can serve."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

# What MLflow writes beside a model, for programs that are not Triton.
_OWN: Final = frozenset(
    {
        "MLmodel",
        "conda.yaml",
        "input_example.json",
        "python_env.yaml",
        "registered_model_meta",
        "requirements.txt",
        "serving_input_example.json",
    }
)


def servable(flavors: Mapping[str, Any], paths: Collection[str]) -> tuple[str, list[str]]:
    """Return the folder that is served ("" for the model's own), and the paths of its files.

    Of a model with the flavour `triton` it is the folder of that flavour, and of one with `onnx`
    the graph and the weights beside it. A model of other flavours is returned whole.
    """
    folder = _data(flavors, "triton")
    inside = [path for path in paths if path.startswith(f"{folder}/")]
    if folder and inside:
        return folder, inside
    if _data(flavors, "onnx") in paths:
        return "", [path for path in paths if not _is_own(path)]
    return "", list(paths)


def labels(tags: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return a user's tags as provenance, without those that MLflow sets itself."""
    return {f"tag.{key}": value for key, value in tags if not key.startswith("mlflow.")}


def _data(flavors: Mapping[str, Any], flavor: str) -> str:
    """Return the path that a flavour names as its data, or ""."""
    said = flavors.get(flavor)
    path = said.get("data") if isinstance(said, Mapping) else None
    return path.strip("/") if isinstance(path, str) else ""


def _is_own(path: str) -> bool:
    return path in _OWN or path.startswith("metadata/")
