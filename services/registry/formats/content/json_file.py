"""Small JSON files beside a model."""

from typing import Any, Final

import orjson

from services.registry.formats.artifact import Artifact
from services.registry.formats.refusal import Refusal

MAX_JSON: Final = 8 * 2**20  # bytes


def read(artifact: Artifact, name: str, most: int = MAX_JSON) -> Any:
    """Return what a file says. Raises Refusal."""
    try:
        return orjson.loads(artifact.text(name, most))
    except orjson.JSONDecodeError as error:
        raise Refusal(f"{name} is not JSON: see line {error.lineno}") from None


def read_object(artifact: Artifact, name: str, most: int = MAX_JSON) -> dict[str, Any]:
    """Return the object that a file holds. Raises Refusal."""
    found = read(artifact, name, most)
    if not isinstance(found, dict):
        raise Refusal(f"{name} is not an object")
    return found
