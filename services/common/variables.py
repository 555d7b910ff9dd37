"""Environment variables that are read before a service has settings of its own."""

import os
from collections.abc import Sequence


class BadVariable(ValueError):
    """A variable with a value that can't be used; the text names it and says what can."""


def text(name: str) -> str | None:
    """The variable's value without outer blanks; None where it is unset or empty."""
    return os.environ.get(name, "").strip() or None


def choice(name: str, allowed: Sequence[str], default: str) -> str:
    """One of `allowed`, in any case of letters. Raises BadVariable."""
    value = (text(name) or default).lower()
    if value not in allowed:
        raise BadVariable(f"{name}={value!r} is unknown: use one of {', '.join(allowed)}")
    return value


def flag(name: str) -> bool:
    """True or false, false by default. Raises BadVariable."""
    return choice(name, ("true", "false"), "false") == "true"


def ratio(name: str, default: float) -> float:
    """A number from 0 to 1. Raises BadVariable."""
    value = text(name)
    try:
        number = default if value is None else float(value)
    except ValueError:
        number = -1.0
    if not 0.0 <= number <= 1.0:
        raise BadVariable(f"{name}={value!r} is not a number from 0 to 1")
    return number


def count(name: str, default: int) -> int:
    """A whole number from 1 up. Raises BadVariable."""
    value = text(name)
    if value is not None and not (value.isascii() and value.isdigit() and int(value) > 0):
        raise BadVariable(f"{name}={value!r} is not a whole number from 1 up")
    return default if value is None else int(value)
