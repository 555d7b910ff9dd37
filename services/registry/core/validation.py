"""What callers may write into requests. Each function returns a checked value or raises."""

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import PurePath
from typing import Final

from services.common.errors import InvalidField, InvalidName, InvalidVersion
from shoal import names
from shoal.names import ModelVersionName

MAX_DESCRIPTION: Final = 4096  # characters
MAX_LABELS: Final = 64
MAX_LABEL_VALUE: Final = 1024  # characters
MAX_TOKEN: Final = 128  # characters of a request id, a holder, an incarnation, a Router
MAX_FOLLOWERS: Final = 1000
MAX_TTL_SECONDS: Final = 3600
MAX_BYTES: Final = 2**63 - 1

_LABEL_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./-]{0,127}")
_RESOURCE = re.compile(r"ram|gpu:(0|[1-9][0-9]{0,3})")


def model_name(field: str, text: str) -> str:
    """Return the model of ``models/{model}``. Raises InvalidName."""
    model = names.parse_model_name(text)
    if model is None:
        raise InvalidName(field, text)
    return model


def version_name(field: str, text: str) -> ModelVersionName:
    """Parse a version's resource name.

    Raises InvalidName, or InvalidVersion when only the version is wrong.
    """
    version = names.parse_version_name(text)
    if version is not None:
        return version
    match text.split("/"):
        case ["models", model, "versions", number] if names.is_model_name(model):
            raise InvalidVersion(version=number[:64], model=model)
    raise InvalidName(field, text)


def alias_name(field: str, text: str) -> tuple[str, str]:
    """Return model and alias. Raises InvalidName, also for an alias that looks like a version."""
    alias = names.parse_alias_name(text)
    if alias is None:
        raise InvalidName(field, text)
    return alias


def policy_name(field: str, text: str) -> str:
    """Return the model of ``models/{model}/trafficPolicy``. Raises InvalidName."""
    model = names.parse_policy_name(text)
    if model is None:
        raise InvalidName(field, text)
    return model


def version_number(model: str, number: int) -> int:
    """Check that a version is at least 1. Raises InvalidVersion."""
    if number < 1:
        raise InvalidVersion(version=number, model=model)
    return number


def update_mask(paths: Collection[str], allowed: Collection[str]) -> frozenset[str]:
    """Return the fields to change; ``*`` stands for all. Raises InvalidField."""
    choice = f"name some of {', '.join(sorted(allowed))}, or *"
    if not paths:
        raise InvalidField(field="update_mask", problem=f"it is empty: {choice}")
    for path in paths:
        if path != "*" and path not in allowed:
            raise InvalidField(field="update_mask", problem=f"{path[:128]!r} is unknown: {choice}")
    return frozenset(allowed) if "*" in paths else frozenset(paths)


def description(text: str) -> str:
    """Check the length of a description. Raises InvalidField."""
    return bounded("model.description", text)


def bounded(field: str, text: str) -> str:
    """Check the length of a text for people. Raises InvalidField."""
    if len(text) > MAX_DESCRIPTION:
        raise InvalidField(
            field=field,
            problem=f"{len(text)} characters are more than the {MAX_DESCRIPTION} allowed",
        )
    return text


def labels(given: Mapping[str, str]) -> dict[str, str]:
    """Return a model's labels in the order of keys. Raises InvalidField."""
    if len(given) > MAX_LABELS:
        raise InvalidField(
            field="model.labels", problem=f"{len(given)} are more than the {MAX_LABELS} allowed"
        )
    for key, value in given.items():
        if _LABEL_KEY.fullmatch(key) is None:
            raise InvalidField(
                field="model.labels",
                problem=f"the key {key[:128]!r} is not 1 to 128 letters, digits, '_', '.', '/', "
                "'-' that start with a letter or digit",
            )
        if len(value) > MAX_LABEL_VALUE:
            raise InvalidField(
                field=f"model.labels[{key}]",
                problem=f"the value is longer than {MAX_LABEL_VALUE} characters",
            )
    return dict(sorted(given.items()))


def memory(field: str, given: Mapping[str, int]) -> dict[str, int]:
    """Return bytes by resource. Raises InvalidField."""
    for resource, size in given.items():
        if _RESOURCE.fullmatch(resource) is None:
            raise InvalidField(
                field=field, problem=f"{resource[:64]!r} is not 'ram' or 'gpu:' and a number"
            )
        if not 0 <= size <= MAX_BYTES:
            raise InvalidField(field=f"{field}[{resource}]", problem=f"{size} bytes is negative")
    return dict(sorted(given.items()))


def folder(field: str, text: str) -> str:
    """Check that a path is absolute. Raises InvalidField."""
    if not PurePath(text).is_absolute() or "\0" in text:
        raise InvalidField(
            field=field, problem=f"{text[:512]!r} is not an absolute path on the Registry's host"
        )
    return text


def token(field: str, text: str, *, required: bool = False) -> str:
    """Check the length of a caller's token, which is opaque here. Raises InvalidField."""
    if required and not text:
        raise InvalidField(field=field, problem="it is empty")
    if len(text) > MAX_TOKEN:
        raise InvalidField(field=field, problem=f"it is longer than {MAX_TOKEN} characters")
    return text


def ttl_us(nanoseconds: int) -> int:
    """Return a lease's ttl in microseconds. Raises InvalidField."""
    if not 1_000_000 <= nanoseconds <= MAX_TTL_SECONDS * 1_000_000_000:
        raise InvalidField(
            field="ttl",
            problem=f"{nanoseconds / 1e9} s is not between 0.001 and {MAX_TTL_SECONDS}",
        )
    return nanoseconds // 1000


def followers(routers: Collection[str]) -> tuple[str, ...]:
    """Check the names of the Routers that follow a Controller. Raises InvalidField."""
    if len(routers) > MAX_FOLLOWERS:
        raise InvalidField(
            field="followers.routers",
            problem=f"{len(routers)} are named, and {MAX_FOLLOWERS} may be",
        )
    return tuple(token("followers.routers", router, required=True) for router in routers)


def requirements(text: str) -> Iterable[tuple[str, int]]:
    """Parse ``a, b:2`` into models and versions, 0 where none is named. Raises InvalidField."""
    for word in filter(None, (item.strip() for item in text.split(","))):
        model, colon, number = word.partition(":")
        version = names.parse_version(number.strip()) if colon else 0
        if not names.is_model_name(model.strip()) or version is None:
            raise InvalidField(
                field="parameters[shoal.requires]",
                problem=f"{word[:256]!r} is not MODEL or MODEL:VERSION",
            )
        yield model.strip(), version
