"""The Router's side of the placement stream: the table, and what is in use, told back."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any, Final, Protocol

import grpc
import structlog

from services.router.control.in_use import InUse, Use
from services.router.control.leader import Acting
from services.router.core.attempts import Broke
from services.router.core.routing.routes import Arm, Replica, Route, Target, VersionRoute
from services.router.core.routing.sequences import Sequences
from services.router.core.routing.table import NONE, Change, Revision, StaleEpoch, Table
from shoal.controller.v1 import placement_pb2 as wire
from shoal.controller.v1 import types_pb2
from shoal.registry.v1 import types_pb2 as registry

HEARTBEAT_SECONDS: Final = 0.25
SILENCE_SECONDS: Final = 2.5  # checkpoints come every second
RETRY_SECONDS: Final = 0.2
STANDBY_SECONDS: Final = 0.5  # between two tries of the others, while one is followed

_log = structlog.get_logger(__name__)


class Keeper(Protocol):
    """Whoever wants every message of the stream that changes the table."""

    def keep(self, response: wire.WatchPlacementsResponse) -> None: ...


class PlacementWatch:
    """Follows the Controller that acts, of all those that there are.

    Every one is tried for ever, at the same time: one on standby refuses, one that was stopped says
    nothing, one that has been replaced says so by its epoch. Whoever comes with a higher epoch than
    the table's is followed from then on.

    `controllers`: stubs by address. `router`: this process's name, new at every start. `acting`:
    the Controller that is heard from; the table is used as it was while there is none. `keeper`: is
    told every change."""

    def __init__(
        self, controllers: Mapping[str, Any], router: str, table: Table, keeper: Keeper | None
    ) -> None:
        self._controllers = controllers
        self._keeper = keeper
        self.router = router
        self.table = table
        self.acting: Acting | None = None
        self.found = asyncio.Event()  # set while there is one
        self.synchronized = asyncio.Event()
        self.in_use = InUse(self._busy, self._idle)
        self.sequences = Sequences()
        self._listeners: list[Callable[[], None]] = []
        self._queues: list[Callable[[Target], int]] = []
        # In use, it may be, without being in the table: withdrawn, or granted and not seen in it.
        self._loose: set[Replica] = set()
        self._told: dict[Replica, float] = {}

    def listen(self, listener: Callable[[], None]) -> None:
        """Have `listener` called whenever a change is in the table, before anything is sent by it
        and before the Controller hears that it is known."""
        self._listeners.append(listener)

    def count_waiting(self, queue: Callable[[Target], int]) -> None:
        """Have `queue` asked how many requests wait in this Router for a version."""
        self._queues.append(queue)

    @property
    def connected(self) -> bool:
        return self.acting is not None

    @property
    def addresses(self) -> str:
        return ",".join(self._controllers)

    async def run(self) -> None:
        """Follow whichever Controller acts, for ever."""
        async with asyncio.TaskGroup() as tasks:
            for address, stub in self._controllers.items():
                tasks.create_task(self._try(address, stub))

    def started(self, replica: Replica, use_lease: str) -> None:
        """The request that a use lease was given for is in flight on `replica`."""
        self._loose.add(replica)
        message = wire.WatchPlacementsRequest()
        message.started.use_lease = use_lease
        self._say(message)

    def tie(self, id_: int | str, replica: Replica) -> None:
        """A sequence has begun on `replica`, or goes on there. The first one is told at once:
        between its requests, it is all that keeps the replica."""
        if self.sequences.tie(id_, replica, time.monotonic()):
            self._say(self._usage())

    def broke(self, broke: Broke) -> None:
        """Tell the Controller of a server that was lost while it had a request."""
        message = wire.WatchPlacementsRequest()
        message.broke.replica.CopyFrom(_ref(broke.replica))
        message.broke.repeated = broke.repeated
        if broke.earlier is not None:
            message.broke.earlier.CopyFrom(_ref(broke.earlier))
        self._say(message)

    async def _try(self, address: str, stub: Any) -> None:
        refused = ""
        while True:
            acting = Acting(address, stub)
            cause = "it ended the stream"
            try:
                await self._follow(acting)
            except grpc.aio.AioRpcError as error:
                cause = error.details() or error.code().name
            except TimeoutError:
                cause = f"nothing was heard for {SILENCE_SECONDS} s"
            except StaleEpoch as stale:
                cause = str(stale)
                if refused != cause:
                    _log.warning("refused, it does not act any more", controller=address)
                refused = cause
            self._lose(acting, cause)
            await asyncio.sleep(STANDBY_SECONDS if self.acting is not None else RETRY_SECONDS)

    async def _follow(self, acting: Acting) -> None:
        acting.outgoing.put_nowait(self._subscription())
        call = acting.stub.WatchPlacements(self._messages(acting))
        try:
            responses = aiter(call)
            while True:
                async with asyncio.timeout(SILENCE_SECONDS):
                    response = await anext(responses, None)
                if response is None or acting.lost:
                    return
                if self.acting is not acting and not self._prefer(acting, response):
                    return
                self._apply(response, acting)
                self.synchronized.set()
        finally:
            call.cancel()

    def _prefer(self, acting: Acting, response: wire.WatchPlacementsResponse) -> bool:
        """Follow `acting` from now on, unless another one is followed in the same epoch: it is the
        same one, by another address. Raises StaleEpoch."""
        before, epoch = self.acting, response.revision.epoch
        if epoch < self.table.revision.epoch:
            raise StaleEpoch(f"epoch {epoch} is before {self.table.revision.epoch}")
        if before is not None:
            if epoch == self.table.revision.epoch:
                return False
            self._lose(before, f"epoch {epoch} has begun")
        self.acting = acting
        self.found.set()
        self.in_use.count_anew()
        self._told.clear()
        _log.info("controller found", controller=acting.address, epoch=epoch)
        return True

    def _lose(self, acting: Acting, cause: str) -> None:
        acting.end()
        if self.acting is acting:
            self.acting = None
            self.found.clear()
            _log.warning(
                "controller lost, the table is kept", controller=acting.address, cause=cause
            )

    async def _messages(self, acting: Acting) -> AsyncIterator[wire.WatchPlacementsRequest]:
        """A heartbeat at least every 250 ms, to the one that is followed."""
        async for message in acting.said(HEARTBEAT_SECONDS):
            if message is not None:
                yield message
            elif self.acting is acting:
                yield self._usage()

    def _say(self, message: wire.WatchPlacementsRequest) -> None:
        """While there is nobody to hear it, it is dropped: the next subscription tells what holds
        then."""
        if self.acting is not None:
            self.acting.outgoing.put_nowait(message)

    def _subscription(self) -> wire.WatchPlacementsRequest:
        message = wire.WatchPlacementsRequest()
        message.subscribe.router = self.router
        message.subscribe.in_use.extend(map(_ref, self.in_use.busy()))
        if self.table.revision != NONE:
            message.subscribe.known.CopyFrom(_revision(self.table.revision))
        return message

    def _usage(self) -> wire.WatchPlacementsRequest:
        message = wire.WatchPlacementsRequest()
        message.usage.SetInParent()
        now = time.monotonic()
        used, tied = self.in_use.usage(), self.sequences.used(now)
        for replica in {**used, **tied}:
            sequences, age = tied.get(replica, (0, 0.0))
            use = used.get(replica, Use(age, 0, 0))
            self._told[replica] = now
            row = message.usage.replicas.add(
                replica=_ref(replica),
                in_flight=use.in_flight + self._waiting(replica),
                requests=use.requests,
                sequences=sequences,
            )
            row.age.FromTimedelta(timedelta(seconds=use.age))
        return message

    def _waiting(self, replica: Replica) -> int:
        """Its share of those that wait for the version: they are demand for it as much as what is
        in flight, and it is they that another copy would serve."""
        if not self.table.holds(replica):
            return 0
        waiting = sum(queue(replica.target) for queue in self._queues)
        return -(-waiting // len(self.table.servers(replica.target)))

    def _apply(self, response: wire.WatchPlacementsResponse, acting: Acting) -> None:
        if response.WhichOneof("message") == "checkpoint":
            self._note(response.unregistered_resident)
            return
        withdrawn = self.table.apply(change_of(response))
        self._changed()
        message = wire.WatchPlacementsRequest()
        message.ack.revision.CopyFrom(response.revision)
        acting.outgoing.put_nowait(message)
        self._loose |= withdrawn
        for replica in list(self._loose):
            if self.table.holds(replica):
                self._loose.discard(replica)
            elif not self.in_use.count(replica) and not self.sequences.any(replica):
                self._loose.discard(replica)
                self._told.pop(replica, None)
                self._say_drained(replica)
        if self._keeper is not None:
            self._keeper.keep(response)

    def _note(self, unregistered: bool) -> None:
        if unregistered is not self.table.unregistered:
            self.table.unregistered = unregistered
            self._changed()

    def _changed(self) -> None:
        for listener in self._listeners:
            listener()

    def _busy(self, replica: Replica) -> None:
        """Told at once, unless a heartbeat of just now has told it."""
        told = self._told.get(replica, 0.0)
        if self.acting is not None and time.monotonic() - told > HEARTBEAT_SECONDS:
            self._say(self._usage())

    def _idle(self, replica: Replica) -> None:
        # Where sequences are left, a heartbeat without them will say so.
        if (
            replica in self._loose
            and not self.table.holds(replica)
            and not self.sequences.any(replica)
        ):
            self._say_drained(replica)

    def _say_drained(self, replica: Replica) -> None:
        message = wire.WatchPlacementsRequest()
        message.drained.replica.CopyFrom(_ref(replica))
        message.drained.revision.CopyFrom(_revision(self.table.revision))
        self._say(message)


def change_of(response: wire.WatchPlacementsResponse) -> Change:
    """A snapshot or a delta as the table takes it."""
    whole = response.WhichOneof("message") == "snapshot"
    body: Any = response.snapshot if whole else response.delta
    return Change(
        revision=Revision(response.revision.epoch, response.revision.number),
        whole=whole,
        routes={route.model: _route(route) for route in body.models},
        addresses={server.server: server.address for server in body.servers},
        unknown_servers=_unknown(body.servers),
        removed_models=frozenset(() if whole else body.removed_models),
        removed_servers=frozenset(() if whole else body.removed_servers),
        unregistered=response.unregistered_resident,
    )


def _unknown(servers: Iterable[wire.ServerEndpoint]) -> frozenset[str]:
    return frozenset(s.server for s in servers if s.state == types_pb2.SERVER_STATE_UNKNOWN)


def _route(message: wire.ModelRoute) -> Route:
    return Route(
        default_version=message.default_version,
        aliases=dict(message.aliases),
        versions={
            version.version: VersionRoute(
                version.config_digest,
                tuple(version.servers),
                version.servable,
                version.reason,
                version.decoupled if version.HasField("decoupled") else None,
            )
            for version in message.versions
        },
        arms=tuple(Arm(arm.model, arm.version, arm.weight) for arm in message.arms),
        retry=message.retry_policy != registry.RETRY_POLICY_NEVER,
    )


def _ref(replica: Replica) -> wire.ReplicaRef:
    return wire.ReplicaRef(
        server=replica.server, model=replica.target.model, version=replica.target.version
    )


def replica_of(ref: wire.ReplicaRef) -> Replica:
    return Replica(ref.server, Target(ref.model, ref.version))


def _revision(revision: Revision) -> wire.Revision:
    return wire.Revision(epoch=revision.epoch, number=revision.number)
