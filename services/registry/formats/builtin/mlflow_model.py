"""MLflow's models: a file MLmodel that says in which forms the model is there."""

from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any, Final

import yaml

from services.registry.formats import known
from services.registry.formats.artifact import Artifact
from services.registry.formats.format import Described
from services.registry.formats.refusal import Refusal

name = "mlflow"
backend = ""
runs_code = ""

_FILE: Final = "MLmodel"
_MAX: Final = 2**20  # bytes
_MAX_TOKENS: Final = 200_000
_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# Flavours, with the keys under which each says where its files are: first those that run no code.
FLAVORS: Final[Mapping[str, tuple[str, ...]]] = {
    "onnx": ("data",),
    "tensorflow": ("saved_model_dir", "data"),
    "xgboost": ("data",),
    "lightgbm": ("data",),
    "transformers": ("model_binary", "data"),
    "sentence_transformers": ("data",),
    "pytorch": ("model_data", "data"),
    "sklearn": ("pickled_model", "data"),
}
_DEFAULTS: Final = {"transformers": "model", "sentence_transformers": "model.sentence_transformer"}


def detect(artifact: Artifact) -> bool:
    head = artifact.read(_FILE, _MAX)
    return b"flavors:" in head


def validate(artifact: Artifact) -> Described:
    flavors = _read(artifact).get("flavors")
    if not isinstance(flavors, dict) or not flavors:
        raise Refusal(f"{_FILE} names no flavors")
    refused: list[str] = []
    for flavor, keys in FLAVORS.items():
        if not isinstance(said := flavors.get(flavor), dict):
            continue
        path = _path(said, keys) or _DEFAULTS.get(flavor, "")
        inner = artifact.below(path)
        found = [one for one in known.formats() if one.name != name and one.detect(inner)]
        if not found:
            # A folder that holds one more, as PyTorch's data/model.pth.
            refused.append(
                f"{path[:100] or 'the folder'} of its flavor {flavor} has no known format"
            )
            continue
        described = found[0].validate(inner)
        return _wrapped(described, path, found[0].name, flavor, inner.name in artifact.files)
    if refused:
        raise Refusal("; ".join(refused))
    others = ", ".join(sorted(map(str, flavors))[:10])
    raise Refusal(
        f"{_FILE} has only the flavors {others}, of which Shoal knows none: log the model as one "
        f"of {', '.join(FLAVORS)}"
    )


def _wrapped(inner: Described, path: str, form: str, flavor: str, is_file: bool) -> Described:
    place = PurePosixPath(path)
    file = str(place.parent / inner.file if is_file else place / inner.file)
    return Described(
        inputs=inner.inputs,
        outputs=inner.outputs,
        batched=inner.batched,
        labels=inner.labels,
        notes=(f"MLflow's flavor {flavor}", *inner.notes),
        file="" if file == "." else file,
        code=inner.code,
        needs=inner.needs,
        inner=inner.inner or form,
        defaults=inner.defaults,
    )


def _read(artifact: Artifact) -> dict[str, Any]:
    text = artifact.text(_FILE, _MAX)
    try:
        for count, token in enumerate(yaml.scan(text)):
            if count > _MAX_TOKENS:
                raise Refusal(f"{_FILE} has more than {_MAX_TOKENS} words")
            if isinstance(token, yaml.AliasToken):
                raise Refusal(f"{_FILE} has aliases, which could make it endless")
        found = yaml.load(text, Loader=_LOADER)  # noqa: S506  (a safe loader)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise Refusal(f"{_FILE} is not YAML") from None
    if not isinstance(found, dict):
        raise Refusal(f"{_FILE} names no flavors")
    return found


def _path(said: Mapping[str, Any], keys: Iterable[str]) -> str:
    for key in keys:
        path = said.get(key)
        if isinstance(path, str) and path:
            if path.startswith("/") or ".." in PurePosixPath(path).parts:
                raise Refusal(f"{_FILE} names a file outside the folder: {path[:200]!r}")
            return path.strip("/")
    return ""
