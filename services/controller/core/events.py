"""What happens to the engine (events) and what it wants done (instructions).

Whoever carries an instruction out feeds its outcome back as a later event.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from services.common.errors import ShoalError
from services.controller.core.entities import ReplicaKey, Server, Unit, UnitSpec
from services.controller.core.memory import Memory
from services.controller.core.records import Kind as Kind
from services.controller.core.records import Record as Record
from services.controller.core.records import Weighed as Weighed
from services.controller.core.records import Why as Why

# --- events ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CatalogChanged:
    """`specs` replaces what was known of each of `models`; a unit that is not in it is gone."""

    models: frozenset[str]
    specs: tuple[UnitSpec, ...]


@dataclass(frozen=True, slots=True)
class ServerFound:
    """A server answers. Its index: the units that are READY, LOADING and UNLOADING there.
    `outdated`: those of them that were loaded with another config than the catalogue has now.
    `idle`: seconds since the last inference of each, where the server knows."""

    server: Server
    resident: frozenset[Unit]
    loading: frozenset[Unit] = frozenset()
    unloading: frozenset[Unit] = frozenset()
    outdated: frozenset[Unit] = frozenset()
    idle: Mapping[Unit, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ServerLost:
    """A server does not answer (`usable`), or its answers are wrong (not `usable`)."""

    server: str
    reason: str
    usable: bool = True


@dataclass(frozen=True, slots=True)
class DrainWanted:
    """A server is to be given nothing new, and its replicas are to leave; with `restart` it is
    restarted once it is empty. An empty `reason` takes that back."""

    server: str
    reason: str
    restart: bool = False


@dataclass(frozen=True, slots=True)
class IndexSeen:
    """A healthy server's index; the reading began at `began`, in the engine's time."""

    server: str
    resident: frozenset[Unit]
    began: float


@dataclass(frozen=True, slots=True)
class ResidentWanted:
    """Somebody waits for a unit until `deadline` (seconds of the same clock as `now`). `router`
    names the Router process that gets a use lease; None takes none."""

    waiter: int
    unit: Unit
    deadline: float
    router: str | None = None
    trace_id: str = ""


@dataclass(frozen=True, slots=True)
class WaiterGone:
    waiter: int


@dataclass(frozen=True, slots=True)
class EvictionWanted:
    """Somebody wants every replica of `units` gone."""

    waiter: int
    units: tuple[Unit, ...]


@dataclass(frozen=True, slots=True)
class Loaded:
    key: ReplicaKey
    attempt: int
    seconds: float


@dataclass(frozen=True, slots=True)
class LoadFailedOnServer:
    """`undone`: nothing is wrong with it, but somebody else had it unloaded meanwhile."""

    key: ReplicaKey
    attempt: int
    cause: str
    undone: bool = False


@dataclass(frozen=True, slots=True)
class LoadHung:
    """A load was not over within its deadline, and may still come to an end."""

    key: ReplicaKey
    attempt: int
    cause: str


@dataclass(frozen=True, slots=True)
class Unloaded:
    key: ReplicaKey
    attempt: int


@dataclass(frozen=True, slots=True)
class UnloadHung:
    """An unload was not over within its deadline: only a restart gives its memory back."""

    key: ReplicaKey
    attempt: int
    cause: str


@dataclass(frozen=True, slots=True)
class ReplicaBroken:
    """A replica that is READY by the server's index does not answer any more."""

    key: ReplicaKey
    cause: str


@dataclass(frozen=True, slots=True)
class Measured:
    """Bytes by resource of each unit on a server that could be told apart, and `total`: of the
    server over its baseline."""

    server: str
    units: Mapping[Unit, Memory]
    total: Memory


@dataclass(frozen=True, slots=True)
class QueuesSeen:
    """Mean seconds that requests spent in the server's own queues since the last look, by unit."""

    server: str
    seconds: Mapping[Unit, float]


@dataclass(frozen=True, slots=True)
class RouterJoined:
    """A Router subscribed; `in_use` are the replicas that it has requests in flight on."""

    router: str
    in_use: frozenset[ReplicaKey]


@dataclass(frozen=True, slots=True)
class RouterAcked:
    router: str
    revision: int


@dataclass(frozen=True, slots=True)
class RouterDrained:
    router: str
    key: ReplicaKey
    revision: int


@dataclass(frozen=True, slots=True)
class RouterStarted:
    router: str
    use_lease: str


class Usage(NamedTuple):
    """A Router's use of a replica: seconds since its last request, requests and sequences in
    flight, and requests begun since the Router said so last."""

    age: float
    in_flight: int = 0
    requests: int = 1
    sequences: int = 0


@dataclass(frozen=True, slots=True)
class RouterUsed:
    """A Router's heartbeat: the replicas that were used since the last one, or are in use."""

    router: str
    usage: Mapping[ReplicaKey, Usage]


@dataclass(frozen=True, slots=True)
class RouterBroke:
    """A server was lost while it had a request; `earlier`: where the same request had been lost
    before; `repeated`: it is sent once more."""

    router: str
    key: ReplicaKey
    earlier: ReplicaKey | None = None
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class Due:
    """It is the time that the engine asked to be woken at."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed: twice a second or so. `wall`: seconds since the epoch, for what depends on
    the time of day."""

    wall: float = 0.0


Event = (
    CatalogChanged
    | ServerFound
    | ServerLost
    | DrainWanted
    | IndexSeen
    | ResidentWanted
    | WaiterGone
    | EvictionWanted
    | Loaded
    | LoadFailedOnServer
    | LoadHung
    | Unloaded
    | UnloadHung
    | ReplicaBroken
    | Measured
    | QueuesSeen
    | RouterJoined
    | RouterAcked
    | RouterDrained
    | RouterStarted
    | RouterUsed
    | RouterBroke
    | Due
    | Tick
)

# --- instructions ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Load:
    """Have `versions` of the unit's model wanted on its server, of which the unit's is new."""

    key: ReplicaKey
    attempt: int
    versions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Unload:
    """Have only `versions` of the unit's model wanted on its server, without the unit's own."""

    key: ReplicaKey
    attempt: int
    versions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Settle:
    """The server is loading or unloading it, told so by somebody else: find out what comes of it.
    Answered as a load is when it was `loading`, else as an unload is."""

    key: ReplicaKey
    attempt: int
    loading: bool


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of a waiter's wait, for its trace: seconds of the engine's clock."""

    name: str
    began: float
    ended: float
    attributes: Mapping[str, str | int | float]


@dataclass(frozen=True, slots=True)
class Granted:
    """The unit is READY there since `revision`, and stays until `use_lease` started or ran out."""

    waiter: int
    key: ReplicaKey
    revision: int
    use_lease: str
    phases: tuple[Phase, ...]


@dataclass(frozen=True, slots=True)
class Refused:
    waiter: int
    error: ShoalError
    phases: tuple[Phase, ...] = ()


@dataclass(frozen=True, slots=True)
class Evicted:
    waiter: int
    keys: tuple[ReplicaKey, ...]


@dataclass(frozen=True, slots=True)
class Publish:
    """The placements of `models`, or `servers`, are different from `revision` on."""

    revision: int
    models: frozenset[str]
    servers: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Learned:
    """A unit's size or load time is better known; the Registry keeps it."""

    unit: Unit
    config_digest: str
    memory: Memory
    load_seconds: float | None


Instruction = Load | Unload | Settle | Granted | Refused | Evicted | Publish | Learned | Record
