"""Reads and writes JSON as Triton's HTTP server does."""

import json
import re
from typing import Any, Final

import numpy as np
import orjson
import rapidjson

from services.router.core.rest.values import INTERNAL, WrongRequest

# rapidjson recurses once for every bracket.
_MOST_BRACKETS: Final = 1000
_NUMBERS: Final = rapidjson.NM_NAN | rapidjson.NM_NATIVE
_MOST_DIGITS: Final = 20  # of a 64-bit number, with its sign
_WHERE: Final = re.compile(r"Parse error at offset (\d+): (.*)")


def loads(body: bytes | memoryview) -> Any:
    """Read JSON as Triton does, which accepts NaN and Infinity as numbers. Raises WrongRequest."""
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
    """Return a number. Beyond 64 bits it becomes a double, as with the other parsers."""
    return int(digits) if len(digits) <= _MOST_DIGITS else float(digits)


def _valid(document: Any) -> Any:
    """Return the document. Raises ValueError for lone surrogates, which the other parsers
    refuse."""
    json.dumps(document, ensure_ascii=False).encode()
    return document


def dumps(document: Any) -> bytes:
    """Write JSON. NaN and Infinity are written as such, and surrogates that stand for bytes that
    are not text become these bytes again."""
    try:
        return orjson.dumps(document, _orjson_default, orjson.OPT_SERIALIZE_NUMPY)
    except TypeError:
        text = json.dumps(
            document, default=_json_default, ensure_ascii=False, separators=(",", ":")
        )
        return text.encode("utf-8", "surrogateescape")


def is_finite(array: Any) -> bool:
    """Return whether JSON can express every element."""
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def _orjson_default(value: object) -> Any:
    if isinstance(value, NonFinite):
        return orjson.Fragment(json.dumps(value.array.tolist(), separators=(",", ":")).encode())
    raise TypeError


class NonFinite:
    """Floats of which JSON cannot express some."""

    def __init__(self, array: Any) -> None:
        self.array = array


def _json_default(value: object) -> Any:
    if isinstance(value, NonFinite):
        value = value.array
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"{type(value)} in an answer")
