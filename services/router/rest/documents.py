"""JSON in and out, as Triton's HTTP server takes and gives it."""

import json
import re
from typing import Any, Final

import numpy as np
import orjson
import rapidjson

from services.router.core.rest.values import INTERNAL, WrongRequest

# rapidjson goes down one call for every bracket.
_MOST_BRACKETS: Final = 1000
_NUMBERS: Final = rapidjson.NM_NAN | rapidjson.NM_NATIVE
_MOST_DIGITS: Final = 20  # of a number of 64 bits, with its sign
_WHERE: Final = re.compile(r"Parse error at offset (\d+): (.*)")


def loads(body: bytes | memoryview) -> Any:
    """Read JSON as Triton does, where NaN and Infinity are numbers. Raises WrongRequest."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        pass
    text = bytes(body)
    try:
        if text.count(b"[") + text.count(b"{") <= _MOST_BRACKETS:
            return rapidjson.loads(text, number_mode=_NUMBERS)
        return _valid(json.loads(text, parse_int=_integer))
    except (ValueError, RecursionError) as error:
        found = _WHERE.fullmatch(str(error))
        why = f"{found[2]} at {found[1]}" if found is not None else str(error)
        raise WrongRequest(INTERNAL, f"failed to parse the request JSON buffer: {why}") from error


def _integer(digits: str) -> int | float:
    """What has more than 64 bits is a double, as the other parsers have it."""
    return int(digits) if len(digits) <= _MOST_DIGITS else float(digits)


def _valid(document: Any) -> Any:
    """Raises ValueError for halves of characters, which the other parsers do not take."""
    json.dumps(document, ensure_ascii=False).encode()
    return document


def dumps(document: Any) -> bytes:
    """Numbers that are none are written NaN and Infinity, and bytes that are no text, which came as
    surrogates, as they are."""
    try:
        return orjson.dumps(document, _written, orjson.OPT_SERIALIZE_NUMPY)
    except TypeError:
        text = json.dumps(document, default=_listed, ensure_ascii=False, separators=(",", ":"))
        return text.encode("utf-8", "surrogateescape")


def is_finite(array: Any) -> bool:
    """Whether JSON has a word for each of its elements."""
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def _written(value: object) -> Any:
    if isinstance(value, NonFinite):
        return orjson.Fragment(json.dumps(value.array.tolist(), separators=(",", ":")).encode())
    raise TypeError


class NonFinite:
    """Floats, not all of which JSON has a word for."""

    def __init__(self, array: Any) -> None:
        self.array = array


def _listed(value: object) -> Any:
    if isinstance(value, NonFinite):
        value = value.array
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"{type(value)} in an answer")
