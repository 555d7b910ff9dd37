"""Events, which happen to the engine, and instructions, which say what it wants done.

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
from services.controller.core.remembered import Failed as Failed
from services.controller.core.remembered import Failing as Failing
from services.controller.core.remembered import Learned as Learned
from services.controller.core.remembered import Used as Used

# --- events ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CatalogueChanged:
    """The catalogue has changed: `specs` replaces what was known of each of `models`. A unit that
    is not in it is gone."""

    models: frozenset[str]
    specs: tuple[UnitSpec, ...]


@dataclass(frozen=True, slots=True)
class ServerFound:
    """A server answers, with the units that its index says are READY, LOADING and UNLOADING.
    `outdated` are those of them that were loaded with a config that the catalogue no longer has;
    `idle`, seconds since the last inference of each, where the server knows."""

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
    """A server is to be given nothing new, and its replicas are to leave. With `restart` it is to
    be restarted once it is empty. An empty `reason` takes a drain back."""

    server: str
    reason: str
    restart: bool = False


@dataclass(frozen=True, slots=True)
class IndexSeen:
    """A healthy server's index was read, from `began` on (seconds of the engine's clock)."""

    server: str
    resident: frozenset[Unit]
    began: float


class ResidentWanted(NamedTuple):
    """A caller waits for a unit until `deadline`, in seconds of the engine's clock. `router` names
    the Router process that gets a use lease; None takes none. `waited`: the seconds that the caller
    has waited before, for an earlier Controller. What is not `urgent` takes spare room only, and is
    no use of the unit."""

    waiter: int
    unit: Unit
    deadline: float
    router: str | None = None
    trace_id: str = ""
    waited: float = 0.0
    urgent: bool = True


@dataclass(frozen=True, slots=True)
class WaiterGone:
    """A caller has given up waiting."""

    waiter: int


@dataclass(frozen=True, slots=True)
class EvictionWanted:
    """A caller wants every replica of `units` gone, and waits until they are."""

    waiter: int
    units: tuple[Unit, ...]


class Loaded(NamedTuple):
    """A load has succeeded after `seconds`."""

    key: ReplicaKey
    attempt: int
    seconds: float


@dataclass(frozen=True, slots=True)
class LoadFailedOnServer:
    """A load has failed. If `undone`, nothing is wrong with the unit, but somebody else had it
    unloaded meanwhile."""

    key: ReplicaKey
    attempt: int
    cause: str
    undone: bool = False


@dataclass(frozen=True, slots=True)
class LoadHung:
    """A load has not finished by its deadline, and may still come to an end."""

    key: ReplicaKey
    attempt: int
    cause: str


class Unloaded(NamedTuple):
    """An unload has finished."""

    key: ReplicaKey
    attempt: int


@dataclass(frozen=True, slots=True)
class UnloadHung:
    """An unload has not finished by its deadline: only a restart gives the memory back."""

    key: ReplicaKey
    attempt: int
    cause: str


@dataclass(frozen=True, slots=True)
class ReplicaBroken:
    """A replica no longer answers, though the server's index says that it is READY."""

    key: ReplicaKey
    cause: str


@dataclass(frozen=True, slots=True)
class Measured:
    """A server was measured: bytes by resource of each unit that could be told apart, and `total`
    of the server over its baseline."""

    server: str
    units: Mapping[Unit, Memory]
    total: Memory


@dataclass(frozen=True, slots=True)
class QueuesSeen:
    """A server's own queues were read: mean seconds that requests waited since last time, by
    unit."""

    server: str
    seconds: Mapping[Unit, float]


@dataclass(frozen=True, slots=True)
class RouterJoined:
    """A Router has subscribed; it has requests in flight on the replicas `in_use`."""

    router: str
    in_use: frozenset[ReplicaKey]


class RouterAcked(NamedTuple):
    """A Router has applied the table of `revision`."""

    router: str
    revision: int


class RouterDrained(NamedTuple):
    """A Router that has applied `revision` has nothing in flight on a replica that it withdrew."""

    router: str
    key: ReplicaKey
    revision: int


class RouterStarted(NamedTuple):
    """The request that a use lease was lent for has started."""

    router: str
    use_lease: str


class Usage(NamedTuple):
    """A Router's use of a replica: seconds since its last request, requests in flight, requests
    begun since the last heartbeat, and open sequences."""

    age: float
    in_flight: int = 0
    requests: int = 1
    sequences: int = 0


@dataclass(frozen=True, slots=True)
class RouterUsed:
    """A Router's heartbeat came, with the replicas that are in use or were used since the last
    one."""

    router: str
    usage: Mapping[ReplicaKey, Usage]


@dataclass(frozen=True, slots=True)
class RouterBroke:
    """A server was lost while a Router had a request in flight on it. `earlier` is where the same
    request had been lost before, if it had; `repeated` says whether it is sent once more."""

    router: str
    key: ReplicaKey
    earlier: ReplicaKey | None = None
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class Due:
    """The time has come at which the engine asked to be woken."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed, as it does about twice a second. `wall` is the time in seconds since the
    epoch, for what depends on the time of day."""

    wall: float = 0.0


@dataclass(frozen=True, slots=True)
class UsesRecalled:
    """What the Registry kept of the uses of units (`Used`): faded uses as of the last one, and how
    many seconds ago that was. Comes before any server is found."""

    uses: Mapping[Unit, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class FailuresRecalled:
    """What the Registry kept of the loads that failed (`Failed`). Comes before any server is
    found."""

    failures: Mapping[Unit, Failing]


Event = (
    CatalogueChanged
    | UsesRecalled
    | FailuresRecalled
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


class Load(NamedTuple):
    """Have exactly `versions` of the unit's model on its server; the unit's own is new."""

    key: ReplicaKey
    attempt: int
    versions: tuple[int, ...]


class Unload(NamedTuple):
    """Have exactly `versions` of the unit's model on its server; the unit's own is not among
    them."""

    key: ReplicaKey
    attempt: int
    versions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Settle:
    """Find out what comes of a load or unload that somebody else has begun on the server. The
    outcome is fed as that of a load if it is `loading`, else as that of an unload."""

    key: ReplicaKey
    attempt: int
    loading: bool


class Phase(NamedTuple):
    """A stretch of a waiter's wait, for its trace: seconds of the engine's clock."""

    name: str
    began: float
    ended: float
    attributes: Mapping[str, str | int | float]


class Granted(NamedTuple):
    """Answer a waiter: the unit is READY there from `revision` on, and stays until `use_lease`
    starts or runs out."""

    waiter: int
    key: ReplicaKey
    revision: int
    use_lease: str
    phases: tuple[Phase, ...]


@dataclass(frozen=True, slots=True)
class Refused:
    """Answer a waiter with a reason."""

    waiter: int
    error: ShoalError
    phases: tuple[Phase, ...] = ()


@dataclass(frozen=True, slots=True)
class Evicted:
    """Answer the waiter for an eviction: the replicas `keys` are gone."""

    waiter: int
    keys: tuple[ReplicaKey, ...]


class Publish(NamedTuple):
    """Tell the Routers that from `revision` on the placements of `models`, or `servers`, differ."""

    revision: int
    models: frozenset[str]
    servers: frozenset[str] = frozenset()


Remember = Learned | Used | Failed
Instruction = Load | Unload | Settle | Granted | Refused | Evicted | Publish | Remember | Record
