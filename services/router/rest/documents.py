"""Reads and writes JSON as Triton's HTTP server does."""

import json
import re
from typing import Any, Final

import numpy as np
import orjson
import rapidjson

from services.router.core.rest.values import INTERNAL, Repeating, WrongRequest

# rapidjson recurses once for every bracket.
_MOST_BRACKETS: Final = 1000
_NUMBERS: Final = rapidjson.NM_NAN | rapidjson.NM_NATIVE
_MOST_DIGITS: Final = 20  # of a 64-bit number, with its sign
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_NOT_UTF8: Final = re.compile("[\udc80-\udcff]")
_NAME: Final = re.compile(rb'"[ \t\r\n]*:')
_NESTED: Final = (dict, list)
_WHERE: Final = re.compile(r"Parse error at offset (\d+): (.*)")


def loads(body: bytes | memoryview) -> Any:
    """Read JSON as Triton does. NaN and Infinity are numbers, of several members of one name the
    first counts (see `Repeating`), a byte order mark is skipped, and a NUL ends the text. Bytes in
    strings that are not UTF-8 become surrogates, as with Python's `surrogateescape`. Raises
    WrongRequest."""
    try:
        return _read(body)
    except (ValueError, RecursionError) as error:
        found = _WHERE.fullmatch(str(error))
        why = f"{found[2]} at {found[1]}" if found is not None else str(error)
        raise WrongRequest(INTERNAL, f"failed to parse the request JSON buffer: {why}") from error


def _read(body: bytes | memoryview) -> Any:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return _read_odd(bytes(body).removeprefix(_BYTE_ORDER_MARK).partition(b"\0")[0])
    if _may_repeat_names(document, body):
        return _python(bytes(body).decode())
    return document


def _read_odd(text: bytes) -> Any:
    """Read JSON that orjson refuses."""
    decoded = text.decode("utf-8", "surrogateescape")
    plain = _NOT_UTF8.sub("?", decoded)  # what the strict parsers can read
    if text.count(b"[") + text.count(b"{") <= _MOST_BRACKETS:
        document = rapidjson.loads(plain, number_mode=_NUMBERS)
    else:
        document = _valid(_python(plain))
    if plain != decoded or _may_repeat_names(document, text):
        return _python(decoded)
    return document


def _python(text: str) -> Any:
    """Read JSON with Python's own parser, which is slower and lets us choose among repeated
    names."""
    return json.loads(text, parse_int=_integer, object_pairs_hook=_first_of_each)


def _first_of_each(members: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    repeated: set[str] = set()
    for name, value in members:
        if name in found:
            repeated.add(name)
        else:
            found[name] = value
    return Repeating(found, frozenset(repeated)) if repeated else found


def _may_repeat_names(document: Any, text: bytes | memoryview) -> bool:
    """Return whether the text seems to name more members than the document has. A quote within a
    string that a colon follows looks like the end of a name."""
    return len(_NAME.findall(text)) > _members(document)


def _members(document: Any) -> int:
    """Return the number of all objects' members. Objects in lists that begin with something else
    may be left out."""
    count = 0
    left = [document]
    while left:
        one = left.pop()
        if type(one) is dict:
            count += len(one)
            left += [value for value in one.values() if type(value) in _NESTED]
        elif type(one) is list and one and type(one[0]) in _NESTED:
            left += one
    return count


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
