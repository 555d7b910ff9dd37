"""Reads values from a request's JSON, refusing wrong ones in the words of Triton's HTTP server.

That server calls wrong JSON INTERNAL, which is 500 in HTTP. So does the Router, for clients that
match on it."""

from collections.abc import Mapping
from typing import Any, Final

INTERNAL: Final = "INTERNAL"
INVALID: Final = "INVALID_ARGUMENT"
UNSUPPORTED: Final = "UNIMPLEMENTED"

_INT64: Final = range(-(2**63), 2**63)
_UINT64: Final = range(2**64)


class WrongRequest(Exception):
    """A request refused in Triton's own words. `code` is the name of the gRPC code."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(code, text)
        self.code = code
        self.text = text

    def __str__(self) -> str:
        return self.text


class Missing:
    """Stands for a member that is not there."""


MISSING: Final = Missing()


class Repeating(dict[str, Any]):
    """An object of JSON that names some members more than once; the first of each is here."""

    def __init__(self, members: Mapping[str, Any], repeated: frozenset[str]) -> None:
        super().__init__(members)
        self.repeated = repeated


def wrong(text: str, what: str = "") -> WrongRequest:
    """Return the refusal of a value. `what` begins its text."""
    return WrongRequest(INTERNAL, f"{what}: {text}" if what else text)


def find(value: object, name: str) -> Any:
    """Return a member, or MISSING if there is none or `value` is not an object."""
    return value.get(name, MISSING) if isinstance(value, dict) else MISSING


def member(value: object, name: str, what: str = "") -> Any:
    """Return a member. `what` begins the text of a refusal, here and below."""
    found = find(value, name)
    if found is MISSING:
        raise wrong(f"attempt to access non-existing object member '{name}'", what)
    return found


def members(value: object, what: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        raise wrong("attempt to get members for non-object", what)
    return value


def obj(value: object, what: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        raise wrong("attempt to access JSON non-object as object", what)
    return value


def array(value: object, what: str = "") -> list[Any]:
    if not isinstance(value, list):
        raise wrong("attempt to access JSON non-array as array", what)
    return value


def string(value: object, what: str = "") -> str:
    if not isinstance(value, str):
        raise wrong("attempt to access JSON non-string as string", what)
    return value


def boolean(value: object, what: str = "") -> bool:
    if not isinstance(value, bool):
        raise wrong("attempt to access JSON non-boolean as boolean", what)
    return value


def unsigned(value: object, what: str = "") -> int:
    if type(value) is not int or value not in _UINT64:
        raise wrong("attempt to access JSON non-unsigned-integer as unsigned-integer", what)
    return value


def is_signed(value: object) -> bool:
    return type(value) is int and value in _INT64
