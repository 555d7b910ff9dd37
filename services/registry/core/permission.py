"""Whether code that comes with a model may run, and what to say if it may not."""

from collections.abc import Collection, Mapping, Sequence
from typing import Final

#: What to do instead, by format.
SAFER: Final[Mapping[str, str]] = {
    "sklearn-pickle": "save it with skops, which runs nothing, or convert it to ONNX",
    "sklearn-skops": "train it with types of scikit-learn, numpy and scipy alone",
    "state-dict": "export it to ONNX or with torch.export, or save it as TorchScript",
    "torch-export": "save it again without objects of your own, or export it to ONNX",
    "transformers": "save its weights as safetensors, and take an architecture that is part of "
    "transformers",
    "sentence-transformers": "save its weights as safetensors, and take modules that are part of "
    "sentence-transformers",
    "python": "convert the model to ONNX, whose files run nothing of their own",
    "savedmodel": "save it without operations that reach files or code",
}
_SAFER_OTHERWISE: Final = "convert it to ONNX"

_SOURCES: Final[Mapping[str, str]] = {
    "file": "a folder of this host",
    "upload": "an upload",
    "https": "a web address",
    "hf": "a model hub",
    "oci": "a registry of images",
    "mlflow": "an MLflow server",
}


def refusal(name: str, runs: Sequence[str], scheme: str, allowed: Collection[str]) -> str:
    """Return why an artifact of the format `name` is refused, or "" if it is allowed.

    `runs` says what would run when it is opened; nothing runs if there is nothing in it. `allowed`
    are the schemes of sources whose code may run, and `scheme` is the artifact's.
    """
    if not runs or scheme in allowed:
        return ""
    where = _SOURCES.get(scheme, f"{scheme}://")
    return (
        f"opening it runs code that came with it: {'; '.join(runs)}. It comes from {where}, whose "
        f"code is not allowed to run here. Either {SAFER.get(name, _SAFER_OTHERWISE)}, or allow "
        f"code from {scheme!r} in SHOAL_REGISTRY_CODE_SOURCES"
    )
