"""What the Controller knows: units, servers, replicas. Immutable, replaced and never changed."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from services.controller.core import memory
from services.controller.core.memory import NOTHING, Memory
from services.controller.core.states import State


class Unit(NamedTuple):
    """A version of a model: the thing that is loaded, evicted and counted."""

    model: str
    version: int

    def __str__(self) -> str:
        return f"{self.model}:{self.version}"


class ReplicaKey(NamedTuple):
    """A unit on a server."""

    server: str
    unit: Unit

    def __str__(self) -> str:
        return f"{self.unit} on {self.server}"


@dataclass(frozen=True, slots=True)
class UnitSpec:
    """What the Registry says of a unit, as far as it matters for residency.

    `fingerprint`: of its files and config; another one means that what is resident is outdated.
    `declared`, `learned`: bytes by resource, empty when unknown. `load_seconds`: of its last load.
    `requires`: units that must be READY beside it.
    """

    unit: Unit
    config_digest: str = ""
    fingerprint: str = ""
    artifact_bytes: int = 0
    declared: Memory = field(default_factory=dict)
    learned: Memory = field(default_factory=dict)
    load_seconds: float | None = None
    requires: tuple[Unit, ...] = ()
    ensemble: bool = False
    pinned: bool = False

    @property
    def slots(self) -> int:
        """How much of a server's `max_models` it takes: an ensemble is made of its parts alone."""
        return 0 if self.ensemble else 1

    @property
    def size_known(self) -> bool:
        return self.ensemble or bool(self.declared) or bool(self.learned)


class Health(enum.Enum):
    UNKNOWN = "not inventoried yet"
    HEALTHY = "healthy"
    UNREACHABLE = "unreachable"
    UNUSABLE = "unusable"


@dataclass(frozen=True, slots=True)
class Server:
    """One Triton. `budget`: bytes by resource over the server's own baseline, empty for none;
    `max_models`: how many units at most, 0 for no limit."""

    id: str
    address: str
    budget: Memory = field(default_factory=dict)
    max_models: int = 0
    health: Health = Health.UNKNOWN
    reason: str = ""
    measured: Memory = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Replica:
    """`reserved`: bytes by resource that count against the budget; `measured`: the high-water mark
    of this residence. Times are seconds of the caller's monotonic clock."""

    key: ReplicaKey
    state: State
    reserved: Memory
    since: float
    reason: str
    last_used: float
    attempt: int = 0
    measured: Memory = field(default_factory=dict)
    in_flight: int = 0
    load_seconds: float | None = None

    @property
    def unit(self) -> Unit:
        return self.key.unit


@dataclass(frozen=True, slots=True)
class Limits:
    """Numbers that decide, with their units, so that tests can choose them.

    unknown_share      share of a budget reserved for a unit of unknown size
    growth             factor by which a first residence is expected to outgrow its load
    margin             factor over a learned size, for what measuring misses
    loads_per_server   loads at the same time on one server
    use_lease_seconds  how long a replica waits for the request it was made resident for
    router_seconds     a Router that was not heard from for so long is dropped
    backoff_seconds    until a failed load is tried again; doubles with each failure
    max_backoff_seconds
    server_patience_seconds  how long requests wait for a server when none is healthy
    answer_margin_seconds    a waiter is refused this long before its deadline, so that it hears why
    """

    unknown_share: float = 0.25
    growth: float = 1.34
    margin: float = 1.05
    loads_per_server: int = 2
    use_lease_seconds: float = 3.0
    router_seconds: float = 5.0
    backoff_seconds: float = 5.0
    max_backoff_seconds: float = 300.0
    server_patience_seconds: float = 15.0
    answer_margin_seconds: float = 0.02


ARTIFACT_FACTOR = 3  # a runtime holds the file, its parsed form and its work space


def reservation(spec: UnitSpec, budget: Memory, limits: Limits) -> Memory:
    """Bytes to set aside before `spec` is loaded on a server with `budget`."""
    if spec.ensemble:
        return NOTHING
    if spec.declared:
        return memory.highest(spec.declared, spec.learned)
    if spec.learned:
        return memory.scaled(spec.learned, limits.margin)
    return {
        resource: max(
            min(ARTIFACT_FACTOR * spec.artifact_bytes, limit),
            round(limits.unknown_share * limit),
            spec.artifact_bytes,
        )
        for resource, limit in budget.items()
    }


def reservation_of_resident(replica: Replica, spec: UnitSpec, limits: Limits) -> Memory:
    """Bytes that a READY replica counts for, now that some of it has been measured."""
    if spec.ensemble or not replica.measured:
        return replica.reserved
    if spec.declared:
        return memory.highest(spec.declared, replica.measured)
    if spec.learned:
        return memory.scaled(memory.highest(spec.learned, replica.measured), limits.margin)
    return memory.scaled(replica.measured, limits.growth)


Replicas = Mapping[Unit, Replica]
