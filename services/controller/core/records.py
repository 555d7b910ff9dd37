"""What the engine tells the journal."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from services.controller.core.entities import Unit


class Kind(enum.Enum):
    """Kinds of journal entries; the names are those of shoal.controller.v1.EventKind."""

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
    """What an eviction is for."""

    ROOM = "room"
    OVER_LIMIT = "over_limit"
    HEADROOM = "headroom"
    IDLE = "idle"
    REQUEST = "request"
    DRAIN = "drain"
    BROKEN = "broken"
    SET_ASIDE = "set_aside"
    CATALOG = "catalog"
    PART = "part"
    COPIES = "copies"


class Weighed(NamedTuple):
    """What the eviction policy knew of a unit that could have left, and whether it had to."""

    unit: Unit
    evicted: bool
    numbers: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Record:
    """What, where, and why with its numbers. `weighed`: of an eviction, what could have left then,
    the first to leave first; `why`: what it is for."""

    kind: Kind
    reason: str
    server: str = ""
    unit: Unit | None = None
    for_unit: Unit | None = None
    trace_id: str = ""
    weighed: tuple[Weighed, ...] = ()
    why: Why | None = None
