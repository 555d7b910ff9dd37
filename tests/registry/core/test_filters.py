"""Filters and orders of lists, as callers write them."""

import pytest

from services.common.errors import InvalidField
from services.registry.core.filters import Order, parse_filter, parse_order

FIELDS = ("name", "labels", "state", "source")
ITEM = {
    ("name", ""): ("bert-large",),
    ("labels", "team"): ("search",),
    ("labels", "a.b"): ("x y",),
    ("state", ""): ("APPROVED", "INVALID"),
    ("source", ""): ("s3://bucket/bert",),
}


def values(field: str, key: str) -> tuple[str, ...]:
    return ITEM.get((field, key), ())


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ('name = "bert-large"', True),
        ("name=bert*", True),
        ("name = *large", True),
        ("name = b*t*e", True),
        ("name = bert", False),
        ("name != bert", True),
        ("labels.team = search", True),
        ("labels.team : *", True),
        ("labels:team", True),
        ("labels:owner", False),
        ("labels.owner = x", False),
        ("labels.owner != x", True),
        ('labels.a.b = "x y"', True),
        ('labels."a.b" = "x y"', True),
        ("state = APPROVED AND state = INVALID", True),
        ("state != INVALID", False),
        ("NOT state = PENDING", True),
        ("-state = PENDING", True),
        ('source : "s3"', True),
        ('source = "s3://bucket/*"', True),
        ("name = x OR labels.team = search AND state = PENDING", False),
        ("name = x AND name = y OR labels.team = search", False),
        ("(name = x AND name = y) OR labels.team = search", True),
        (r'name = "bert\-large"', True),
        ("NOT (name = x OR name = y)", True),
    ],
)
def test_what_a_filter_means(text: str, holds: bool) -> None:
    condition = parse_filter(text, FIELDS)
    assert condition is not None
    assert condition(values) is holds


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("size = 3", "'size' is not a field"),
        ("name", "it ends where an operator is missing"),
        ("name =", "it ends where a value is missing"),
        ("name > 3", "'>' is not one of"),
        ("name = a name = b", "AND or OR is missing before 'name'"),
        ("(name = a", "a parenthesis is not closed"),
        ("name = AND", "put it in quotes"),
        ("AND name = a", "'AND' is not a field"),
        ("name.x = a", "name has no parts"),
        ("labels = a", "write labels.KEY"),
        ('name = "a', "it cannot be read from"),
        ("(" * 100 + "name = a" + ")" * 100, "too many parentheses"),
        ("name = " + "a" * 5000, "more than 4096"),
    ],
)
def test_what_is_no_filter(text: str, problem: str) -> None:
    with pytest.raises(InvalidField) as refused:
        parse_filter(text, FIELDS)
    assert problem in refused.value.message


def test_an_empty_filter_demands_nothing() -> None:
    assert parse_filter("  ", FIELDS) is None


def test_orders() -> None:
    fields = ("name", "create_time")
    assert parse_order("", fields) == Order("name")
    assert parse_order("create_time desc", fields) == Order("create_time", descending=True)
    for text in ("size", "name down", "name, create_time"):
        with pytest.raises(InvalidField):
            parse_order(text, fields)
