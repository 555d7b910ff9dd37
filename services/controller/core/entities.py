"""Units, servers and replicas: immutable values that are replaced and never changed."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from services.controller.core.memory import NOTHING, Memory
from services.controller.core.states import State


class Unit(NamedTuple):
    """A version of a model: what is loaded, evicted and counted."""

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


class Batching(NamedTuple):
    """How requests wait for others that go into the same batch."""

    #: The largest batch that they wait for.
    size: int
    #: The seconds that they wait at most.
    delay: float


@dataclass(frozen=True, slots=True)
class UnitSpec:
    """The Registry's word on a unit, as far as it matters for residency."""

    unit: Unit
    #: The digest of its config without the instances.
    config_digest: str = ""
    #: The fingerprint of its files and config; a new one means that what is resident is outdated.
    fingerprint: str = ""
    #: The size of its files.
    artifact_bytes: int = 0
    #: How many instances run on each device, each of which may hold a copy of the weights.
    instances: int = 1
    #: How its requests wait for others of their batch; None if they wait for none.
    batching: Batching | None = None
    #: Bytes by resource that its owner declared; empty when unknown.
    declared: Memory = field(default_factory=dict)
    #: Bytes by resource that it was seen to take; empty when unknown.
    learned: Memory = field(default_factory=dict)
    #: Bytes by resource that it should take, judging by what it took with other files or another
    #: config; empty when unknown.
    expected: Memory = field(default_factory=dict)
    #: How long a load takes; None when it was never loaded.
    load_seconds: float | None = None
    #: Units that must be READY beside it.
    requires: tuple[Unit, ...] = ()
    #: Those of `requires` that it calls without a version. A server answers such a call with the
    #: newest version that it holds, so no newer one may be beside it.
    unversioned: frozenset[Unit] = frozenset()
    ensemble: bool = False
    #: Whether its config must be completed by the server that loads it.
    incomplete: bool = False
    #: Whether one replica is kept, and none is ever evicted for another unit.
    pinned: bool = False
    #: How many replicas are kept whether they are used or not.
    min_copies: int = 0
    #: How many replicas there may be; None for the default of `Limits`.
    max_copies: int | None = None
    #: Seconds without use until it is evicted; 0 for never, None for the default of `Limits`.
    idle_ttl: float | None = None
    #: Whether it is loaded when the Controller starts.
    preload: bool = False
    #: The priority of its loads; the higher come first.
    priority: int = 0
    #: Labels that a server must have to hold it.
    required_labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Return what versions of a model must share to be resident side by side. Triton keeps one
        config for all of them, so a load with other instances would change those of the others."""
        return f"{self.config_digest} x{self.instances}"

    @property
    def slots(self) -> int:
        """Return what it takes of a server's `max_models`; an ensemble takes nothing itself."""
        return 0 if self.ensemble else 1

    @property
    def size_known(self) -> bool:
        return self.ensemble or bool(self.declared) or bool(self.learned)

    @property
    def kept(self) -> int:
        """The number of replicas that are wanted when nobody asks for it."""
        return max(self.min_copies, 1 if self.pinned else 0)


class Health(enum.Enum):
    UNKNOWN = "not inventoried yet"
    HEALTHY = "healthy"
    UNREACHABLE = "unreachable"
    UNUSABLE = "unusable"


@dataclass(frozen=True, slots=True)
class Server:
    """One Triton."""

    id: str
    #: host:port.
    address: str
    #: Bytes by resource for models, over the server's own baseline; empty for no limit.
    budget: Memory = field(default_factory=dict)
    #: How many units it may hold; 0 for no limit.
    max_models: int = 0
    health: Health = Health.UNKNOWN
    #: Why it is not healthy, for people.
    reason: str = ""
    #: Bytes by resource that its models take, over the baseline.
    measured: Memory = field(default_factory=dict)
    #: Bytes by resource beyond which idle replicas leave ahead of need.
    soft: Memory = field(default_factory=dict)
    #: How many of `max_models` are kept free ahead of need.
    headroom_models: int = 0
    #: The host, whose servers share its cores; empty for a host of its own.
    host: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    #: Whether it completes configs; None if that is to be found out.
    auto_complete: bool | None = False
    #: Bytes by resource that are taken beyond what its models should take.
    leaked: Memory = field(default_factory=dict)
    #: Why it is given nothing new; empty when it is.
    draining: str = ""
    #: Whether it is drained in order to be restarted.
    restart: bool = False
    #: Whether it is to be restarted now that it is empty.
    restart_wanted: bool = False

    @property
    def accepting(self) -> bool:
        """Return whether something new may be placed on it."""
        return self.health is Health.HEALTHY and not self.draining


class Replica(NamedTuple):
    """A unit on a server, in one state of its life (`states`)."""

    key: ReplicaKey
    state: State
    #: Bytes by resource that count against the budget.
    reserved: Memory
    #: When it came into its state, in seconds of the engine's clock.
    since: float
    #: Why it is in its state, for people.
    reason: str
    #: Why it is on this server, for people.
    placed: str = ""
    #: The number of its load, by which a late outcome of an earlier one is told apart.
    attempt: int = 0
    #: The most bytes by resource that it was seen to take since it was loaded.
    measured: Memory = NOTHING
    #: How long its load took.
    load_seconds: float | None = None
    #: What it takes of the server's `max_models`.
    slots: int = 1
    #: The digest that it is loaded with (`UnitSpec.digest`).
    digest: str = ""
    #: The fingerprint of what it is loaded from. What is seen of it is learned for that alone.
    fingerprint: str = ""
    #: Whether it does not answer though the index says READY, or leaves as soon as it is READY.
    broken: bool = False
    #: Whether its load takes far longer than expected, so that others no longer wait for it.
    overdue: bool = False

    @property
    def unit(self) -> Unit:
        return self.key.unit


class Use(NamedTuple):
    """How a replica is used."""

    #: When the last request came, in seconds of the engine's clock.
    last_used: float
    #: Requests, each of which counts half after every half-life, as of `last_used`.
    uses: float = 0.0
    #: What the eviction policy makes of it; the lowest leaves first.
    rank: float = 0.0
    #: Requests in flight over all Routers, as they last said.
    in_flight: int = 0
    #: Sequences that are open over all Routers, as they last said.
    sequences: int = 0
