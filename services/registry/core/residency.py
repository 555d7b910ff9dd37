"""What a model asks of the fleet, and which values are allowed."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Final

from services.common.errors import InvalidField

MAX_COPIES: Final = 1000
MAX_PRIORITY: Final = 10
MAX_REQUIRED_LABELS: Final = 64
SHORTEST_TTL_NS: Final = 1_000_000  # a millisecond
LONGEST_TTL_NS: Final = 3650 * 24 * 3600 * 1_000_000_000  # ten years

FIELD: Final = "model.residency"
PATH: Final = "residency"

_LABEL = re.compile(r"[A-Za-z0-9_./-]{1,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Residency:
    """A model's own residency settings; where it has none, the Controller's apply.

    `idle_ttl_us` is the number of microseconds without use until it is evicted, or 0 for never.
    Only servers with all of `required_labels` may hold it.
    """

    min_copies: int | None = None
    max_copies: int | None = None
    idle_ttl_us: int | None = None
    preload: bool | None = None
    priority: int | None = None
    required_labels: Mapping[str, str] = field(default_factory=dict)


# Field by update-mask path.
_FIELDS: Final = {f"{PATH}.{one.name.removesuffix('_us')}": one.name for one in fields(Residency)}
PATHS: Final = (PATH, *_FIELDS)


def checked(asked: Residency) -> Residency:
    """Return `asked` unchanged. Raises InvalidField."""
    _check_range("min_copies", asked.min_copies, 0, MAX_COPIES)
    _check_range("max_copies", asked.max_copies, 1, MAX_COPIES)
    _check_range("priority", asked.priority, -MAX_PRIORITY, MAX_PRIORITY)
    _check_labels(asked.required_labels)
    least, most = asked.min_copies, asked.max_copies
    if least is not None and most is not None and most < least:
        raise InvalidField(
            field=f"{FIELD}.max_copies",
            problem=f"{most} are fewer than the min_copies of {least}: raise max_copies or "
            "lower min_copies",
        )
    return asked


def idle_ttl_us(nanoseconds: int) -> int:
    """Return the time in microseconds. Raises InvalidField."""
    if nanoseconds and not SHORTEST_TTL_NS <= nanoseconds <= LONGEST_TTL_NS:
        raise InvalidField(
            field=f"{FIELD}.idle_ttl",
            problem=f"{nanoseconds / 1e9} s is not between 0.001 s and ten years: give a time in "
            "that range, or 0 for never",
        )
    return nanoseconds // 1000


def merged(known: Residency, given: Residency, paths: Collection[str]) -> Residency:
    """Return `known` with the fields that an update mask names taken from `given`, set or unset.

    Raises InvalidField, also when values exclude each other.
    """
    if PATH in paths:
        return checked(given)
    named = {name: getattr(given, name) for path, name in _FIELDS.items() if path in paths}
    return checked(replace(known, **named)) if named else known


def _check_range(name: str, value: int | None, least: int, most: int) -> None:
    if value is not None and not least <= value <= most:
        raise InvalidField(
            field=f"{FIELD}.{name}",
            problem=f"{value} is not between {least} and {most}: give a number in that range, or "
            "leave it unset for the Controller's setting",
        )


def _check_labels(labels: Mapping[str, str]) -> None:
    name = f"{FIELD}.required_labels"
    if len(labels) > MAX_REQUIRED_LABELS:
        raise InvalidField(
            field=name, problem=f"{len(labels)} are more than the {MAX_REQUIRED_LABELS} allowed"
        )
    for key, value in labels.items():
        for what, text in (("key", key), (f"value of {key}", value)):
            if _LABEL.fullmatch(text) is None:
                raise InvalidField(
                    field=name,
                    problem=f"the {what}, {text[:64]!r}, is not 1 to 63 letters, digits, '_', '.', "
                    "'/', '-': write it as the servers' labels are written",
                )
