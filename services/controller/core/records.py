"""Records: what the engine tells the journal."""

import enum
from collections.abc import Mapping
from typing import NamedTuple

from services.controller.core.entities import Unit


class Kind(enum.Enum):
    """The kinds of journal entries, named as in shoal.controller.v1.EventKind."""

    QUEUED = enum.auto()
    LOADING = enum.auto()
    READY = enum.auto()
    LOAD_FAILED = enum.auto()
    EVICTING = enum.auto()
    UNLOADING = enum.auto()
    UNLOADED = enum.auto()
    REFUSED = enum.auto()
    PINNED = enum.auto()
    UNPINNED = enum.auto()
    UNEXPECTED = enum.auto()
    SERVER_HEALTHY = enum.auto()
    SERVER_LOST = enum.auto()
    SERVER_UNUSABLE = enum.auto()
    SERVER_DRAINING = enum.auto()
    ROUTER_JOINED = enum.auto()
    ROUTER_LOST = enum.auto()
    BROKEN = enum.auto()
    SET_ASIDE = enum.auto()


class Why(enum.Enum):
    """The purposes of evictions; their values are labels of `shoal_evictions`."""

    ROOM = "room"
    OVER_LIMIT = "over_limit"
    HEADROOM = "headroom"
    IDLE = "idle"
    REQUEST = "request"
    DRAIN = "drain"
    BROKEN = "broken"
    SET_ASIDE = "set_aside"
    CATALOGUE = "catalog"
    PART = "part"
    COPIES = "copies"


class Weighed(NamedTuple):
    """The figures of a unit that could have left, as the policy weighed them, and whether it had
    to."""

    unit: Unit
    evicted: bool
    numbers: Mapping[str, float]


class Record(NamedTuple):
    """An entry in the journal. Of an eviction, `weighed` has what could have left, the first to
    leave first, and `why` says what it is for."""

    kind: Kind
    reason: str
    server: str = ""
    unit: Unit | None = None
    for_unit: Unit | None = None
    trace_id: str = ""
    weighed: tuple[Weighed, ...] = ()
    why: Why | None = None
