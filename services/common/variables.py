"""Environment variables that are read before a service has read its settings."""

import os
from collections.abc import Sequence
from typing import Final

OTLP_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


class BadVariable(ValueError):
    """A variable has an unusable value; the text names it and says what is allowed."""


def text(name: str) -> str | None:
    """Return the variable's value without surrounding blanks, or None if it is unset or empty."""
    return os.environ.get(name, "").strip() or None


def choice(name: str, allowed: Sequence[str], default: str) -> str:
    """Return one of `allowed`, whichever case it is written in. Raises BadVariable."""
    value = (text(name) or default).lower()
    if value not in allowed:
        raise BadVariable(f"{name}={value!r} is unknown: use one of {', '.join(allowed)}")
    return value


def flag(name: str) -> bool:
    """Return whether the variable says "true"; the default is "false". Raises BadVariable."""
    return choice(name, ("true", "false"), "false") == "true"


def ratio(name: str, default: float) -> float:
    """Return a number from 0 to 1. Raises BadVariable."""
    value = text(name)
    try:
        number = default if value is None else float(value)
    except ValueError:
        number = -1.0
    if not 0.0 <= number <= 1.0:
        raise BadVariable(f"{name}={value!r} is not a number from 0 to 1")
    return number


def count(name: str, default: int) -> int:
    """Return a whole number from 1 up. Raises BadVariable."""
    value = text(name)
    if value is not None and not (value.isascii() and value.isdigit() and int(value) > 0):
        raise BadVariable(f"{name}={value!r} is not a whole number from 1 up")
    return default if value is None else int(value)
