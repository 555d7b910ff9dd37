"""What the Controller knows: units, servers, replicas. Immutable, replaced and never changed."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

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
    `declared`, `learned`: bytes by resource, empty when unknown. `load_seconds`: learned; None when
    it never was loaded. `requires`: units that must be READY beside it. `min_copies`: replicas that
    are kept whether used or not; `max_copies`: None for the default of `Limits`. `idle_ttl`:
    seconds without use until it is evicted, 0 for never, None for the default. `preload`: loaded
    when the Controller starts. `priority`: of its loads, the higher first. `required_labels`: of
    the servers that may hold it.
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
    min_copies: int = 0
    max_copies: int | None = None
    idle_ttl: float | None = None
    preload: bool = False
    priority: int = 0
    required_labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def slots(self) -> int:
        """How much of a server's `max_models` it takes: an ensemble is made of its parts alone."""
        return 0 if self.ensemble else 1

    @property
    def size_known(self) -> bool:
        return self.ensemble or bool(self.declared) or bool(self.learned)

    @property
    def kept(self) -> int:
        """How many replicas are wanted when nobody asks for it."""
        return max(self.min_copies, 1 if self.pinned else 0)


class Health(enum.Enum):
    UNKNOWN = "not inventoried yet"
    HEALTHY = "healthy"
    UNREACHABLE = "unreachable"
    UNUSABLE = "unusable"


@dataclass(frozen=True, slots=True)
class Server:
    """One Triton.

    `budget`: bytes by resource over the server's own baseline, empty for none. `soft`: bytes beyond
    which idle replicas leave ahead of need. `max_models`: how many units at most, 0 for no limit;
    `headroom_models`: how many of them are kept free ahead of need. `host`: servers of one host
    share its cores. `measured`: bytes that its models take; `leaked`: beyond what they should.
    `draining`: why it is given nothing new, empty when it is; `restart`: because it is to be
    restarted, `restart_wanted`: now that it is empty.
    """

    id: str
    address: str
    budget: Memory = field(default_factory=dict)
    max_models: int = 0
    health: Health = Health.UNKNOWN
    reason: str = ""
    measured: Memory = field(default_factory=dict)
    soft: Memory = field(default_factory=dict)
    headroom_models: int = 0
    host: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    leaked: Memory = field(default_factory=dict)
    draining: str = ""
    restart: bool = False
    restart_wanted: bool = False

    @property
    def accepting(self) -> bool:
        """Whether something new may be placed on it."""
        return self.health is Health.HEALTHY and not self.draining


class Replica(NamedTuple):
    """`reserved`: bytes by resource that count against the budget; `measured`: the high-water mark
    of this residence. `since`: when it came into its state, seconds of the engine's clock.
    `reason`: of its state; `placed`: why it is on this server. `slots`: what it takes of the
    server's `max_models`; `digest`: of the config that it is loaded with. `broken`: it is READY by
    the server's index and does not answer, or it is to leave as soon as it is READY."""

    key: ReplicaKey
    state: State
    reserved: Memory
    since: float
    reason: str
    placed: str = ""
    attempt: int = 0
    measured: Memory = NOTHING
    load_seconds: float | None = None
    slots: int = 1
    digest: str = ""
    broken: bool = False

    @property
    def unit(self) -> Unit:
        return self.key.unit


class Use(NamedTuple):
    """How a replica is used. `last_used`: seconds of the engine's clock. `uses`: requests, each
    counting half after every half-life, as of `last_used`. `rank`: what the eviction policy makes
    of it; the lowest leaves first. `in_flight`, `sequences`: over all Routers, as
    they last said."""

    last_used: float
    uses: float = 0.0
    rank: float = 0.0
    in_flight: int = 0
    sequences: int = 0
