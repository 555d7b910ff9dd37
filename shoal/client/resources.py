"""What the services know, as plain values.

States, kinds and policies are the words of the protos' enums without their prefix. Durations are
seconds, moments are UTC, amounts of memory are bytes by resource ("ram", "gpu:0").
"""

from dataclasses import dataclass, field
from datetime import datetime

from shoal.names import ModelVersionName

Memory = dict[str, int]


# --- what exists ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Arm:
    """`version`: a number or an alias of `model`, "" for its default. `weight`: relative."""

    model: str
    version: str
    weight: int


@dataclass(frozen=True, slots=True)
class Residency:
    """What a model asks of the fleet. None: as the Controller's settings have it.

    `min_copies`: replicas of its default version that are always kept. `max_copies`: replicas of
    one version. `idle_ttl`: seconds without use after which it is evicted, 0: never for that
    reason. `preload`: loaded when a Controller starts. `priority`: of its loads, -10 to 10.
    `required_labels`: of the servers that may hold it.
    """

    min_copies: int | None = None
    max_copies: int | None = None
    idle_ttl: float | None = None
    preload: bool | None = None
    priority: int | None = None
    required_labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Model:
    """`default_version`: None while no version is approved. `traffic`: empty without a policy."""

    name: str
    description: str
    labels: dict[str, str]
    retry_policy: str
    default_version: int | None
    aliases: dict[str, int]
    traffic: tuple[Arm, ...]
    residency: Residency
    create_time: datetime
    update_time: datetime
    etag: str


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """`state`: PENDING, APPROVED, REJECTED, or INVALID with its `invalid_reason`."""

    model: str
    version: int
    state: str
    invalid_reason: str
    source: str
    artifact_bytes: int
    declared_memory: Memory
    requires: tuple[ModelVersionName, ...]
    ensemble: bool
    pinned: bool
    config_digest: str
    fingerprint: str
    create_time: datetime
    etag: str


@dataclass(frozen=True, slots=True)
class Imported:
    """`problems`: why, for each folder that is no model."""

    versions: tuple[ModelVersion, ...]
    problems: dict[str, str]


# --- where it lives -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Server:
    """`state`: UNKNOWN, HEALTHY, UNREACHABLE, UNUSABLE, DRAINING. `max_models`: 0 for no limit."""

    name: str
    address: str
    state: str
    state_reason: str
    memory_budget: Memory
    memory_reserved: Memory
    memory_measured: Memory
    memory_soft_limit: Memory
    memory_leaked: Memory
    max_models: int
    models: int
    labels: dict[str, str]
    restart_wanted: bool


@dataclass(frozen=True, slots=True)
class Replica:
    """`state`: QUEUED, LOADING, READY, DRAINING, UNLOADING, FAILED. `idle`: None if never used."""

    server: str
    model: str
    version: int
    state: str
    state_reason: str
    memory_reserved: Memory
    memory_measured: Memory
    idle: float | None
    in_flight: int
    pinned: bool
    held_by: tuple[ModelVersionName, ...]
    load_duration: float | None


@dataclass(frozen=True, slots=True)
class Event:
    """(`epoch`, `sequence`) is never used twice. `for_version`: what the room was made for."""

    epoch: int
    sequence: int
    time: datetime
    kind: str
    server: str
    version: ModelVersionName | None
    reason: str
    for_version: ModelVersionName | None
    trace_id: str


# --- why ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RouteArm:
    """`share`: of the traffic, 0 to 1. `servers`: where it is resident."""

    model: str
    version: int
    share: float
    servers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Stay:
    """Why a replica is where it is. `eviction_turn`: among `candidates`, 1 the first; None: it may
    not leave, for what `kept_by` says. `weighed`: what the eviction policy weighs."""

    replica: Replica
    placed: str
    kept_by: tuple[str, ...]
    eviction_turn: int | None
    candidates: int
    weighed: dict[str, float]


@dataclass(frozen=True, slots=True)
class Candidate:
    version: ModelVersionName
    evicted: bool
    weighed: dict[str, float]


@dataclass(frozen=True, slots=True)
class Eviction:
    """`candidates`: how what could have left was ranked, the first to leave first."""

    event: Event
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class LoadFailure:
    """`cause`: Triton's words. `count`: in a row. `retry_after`: seconds until the next try."""

    server: str
    cause: str
    count: int
    retry_after: float


@dataclass(frozen=True, slots=True)
class ServerVerdict:
    """What a server could do for a version now. `score`: of the placement's, 0 to 1."""

    server: str
    holds: bool
    possible: bool
    reason: str
    score: float
    victims: tuple[ModelVersionName, ...]


@dataclass(frozen=True, slots=True)
class VersionExplanation:
    """`reason`: why it is not READY anywhere, or not on more servers. `turn`: among what waits for
    a place, None: it does not wait. `evictions`: the newest first."""

    version: ModelVersionName
    reason: str
    waiters: int
    turn: int | None
    failure: LoadFailure | None
    servers: tuple[ServerVerdict, ...]
    stays: tuple[Stay, ...]
    evictions: tuple[Eviction, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """`steps`: of the Router's decision, for people. `arms`: every one that could be drawn.
    `versions`: of each arm."""

    steps: tuple[str, ...]
    arms: tuple[RouteArm, ...]
    versions: tuple[VersionExplanation, ...]
