"""The Router's side of the placement stream: the table, and what is in use, told back."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from datetime import timedelta
from typing import Any, Final, Protocol

import grpc
import structlog

from services.router.core.routes import Arm, Replica, Route, Target, VersionRoute
from services.router.core.table import NONE, Change, Revision, StaleEpoch, Table
from services.router.in_use import InUse
from shoal.controller.v1 import placement_pb2 as wire
from shoal.controller.v1 import types_pb2
from shoal.registry.v1 import types_pb2 as registry

HEARTBEAT_SECONDS: Final = 0.25
SILENCE_SECONDS: Final = 5.0  # checkpoints come every second
RETRY_SECONDS: Final = 0.2

_log = structlog.get_logger(__name__)


class Keeper(Protocol):
    """Whoever wants every message of the stream that changes the table."""

    def keep(self, response: wire.WatchPlacementsResponse) -> None: ...


class PlacementWatch:
    """`router`: this process's name, new at every start. `connected`: whether the Controller is
    heard from; the table is used as it was while it is not. `keeper`: is told every change."""

    def __init__(self, stub: Any, router: str, table: Table, keeper: Keeper | None) -> None:
        self._stub = stub
        self._keeper = keeper
        self.router = router
        self.table = table
        self.connected = False
        self.synchronized = asyncio.Event()
        self.in_use = InUse(self._busy, self._idle)
        # In use, it may be, without being in the table: withdrawn, or granted and not seen in it.
        self._loose: set[Replica] = set()
        self._told: dict[Replica, float] = {}
        self._outgoing: asyncio.Queue[wire.WatchPlacementsRequest] = asyncio.Queue()

    async def run(self) -> None:
        """Follow the Controller, for ever."""
        while True:
            try:
                await self._follow()
            except (grpc.aio.AioRpcError, TimeoutError) as error:
                if self.connected:
                    cause = error.details() if isinstance(error, grpc.RpcError) else "silence"
                    _log.warning("controller lost, the table is kept", cause=cause)
            except StaleEpoch as stale:
                _log.warning(
                    "a controller that does not act any more was refused", cause=str(stale)
                )
            self.connected = False
            await asyncio.sleep(RETRY_SECONDS)

    def started(self, replica: Replica, use_lease: str) -> None:
        """The request that a use lease was given for is in flight on `replica`."""
        self._loose.add(replica)
        message = wire.WatchPlacementsRequest()
        message.started.use_lease = use_lease
        self._outgoing.put_nowait(message)

    async def _follow(self) -> None:
        self._outgoing = asyncio.Queue()
        self._outgoing.put_nowait(self._subscription())
        call = self._stub.WatchPlacements(self._messages())
        try:
            responses = aiter(call)
            while True:
                async with asyncio.timeout(SILENCE_SECONDS):
                    response = await anext(responses, None)
                if response is None:
                    return
                self._apply(response)
                if not self.connected:
                    self.connected = True
                    _log.info("controller found", revision=str(self.table.revision))
                self.synchronized.set()
        finally:
            call.cancel()

    async def _messages(self) -> AsyncIterator[wire.WatchPlacementsRequest]:
        """What there is to say, as soon as it is there; a heartbeat at least every 250 ms."""
        outgoing = self._outgoing
        while True:
            try:
                async with asyncio.timeout(HEARTBEAT_SECONDS):
                    message = await outgoing.get()
            except TimeoutError:
                message = self._usage()
            yield message

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
        for replica, (age, in_flight) in self.in_use.usage().items():
            self._told[replica] = now
            row = message.usage.replicas.add(replica=_ref(replica), in_flight=in_flight)
            row.age.FromTimedelta(timedelta(seconds=age))
        return message

    def _apply(self, response: wire.WatchPlacementsResponse) -> None:
        if response.WhichOneof("message") == "checkpoint":
            return
        withdrawn = self.table.apply(change_of(response))
        message = wire.WatchPlacementsRequest()
        message.ack.revision.CopyFrom(response.revision)
        self._outgoing.put_nowait(message)
        self._loose |= withdrawn
        for replica in list(self._loose):
            if self.table.holds(replica):
                self._loose.discard(replica)
            elif not self.in_use.count(replica):
                self._loose.discard(replica)
                self._told.pop(replica, None)
                self._say_drained(replica)
        if self._keeper is not None:
            self._keeper.keep(response)

    def _busy(self, replica: Replica) -> None:
        """Told at once, unless a heartbeat of just now has told it."""
        if time.monotonic() - self._told.get(replica, 0.0) > HEARTBEAT_SECONDS:
            self._outgoing.put_nowait(self._usage())

    def _idle(self, replica: Replica) -> None:
        if replica in self._loose and not self.table.holds(replica):
            self._say_drained(replica)

    def _say_drained(self, replica: Replica) -> None:
        message = wire.WatchPlacementsRequest()
        message.drained.replica.CopyFrom(_ref(replica))
        message.drained.revision.CopyFrom(_revision(self.table.revision))
        self._outgoing.put_nowait(message)


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
    )


def _unknown(servers: Iterable[wire.ServerEndpoint]) -> frozenset[str]:
    return frozenset(s.server for s in servers if s.state == types_pb2.SERVER_STATE_UNKNOWN)


def _route(message: wire.ModelRoute) -> Route:
    return Route(
        default_version=message.default_version,
        aliases=dict(message.aliases),
        versions={
            version.version: VersionRoute(
                version.config_digest, tuple(version.servers), version.servable, version.reason
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
