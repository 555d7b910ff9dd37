"""Filters and orders of lists, in a subset of AIP-160 and AIP-132.

As there, OR binds more closely than AND: `a AND b OR c` is `a AND (b OR c)`.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from services.common.errors import InvalidField

_MAX_TEXT: Final = 4096  # characters
_MAX_DEPTH: Final = 32  # parentheses and negations within each other

_TOKEN: Final = re.compile(
    r"""\s*(?:(?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')"""
    r"""|(?P<operator>!=|<=|>=|[=<>:().-])|(?P<word>[^\s!=<>:()."']+))"""
)
_WORDS: Final = frozenset({"AND", "OR", "NOT"})

# The values of an item's field; the second argument is the key of a label, else "".
Values = Callable[[str, str], tuple[str, ...]]
Condition = Callable[[Values], bool]


def parse_filter(text: str, fields: tuple[str, ...]) -> Condition | None:
    """Return what a filter demands, or None for an empty one.

    `fields` are the names that it may compare; "labels" has a key. Raises InvalidField.
    """
    if len(text) > _MAX_TEXT:
        raise _wrong(f"it has more than {_MAX_TEXT} characters")
    tokens = _tokens(text)
    if not tokens:
        return None
    return _Parser(tokens, fields).whole()


@dataclass(frozen=True, slots=True)
class Order:
    """The order of a list: by a field, and downwards if `descending`."""

    field: str
    descending: bool = False


def parse_order(text: str, fields: tuple[str, ...]) -> Order:
    """Return an order; the first of the fields is the default. Raises InvalidField."""
    words = text.split()
    name, way = (words[0], words[1:]) if words else (fields[0], [])
    if name not in fields or way not in ([], ["asc"], ["desc"]):
        raise InvalidField(
            field="order_by",
            problem=f"{text[:64]!r} is not one of {', '.join(fields)}, with or without ' desc'",
        )
    return Order(name, way == ["desc"])


def _tokens(text: str) -> list[tuple[str, str]]:
    """Return (kind, text) of each token. Raises InvalidField."""
    found: list[tuple[str, str]] = []
    at, end = 0, len(text.rstrip())
    while at < end:
        match = _TOKEN.match(text, at)
        if match is None:
            raise _wrong(f"it cannot be read from {text[at : at + 20]!r} on")
        kind = match.lastgroup or ""
        token = match[kind]
        if kind == "string":
            token = re.sub(r"\\(.)", r"\1", token[1:-1])
        found.append((kind, token))
        at = match.end()
    return found


class _Parser:
    """Reads an expression from its tokens, from the loosest operator to the closest."""

    def __init__(self, tokens: list[tuple[str, str]], fields: tuple[str, ...]) -> None:
        self._tokens = tokens
        self._fields = fields
        self._at = 0
        self._depth = 0

    def whole(self) -> Condition:
        condition = self._all()
        if self._at < len(self._tokens):
            raise _wrong(f"AND or OR is missing before {self._tokens[self._at][1]!r}")
        return condition

    def _all(self) -> Condition:
        parts = [self._any()]
        while self._take("word", "AND"):
            parts.append(self._any())
        return (lambda values: all(part(values) for part in parts)) if parts[1:] else parts[0]

    def _any(self) -> Condition:
        parts = [self._one()]
        while self._take("word", "OR"):
            parts.append(self._one())
        return (lambda values: any(part(values) for part in parts)) if parts[1:] else parts[0]

    def _one(self) -> Condition:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise _wrong("it has too many parentheses within each other")
        try:
            if self._take("word", "NOT") or self._take("operator", "-"):
                inner = self._one()
                return lambda values: not inner(values)
            if self._take("operator", "("):
                inner = self._all()
                if not self._take("operator", ")"):
                    raise _wrong("a parenthesis is not closed")
                return inner
            return self._comparison()
        finally:
            self._depth -= 1

    def _comparison(self) -> Condition:
        kind, field = self._next("a field")
        if kind != "word" or field in _WORDS or field not in self._fields:
            raise _wrong(f"{field!r} is not a field: write one of {', '.join(self._fields)}")
        key = ""
        if self._take("operator", "."):
            if field != "labels":
                raise _wrong(f"{field} has no parts")
            key = self._key()
        kind, operator = self._next("an operator")
        if kind != "operator" or operator not in _TESTS:
            raise _wrong(f"{operator!r} is not one of {', '.join(_TESTS)}")
        kind, value = self._next("a value")
        if kind == "operator" or (kind == "word" and value in _WORDS):
            raise _wrong(f"{value!r} is no value: put it in quotes")
        if kind == "word":
            value += self._rest_of_word()
        test = _TESTS[operator](value)
        if field == "labels" and not key:
            if operator != ":":
                raise _wrong("write labels.KEY, or labels:KEY for whether there is one")
            return lambda values: bool(values("labels", value))
        return lambda values: test(values(field, key))

    def _key(self) -> str:
        _, key = self._next("a label's key")
        return key + self._rest_of_word()

    def _rest_of_word(self) -> str:
        """Return what follows in a word that has dots or dashes in it."""
        rest = ""
        while self._take("operator", "."):
            rest += "." + self._next("the rest of a word")[1]
        return rest

    def _take(self, kind: str, text: str) -> bool:
        if self._at < len(self._tokens) and self._tokens[self._at] == (kind, text):
            self._at += 1
            return True
        return False

    def _next(self, wanted: str) -> tuple[str, str]:
        if self._at == len(self._tokens):
            raise _wrong(f"it ends where {wanted} is missing")
        self._at += 1
        return self._tokens[self._at - 1]


def _equal(value: str) -> Callable[[tuple[str, ...]], bool]:
    """Return a test for values that are equal; "*" at an end stands for anything."""
    pattern = re.compile(".*".join(map(re.escape, value.split("*"))), re.DOTALL)
    return lambda found: any(pattern.fullmatch(one) for one in found)


def _unequal(value: str) -> Callable[[tuple[str, ...]], bool]:
    equal = _equal(value)
    return lambda found: not equal(found)


def _has(value: str) -> Callable[[tuple[str, ...]], bool]:
    return lambda found: any(value == "*" or value in one for one in found)


_TESTS: Final[Mapping[str, Callable[[str], Callable[[tuple[str, ...]], bool]]]] = {
    "=": _equal,
    "!=": _unequal,
    ":": _has,
}


def _wrong(problem: str) -> InvalidField:
    return InvalidField(field="filter", problem=problem)
