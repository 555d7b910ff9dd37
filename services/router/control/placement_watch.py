"""The Router's end of the placement stream: it receives the table and reports what is in use."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any, Final, Protocol

import grpc
import structlog

from services.common.tasks import TaskScope
from services.router.control.in_use import InUse, Use
from services.router.control.leader import ActingController
from services.router.core.attempts import Loss
from services.router.core.routing.routes import Arm, Replica, Route, Target, VersionRoute
from services.router.core.routing.sequences import Sequences
from services.router.core.routing.table import NONE, Change, Revision, StaleEpoch, Table
from shoal.controller.v1 import placement_pb2 as wire
from shoal.controller.v1 import types_pb2
from shoal.registry.v1 import types_pb2 as registry

HEARTBEAT_SECONDS: Final = 0.25
SILENCE_SECONDS: Final = 2.5  # checkpoints arrive every second
RETRY_SECONDS: Final = 0.2
STANDBY_SECONDS: Final = 0.5  # between attempts with the others, while one is followed

_log = structlog.get_logger(__name__)

#: Gets a change to the table, or None if no placement has changed. Returns what to wait for until
#: nothing new is sent to what the change withdrew, or None if that is so at once.
Listener = Callable[[Change | None], Awaitable[None] | None]


class TableKeeper(Protocol):
    """Keeps a copy of the table."""

    def keep(self, response: wire.WatchPlacementsResponse) -> None:
        """Take in a message of the stream that changes the table."""


class PlacementWatch:
    """Follows the Controller that acts, among all Controllers.

    All of them are tried at the same time, without end. One on standby refuses, one that was
    stopped says nothing, and one that has been replaced gives itself away by its epoch. Whichever
    comes with a higher epoch than the table's is followed from then on.

    `controllers` maps addresses to stubs. `router` names this process and is new at every start.
    `keeper` is told of every change."""

    def __init__(
        self, controllers: Mapping[str, Any], router: str, table: Table, keeper: TableKeeper | None
    ) -> None:
        self._controllers = controllers
        self._keeper = keeper
        self.router = router
        self.table = table
        #: The Controller that is heard from. Without one, the table is used as it is.
        self.acting: ActingController | None = None
        #: Set while a Controller is heard from.
        self.found = asyncio.Event()
        #: Set once there is a first table.
        self.synchronized = asyncio.Event()
        self.in_use = InUse(self._on_busy, self._on_idle)
        self.sequences = Sequences()
        self._listeners: list[Listener] = []
        #: Revisions that listeners have yet to settle, in order, each with what it withdrew.
        self._unsettled: deque[tuple[wire.Revision, set[Replica]]] = deque()
        self._settling = TaskScope("revisions to settle")
        self._queues: list[Callable[[Target], int]] = []
        #: Replicas that may be in use without being in the table: they were withdrawn, or were
        #: granted before the table had them.
        self._outside_table: set[Replica] = set()
        #: When the use of each replica was last reported, in seconds of the monotonic clock.
        self._reported_at: dict[Replica, float] = {}

    def listen(self, listener: Listener) -> None:
        """Call `listener` after every change to the table, before anything is sent by the new table
        and before the Controller learns that it has arrived. The Controller learns no sooner than
        what `listener` returns is done."""
        self._listeners.append(listener)

    def count_waiting(self, queue: Callable[[Target], int]) -> None:
        """Ask `queue` for the number of requests in this Router that wait for a version."""
        self._queues.append(queue)

    @property
    def connected(self) -> bool:
        """Whether a Controller is heard from."""
        return self.acting is not None

    @property
    def addresses(self) -> str:
        """The addresses of all Controllers, separated by commas."""
        return ",".join(self._controllers)

    async def run(self) -> None:
        """Follow whichever Controller acts, without end."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for address, stub in self._controllers.items():
                    tasks.create_task(self._keep_following(address, stub))
        finally:
            await self._settling.close()

    def started(self, replica: Replica, use_lease: str) -> None:
        """Report that the request for which a use lease was given is in flight on `replica`."""
        self._outside_table.add(replica)
        message = wire.WatchPlacementsRequest()
        message.started.use_lease = use_lease
        self._send(message)

    def tie(self, id_: int | str, replica: Replica) -> None:
        """Tie a sequence to `replica`. The first one there is reported at once: between its
        requests, nothing else keeps the replica."""
        if self.sequences.tie(id_, replica, time.monotonic()):
            self._send(self._usage())

    def report_loss(self, loss: Loss) -> None:
        """Report a server that was lost while it had a request."""
        message = wire.WatchPlacementsRequest()
        message.broke.replica.CopyFrom(_ref(loss.replica))
        message.broke.repeated = loss.repeated
        if loss.earlier is not None:
            message.broke.earlier.CopyFrom(_ref(loss.earlier))
        self._send(message)

    async def _keep_following(self, address: str, stub: Any) -> None:
        """Follow one Controller whenever it acts, without end."""
        refused = ""
        while True:
            acting = ActingController(address, stub)
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
                    _log.warning("controller refused: it no longer acts", controller=address)
                refused = cause
            self._lose(acting, cause)
            await asyncio.sleep(STANDBY_SECONDS if self.acting is not None else RETRY_SECONDS)

    async def _follow(self, acting: ActingController) -> None:
        acting.outgoing.put_nowait(self._subscription())
        call = acting.stub.WatchPlacements(self._messages(acting))
        try:
            responses = aiter(call)
            while True:
                async with asyncio.timeout(SILENCE_SECONDS):
                    response = await anext(responses, None)
                if response is None or acting.lost:
                    return
                if self.acting is not acting and not self._switch_to(acting, response):
                    return
                self._apply(response)
                self.synchronized.set()
        finally:
            call.cancel()

    def _switch_to(self, acting: ActingController, response: wire.WatchPlacementsResponse) -> bool:
        """Return whether `acting` is followed from now on. It is not if another one is followed in
        the same epoch: that is the same Controller at another address. Raises StaleEpoch."""
        before, epoch = self.acting, response.revision.epoch
        if epoch < self.table.revision.epoch:
            raise StaleEpoch(f"epoch {epoch} is before {self.table.revision.epoch}")
        if before is not None:
            if epoch == self.table.revision.epoch:
                return False
            self._lose(before, f"epoch {epoch} has begun")
        self.acting = acting
        self.found.set()
        self.in_use.restart_counts()
        self._reported_at.clear()
        _log.info("controller found", controller=acting.address, epoch=epoch)
        return True

    def _lose(self, acting: ActingController, cause: str) -> None:
        acting.end()
        if self.acting is acting:
            self.acting = None
            self.found.clear()
            _log.warning(
                "controller lost: the table stays in use", controller=acting.address, cause=cause
            )

    async def _messages(
        self, acting: ActingController
    ) -> AsyncIterator[wire.WatchPlacementsRequest]:
        """Yield messages to `acting`. If it is followed, that includes a heartbeat at least every
        250 ms."""
        async for message in acting.messages(HEARTBEAT_SECONDS):
            if message is not None:
                yield message
            elif self.acting is acting:
                yield self._usage()

    def _send(self, message: wire.WatchPlacementsRequest) -> None:
        """Send a message. If there is nobody to receive it, it is dropped; the next subscription
        says what holds then."""
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
        used, tied = self.in_use.usage(), self.sequences.usage(now)
        for replica in {**used, **tied}:
            sequences, age = tied.get(replica, (0, 0.0))
            use = used.get(replica, Use(age, 0, 0))
            self._reported_at[replica] = now
            row = message.usage.replicas.add(
                replica=_ref(replica),
                in_flight=use.in_flight + self._waiting_share(replica),
                requests=use.requests,
                sequences=sequences,
            )
            row.age.FromTimedelta(timedelta(seconds=use.age))
        return message

    def _waiting_share(self, replica: Replica) -> int:
        """Return the replica's share of the requests that wait for its version. They are as much
        demand for it as those in flight, and another copy would serve them."""
        if not self.table.holds(replica):
            return 0
        waiting = sum(queue(replica.target) for queue in self._queues)
        return -(-waiting // len(self.table.servers(replica.target)))

    def _apply(self, response: wire.WatchPlacementsResponse) -> None:
        if response.WhichOneof("message") == "checkpoint":
            self._note_unregistered(response.unregistered_resident)
            return
        change = change_of(response)
        withdrawn = self.table.apply(change)
        waits = self._changed(change)
        self._outside_table |= withdrawn
        if self._keeper is not None:
            self._keeper.keep(response)
        if waits or self._unsettled:
            self._unsettled.append((response.revision, withdrawn))
            before = [*self._settling]
            self._settling.start(self._settle(response.revision, before, waits))
        else:
            self._acknowledge(response.revision)

    async def _settle(
        self,
        revision: wire.Revision,
        before: Iterable[Awaitable[None]],
        waits: Iterable[Awaitable[None]],
    ) -> None:
        """Acknowledge a revision once the listeners go by it, after those before it."""
        await asyncio.gather(*before, *waits, return_exceptions=True)
        self._unsettled.popleft()
        self._acknowledge(revision)

    def _acknowledge(self, revision: wire.Revision) -> None:
        """Tell the Controller that nothing new is sent to what `revision` withdrew, and what of it
        is over already."""
        if revision.epoch == self.table.revision.epoch:
            message = wire.WatchPlacementsRequest()
            message.ack.revision.CopyFrom(revision)
            self._send(message)
        for replica in list(self._outside_table):
            if self.table.holds(replica):
                self._outside_table.discard(replica)
            elif not self.in_use.count(replica) and self._may_be_drained(replica):
                self._outside_table.discard(replica)
                self._reported_at.pop(replica, None)
                self._send_drained(replica)

    def _may_be_drained(self, replica: Replica) -> bool:
        """Return whether a replica outside the table is over once it has no request in flight."""
        return not self.sequences.any_on(replica) and not any(
            replica in withdrawn for _, withdrawn in self._unsettled
        )

    def _note_unregistered(self, unregistered: bool) -> None:
        if unregistered is not self.table.unregistered:
            self.table.unregistered = unregistered
            self._changed(None)

    def _changed(self, change: Change | None) -> list[Awaitable[None]]:
        """Tell the listeners. Returns what to wait for."""
        waits = [listener(change) for listener in self._listeners]
        return [wait for wait in waits if wait is not None]

    def _on_busy(self, replica: Replica) -> None:
        """Report at once that a replica is in use, unless a heartbeat has just done so."""
        reported_at = self._reported_at.get(replica, 0.0)
        if self.acting is not None and time.monotonic() - reported_at > HEARTBEAT_SECONDS:
            self._send(self._usage())

    def _on_idle(self, replica: Replica) -> None:
        # If sequences are left, a heartbeat reports when they have ended.
        if (
            replica in self._outside_table
            and not self.table.holds(replica)
            and self._may_be_drained(replica)
        ):
            self._send_drained(replica)

    def _send_drained(self, replica: Replica) -> None:
        message = wire.WatchPlacementsRequest()
        message.drained.replica.CopyFrom(_ref(replica))
        message.drained.revision.CopyFrom(_revision(self.table.revision))
        self._send(message)


def change_of(response: wire.WatchPlacementsResponse) -> Change:
    """Return a snapshot or a delta as a change to the table."""
    whole = response.WhichOneof("message") == "snapshot"
    body: Any = response.snapshot if whole else response.delta
    return Change(
        revision=Revision(response.revision.epoch, response.revision.number),
        whole=whole,
        routes={route.model: _route(route) for route in body.models},
        addresses={server.server: server.address for server in body.servers},
        http_addresses={
            server.server: server.http_address for server in body.servers if server.http_address
        },
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
                version.fingerprint,
                version.problem,
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
