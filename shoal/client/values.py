"""The parts that the services' messages are made of, as Python's own values."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from shoal import names
from shoal.names import ModelVersionName


def last(name: str) -> str:
    """Return the last part of a resource name, such as `m` of `models/m`; "" for ""."""
    return name.rpartition("/")[2]


def version_name(name: str) -> ModelVersionName:
    """Return the parts of a version's name. Raises ValueError for any other name."""
    found = names.parse_version_name(name)
    if found is None:
        raise ValueError(f"{name!r} is not models/MODEL/versions/VERSION")
    return found


def version_names(found: Iterable[str]) -> tuple[ModelVersionName, ...]:
    return tuple(map(version_name, found))


def seconds(duration: Duration) -> float:
    return duration.ToNanoseconds() / 1e9


def moment(timestamp: Timestamp) -> datetime:
    return timestamp.ToDatetime(UTC)


def word(kind: Any, number: int) -> str:
    """Return the name of an enum's value without the enum's prefix.

    A value that only a newer service knows is returned as its number.
    """
    descriptor = kind.DESCRIPTOR
    known = descriptor.values_by_number.get(number)
    if known is None:
        return str(number)
    prefix = descriptor.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return str(known.name.removeprefix(prefix))
