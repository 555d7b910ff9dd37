"""The services' resources as plain values.

States, kinds and policies are the names of the protos' enum values without their prefix. Durations
are in seconds, times are UTC, and amounts of memory are bytes by resource ("ram", "gpu:0").
"""

from dataclasses import dataclass, field
from datetime import datetime

from shoal.client.stored import Provenance
from shoal.names import ModelVersionName

Memory = dict[str, int]


# --- the catalogue --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Arm:
    """A target of a traffic policy.

    Attributes:
        model: The model that answers.
        version: A version or an alias of it; "" for its default version.
        weight: Its share of the requests, relative to the other arms' weights.
    """

    model: str
    version: str
    weight: int


@dataclass(frozen=True, slots=True)
class Residency:
    """The residency that a model asks for. None means the Controller's own setting.

    Attributes:
        min_copies: Replicas of the default version that are always kept, 0 to 1000.
        max_copies: The largest number of replicas of one version, 1 to 1000.
        idle_ttl: Seconds without use after which a replica is evicted; 0 for never.
        preload: Whether the default version is loaded when a Controller starts.
        priority: The priority of loads among those of other models, -10 to 10.
        required_labels: Labels that a server must have to hold the model.
    """

    min_copies: int | None = None
    max_copies: int | None = None
    idle_ttl: float | None = None
    preload: bool | None = None
    priority: int | None = None
    required_labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Model:
    """A name that clients can request, and what belongs to it.

    Attributes:
        name: The model's name.
        description: A text for people.
        labels: Labels for people and programs.
        retry_policy: What the Router may do when a server is lost during a request: ONCE or NEVER.
        default_version: The version that answers when none is requested; None while none is
            approved.
        aliases: Versions by alias.
        traffic: The arms of the traffic policy; empty without one.
        residency: What the model asks of the fleet.
        create_time: When the model was created.
        update_time: When it was last changed.
        etag: Changes with every change of the model, its aliases or its traffic policy.
    """

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
    """An immutable set of files with a config.

    Attributes:
        model: The model's name.
        version: The number of the version.
        state: PENDING, APPROVED, REJECTED, INVALID, or WAITING for a server to complete its config.
        invalid_reason: Why the state is INVALID.
        source: The folder on the Registry's host that it is served from, or where its files were
            fetched from.
        artifact_bytes: The size of its files in bytes.
        declared_memory: The memory that its user says it takes; empty if none was declared.
        requires: Versions that must be resident beside it, such as the steps of an ensemble.
        ensemble: Whether it is an ensemble, which takes no memory of its own.
        pinned: Whether it is never evicted.
        config_digest: A digest of the config. Versions that share it can be on one server together.
        fingerprint: Changes when the files or the config are changed in place.
        create_time: When it was registered.
        etag: Changes with every change of the version.
        waiting_reason: Why the state is WAITING.
        provenance: Where it comes from; None from a Registry that does not say.
    """

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
    waiting_reason: str = ""
    provenance: Provenance | None = None


@dataclass(frozen=True, slots=True)
class Imported:
    """The outcome of importing a model repository.

    Attributes:
        versions: The versions that were registered.
        problems: For each file or folder that could not be imported, the reason.
        changed: The versions that were registered or changed by this import.
    """

    versions: tuple[ModelVersion, ...]
    problems: dict[str, str]
    changed: tuple[ModelVersionName, ...] = ()


# --- the fleet ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Server:
    """A Triton server.

    Attributes:
        name: The server's name.
        address: HOST:PORT of its gRPC endpoint.
        state: UNKNOWN, HEALTHY, UNREACHABLE, UNUSABLE or DRAINING.
        state_reason: Why it is in this state, unless it is HEALTHY.
        memory_budget: Memory for models, on top of what the server takes when it is empty.
        memory_reserved: Memory set aside for replicas that are loading, resident or not yet gone.
        memory_measured: Memory that its models took at the last measurement.
        memory_soft_limit: Reserved memory above which idle replicas are evicted ahead of need;
            empty for no such limit.
        memory_leaked: Measured memory that no replica accounts for, left by unloaded models.
        max_models: The largest number of model versions on the server; 0 for no limit.
        models: Model versions on the server that count against `max_models`.
        labels: Labels that models can require.
        restart_wanted: Whether the server is to be restarted once it is empty.
    """

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
    """One model version on one server.

    Attributes:
        server: The server's name.
        model: The model's name.
        version: The number of the version.
        state: QUEUED, LOADING, READY, DRAINING or UNLOADING.
        state_reason: Why it is in this state.
        memory_reserved: Memory set aside for it.
        memory_measured: Memory that it took at the last measurement.
        idle: Seconds since it was last used; None if it never was.
        in_flight: Requests in flight.
        pinned: Whether it is never evicted.
        held_by: Resident versions that need it on this server.
        load_duration: Seconds that its load took; None if that is not known.
    """

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
    """Something that happened to a model version or a server.

    Attributes:
        epoch: The epoch of the Controller, which grows each time that one begins to act.
        sequence: Grows with every event of an epoch; `(epoch, sequence)` is unique.
        time: When it happened.
        kind: What happened, such as LOADING, READY or EVICTING.
        server: The name of the server; "" if none is involved.
        version: The version; None for an event of a server.
        reason: Why, with the numbers that decided.
        for_version: The version that an eviction makes room for; None if there is none.
        trace_id: The trace of the request that caused it, in hexadecimal; "" if it was not traced.
    """

    epoch: int
    sequence: int
    time: datetime
    kind: str
    server: str
    version: ModelVersionName | None
    reason: str
    for_version: ModelVersionName | None
    trace_id: str


# --- explanations ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RouteArm:
    """A version that a request could go to.

    Attributes:
        model: The model's name.
        version: The number of the version.
        share: Its share of the requests, 0 to 1.
        servers: The names of the servers on which it is resident.
    """

    model: str
    version: int
    share: float
    servers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Stay:
    """Why a replica is on its server, and whether it can be evicted.

    Attributes:
        replica: The replica.
        placed: Why it was placed there.
        kept_by: What prevents its eviction; empty if nothing does.
        eviction_turn: Its position among `candidates`, the next to be evicted being 1; None if it
            cannot be evicted.
        candidates: The number of replicas that can be evicted from the server.
        weighed: The values that the eviction policy weighs, by name.
    """

    replica: Replica
    placed: str
    kept_by: tuple[str, ...]
    eviction_turn: int | None
    candidates: int
    weighed: dict[str, float]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A version that could have been evicted.

    Attributes:
        version: The version.
        evicted: Whether it was.
        weighed: The values that the eviction policy weighed, by name.
    """

    version: ModelVersionName
    evicted: bool
    weighed: dict[str, float]


@dataclass(frozen=True, slots=True)
class Eviction:
    """A past eviction.

    Attributes:
        event: The event of the eviction.
        candidates: The versions that could have been evicted, as the policy ranked them; the first
            to be evicted comes first.
    """

    event: Event
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class LoadFailure:
    """The last load of a version, if it failed.

    Attributes:
        server: The name of the server.
        cause: The error in Triton's words.
        count: The number of failures in a row.
        retry_after: Seconds until the load is tried again.
    """

    server: str
    cause: str
    count: int
    retry_after: float


@dataclass(frozen=True, slots=True)
class ServerVerdict:
    """An assessment of what a server could do for a version now.

    Attributes:
        server: The name of the server.
        holds: Whether it holds the version.
        possible: Whether it could load the version.
        reason: What that would take, or what prevents it.
        score: The server's placement score, 0 to 1, if it is possible.
        victims: Versions that would be evicted for it.
    """

    server: str
    holds: bool
    possible: bool
    reason: str
    score: float
    victims: tuple[ModelVersionName, ...]


@dataclass(frozen=True, slots=True)
class VersionExplanation:
    """Why a version is in memory, is not, or was evicted.

    Attributes:
        version: The version.
        reason: Why it is READY on no server, or on no more servers.
        waiters: Requests that wait for it.
        turn: Its position among the versions that wait for a place, from 1; None if it does not
            wait.
        failure: The last load, if it failed.
        servers: What each server could do for it.
        stays: Its replicas, and why they are where they are.
        evictions: Its past evictions, the newest first.
    """

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
    """An explanation of what would happen to a request now.

    Attributes:
        steps: The steps of the Router's decision, for people.
        arms: Every version that the request could go to.
        versions: Why each of those is in memory or is not.
    """

    steps: tuple[str, ...]
    arms: tuple[RouteArm, ...]
    versions: tuple[VersionExplanation, ...]
