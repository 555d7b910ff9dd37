"""XGBoost's models, in JSON or in its binary form (UBJSON)."""

import re
from typing import Any, Final

import orjson

from services.registry.formats.artifact import Artifact
from services.registry.formats.content import ubjson
from services.registry.formats.content.graphs import check_tree
from services.registry.formats.content.torch_files import one_of
from services.registry.formats.format import Described
from services.registry.formats.refusal import Refusal
from services.registry.formats.tensor import Tensor

name = "xgboost"
backend = ""
runs_code = ""

_MAX_JSON: Final = 200 * 2**20  # bytes
_MAX_BINARY: Final = 512 * 2**20  # bytes
_MAX_FEATURES: Final = 10_000_000
_JSON: Final = re.compile(rb'\s*\{\s*"(?:learner"|version"\s*:\s*\[[\d,\s]*\]\s*,\s*"learner")')
_BINARY: Final = re.compile(rb"\{(?:L\0{7}|i|U|l\0{3}|I\0)(?:\x07learner|\x07version)")


def detect(artifact: Artifact) -> bool:
    return bool(_found(artifact))


def validate(artifact: Artifact) -> Described:
    file = one_of(_found(artifact), "model.json", "XGBoost models")
    model = _parsed(artifact, file)
    try:
        learner = model["learner"]
        features = int(learner["learner_model_param"]["num_feature"])
        classes = int(learner["learner_model_param"].get("num_class", 0))
        objective = str(learner["objective"]["name"])
        booster = learner["gradient_booster"]
        trees = _trees(booster)
        for index, tree in enumerate(trees):
            left, right = tree["left_children"], tree["right_children"]
            if not all(isinstance(child, int) for child in (*left, *right)):
                raise TypeError
            check_tree(left, right, f"tree {index} in {file}")
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        raise Refusal(f"{file} is not a whole XGBoost model") from None
    if not 0 < features <= _MAX_FEATURES:
        raise Refusal(f"{file} says that it takes {features} features")
    return Described(
        inputs=(Tensor("input", "TYPE_FP32", (-1, features)),),
        batched=True,
        notes=(
            f"{booster.get('name')} with {len(trees)} trees",
            f"objective {objective[:100]}",
            *([f"{classes} classes"] if classes > 1 else []),
        ),
        file=file,
    )


def _found(artifact: Artifact) -> list[str]:
    return [one for one, head in artifact.heads(256) if _JSON.match(head) or _BINARY.match(head)]


def _parsed(artifact: Artifact, file: str) -> Any:
    if _BINARY.match(artifact.read(file, 256)):
        if artifact.files[file] > _MAX_BINARY:
            raise Refusal(f"{file} has {artifact.files[file]} bytes, more than {_MAX_BINARY}")
        with artifact.mapped(file) as content:
            return ubjson.parse(content, file)
    if artifact.files[file] > _MAX_JSON:
        raise Refusal(
            f"{file} has {artifact.files[file]} bytes of JSON, more than {_MAX_JSON}: save it as "
            ".ubj"
        )
    try:
        return orjson.loads(artifact.text(file, _MAX_JSON))
    except orjson.JSONDecodeError as error:
        raise Refusal(f"{file} is cut off or damaged: at character {error.pos}") from None


def _trees(booster: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the trees; DART keeps them one level deeper. Raises KeyError, TypeError."""
    if booster.get("name") == "gblinear":
        return []
    inner = booster["gbtree"] if booster.get("name") == "dart" else booster
    trees = inner["model"]["trees"]
    said = int(inner["model"]["gbtree_model_param"]["num_trees"])
    if not isinstance(trees, list) or len(trees) != said:
        raise ValueError
    return trees
