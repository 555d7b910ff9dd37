"""Secrets, masked in everything that is logged."""

import functools
import re
from collections.abc import Mapping
from typing import Any, Final

MASK: Final = "***"
_DEEPEST: Final = 8  # levels of nesting that are searched; deeper ones are left out

_SECRET_KEY: Final = re.compile(
    r"authorization|secret|passw(or)?d|admin[-_]key|api[-_]?key|private[-_]?key|credential|cookie"
    r"|(access|auth|bearer|id|refresh|session)[-_]token|^token$",
    re.IGNORECASE,
)
# `admin-key=…` in a command line, `authorization: Bearer …` in a header dump.
_ASSIGNED: Final = re.compile(
    r"((?:authorization|admin[-_]key|api[-_]?key|passw(?:or)?d|secret)[\"']?\s*[=:]\s*"
    r"[\"']?(?:(?:bearer|basic)\s+)?)[^\s\"',;]+",
    re.IGNORECASE,
)
_IN_URL: Final = re.compile(r"(://[^/\s:@]*:)[^/\s@]+@")


def masked(value: Any, depth: int = 0) -> Any:
    """Return a copy of `value` without secrets.

    Masked are values with a telling key (in mappings, and in pairs like those of metadata),
    passwords in URLs, and what a text assigns to a telling word.
    """
    if isinstance(value, str):
        return _in_text(value)
    if depth == _DEEPEST:
        return "…"
    if isinstance(value, Mapping):
        return {str(key): _kept(key, item, depth) for key, item in value.items()}
    if isinstance(value, list | tuple):
        if len(value) == 2 and isinstance(value[0], str) and _is_secret(value[0]):
            return [value[0], MASK]
        return [masked(item, depth + 1) for item in value]
    return value


def _kept(key: object, value: Any, depth: int) -> Any:
    if isinstance(key, str) and _is_secret(key):
        return MASK
    return masked(value, depth + 1)


@functools.lru_cache(1024)
def _is_secret(key: str) -> bool:
    return _SECRET_KEY.search(key) is not None


def _in_text(text: str) -> str:
    return _IN_URL.sub(rf"\1{MASK}@", _ASSIGNED.sub(rf"\1{MASK}", text))
