"""proto ↔ core of the Controller's own service."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from datetime import timedelta
from itertools import islice
from typing import Any, Final, NoReturn, TypeVar, cast

import grpc
from google.protobuf.duration_pb2 import Duration
from opentelemetry import trace

from services.common import telemetry
from services.common.errors import (
    InvalidArtifact,
    InvalidField,
    InvalidName,
    ModelNotFound,
    NoApprovedVersion,
    NotReady,
    RegistryUnavailable,
    ShoalError,
    VersionNotFound,
)
from services.common.rpc import Context
from services.controller.catalog import ANSWERABLE
from services.controller.core import events as ev
from services.controller.core.entities import Replica, ReplicaKey, Server, Unit
from services.controller.core.placement import holders, occupied, slots_used
from services.controller.core.states import State
from services.controller.loop import Loop
from services.controller.placements import SERVER_STATES, Subscriber
from services.controller.servers import ServerWatch
from shoal.controller.v1 import controller_service_pb2 as wire
from shoal.controller.v1 import placement_pb2, types_pb2
from shoal.controller.v1.controller_service_pb2_grpc import ControllerServiceServicer
from shoal.names import (
    parse_model_name,
    parse_version_name,
    replica_name,
    server_name,
    version_name,
)
from shoal.registry.v1 import registry_service_pb2

SERVICE: Final = "shoal.controller.v1.ControllerService"
OPEN_METHODS: Final = frozenset(
    f"/{SERVICE}/{method}"
    for method in ("ListServers", "ListReplicas", "GetModelConfig", "ListEvents", "WatchEvents")
)
MAX_PAGE: Final = 1000
DEFAULT_PAGE: Final = 100
CHECKPOINT_SECONDS: Final = 1.0

_tracer = trace.get_tracer("shoal.controller")
_Item = TypeVar("_Item")


class ControllerServicer(ControllerServiceServicer):
    """`registry`: the Registry's stub, for pins. `max_wait`: seconds for callers that set no
    deadline."""

    def __init__(
        self, loop: Loop, watches: dict[str, ServerWatch], registry: Any, max_wait: float
    ) -> None:
        self._loop = loop
        self._watches = watches
        self._registry = registry
        self._max_wait = max_wait

    # --- reading ----------------------------------------------------------------------------------

    async def ListServers(
        self, request: wire.ListServersRequest, context: Context
    ) -> wire.ListServersResponse:
        fleet = self._loop.engine.fleet
        names = sorted(fleet.servers)
        page, token = _page(names, request.page_size, request.page_token, key=lambda name: name)
        return wire.ListServersResponse(
            servers=[self._server(fleet.servers[name]) for name in page], next_page_token=token
        )

    async def ListReplicas(
        self, request: wire.ListReplicasRequest, context: Context
    ) -> wire.ListReplicasResponse:
        fleet = self._loop.engine.fleet
        wanted = _units_named(request.model) if request.model else None
        found = [
            replica
            for server in sorted(fleet.replicas)
            for _, replica in sorted(fleet.replicas[server].items())
            if wanted is None or _matches(replica.unit, *wanted)
        ]
        page, token = _page(found, request.page_size, request.page_token, key=_replica_name)
        return wire.ListReplicasResponse(
            replicas=[self._replica(replica) for replica in page], next_page_token=token
        )

    async def GetModelConfig(
        self, request: wire.GetModelConfigRequest, context: Context
    ) -> wire.GetModelConfigResponse:
        unit = Unit(request.model, request.version)
        version = self._loop.catalog.version(unit)
        if version is None or version.state not in ANSWERABLE:
            raise self._not_found(unit)
        return wire.GetModelConfigResponse(
            config=version.config, config_digest=version.config_digest
        )

    async def ListEvents(
        self, request: wire.ListEventsRequest, context: Context
    ) -> wire.ListEventsResponse:
        size = _page_size(request.page_size)
        before = _sequence(request.page_token)
        newest = (
            event
            for event in self._loop.journal.newest(request.about)
            if before is None or event.sequence < before
        )
        page = list(islice(newest, size + 1))
        more = len(page) > size
        return wire.ListEventsResponse(
            events=page[:size], next_page_token=str(page[size - 1].sequence) if more else ""
        )

    async def WatchEvents(
        self, request: wire.WatchEventsRequest, context: Context
    ) -> AsyncIterator[wire.WatchEventsResponse]:
        async for event in self._loop.journal.follow(request.after_sequence):
            yield wire.WatchEventsResponse(event=event)

    # --- moving -----------------------------------------------------------------------------------

    async def MakeResident(
        self, request: wire.MakeResidentRequest, context: Context
    ) -> wire.MakeResidentResponse:
        unit = Unit(request.model, request.version)
        if request.HasField("missed") and request.missed.server in self._watches:
            await self._watches[request.missed.server].verify()
        granted = await self._resident(unit, context, request.router or None)
        return wire.MakeResidentResponse(
            replica=placement_pb2.ReplicaRef(
                server=granted.key.server, model=unit.model, version=unit.version
            ),
            address=self._loop.engine.fleet.servers[granted.key.server].address,
            revision=placement_pb2.Revision(
                epoch=self._loop.placements.epoch, number=granted.revision
            ),
            use_lease=granted.use_lease,
        )

    async def LoadModel(
        self, request: wire.LoadModelRequest, context: Context
    ) -> wire.LoadModelResponse:
        granted = await self._resident(self._one(request.name), context, None)
        return wire.LoadModelResponse(replica=self._replica_at(granted.key))

    async def EvictModel(
        self, request: wire.EvictModelRequest, context: Context
    ) -> wire.EvictModelResponse:
        answer = await self._loop.ask(
            ev.EvictionWanted,
            units=self._all(request.name),
            deadline=self._deadline(context),
        )
        if isinstance(answer, ev.Refused):
            raise answer.error
        assert isinstance(answer, ev.Evicted)
        return wire.EvictModelResponse(
            evicted=[replica_name(key.server, *key.unit) for key in answer.keys]
        )

    async def PinModel(
        self, request: wire.PinModelRequest, context: Context
    ) -> wire.PinModelResponse:
        unit = self._one(request.name)
        await self._set_pinned(unit, True)
        granted = await self._resident(unit, context, None)
        return wire.PinModelResponse(replica=self._replica_at(granted.key))

    async def UnpinModel(
        self, request: wire.UnpinModelRequest, context: Context
    ) -> wire.UnpinModelResponse:
        await self._set_pinned(self._one(request.name), False)
        return wire.UnpinModelResponse()

    async def _set_pinned(self, unit: Unit, pinned: bool) -> None:
        """Pins are the Registry's to keep, so that they outlive this process."""
        request = registry_service_pb2.UpdateModelVersionRequest()
        request.version.name = version_name(*unit)
        request.version.pinned = pinned
        request.update_mask.paths.append("pinned")
        try:
            await self._registry.UpdateModelVersion(request, timeout=5.0)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                raise self._not_found(unit) from error
            raise RegistryUnavailable(registry="its address", cause=error.details()) from error

    async def _resident(self, unit: Unit, context: Context, router: str | None) -> ev.Granted:
        span = trace.get_current_span()
        answer = await self._loop.ask(
            ev.ResidentWanted,
            unit=unit,
            deadline=self._deadline(context),
            router=router,
            trace_id=telemetry.trace_id(span),
        )
        assert isinstance(answer, ev.Granted | ev.Refused)
        if span.is_recording():
            _trace_phases(answer.phases)
        if isinstance(answer, ev.Refused):
            raise self._told(answer.error, unit)
        return answer

    def _deadline(self, context: Context) -> float:
        left = cast("float | None", context.time_remaining())  # None without a deadline
        return time.monotonic() + (self._max_wait if left is None else min(left, self._max_wait))

    # --- Routers ----------------------------------------------------------------------------------

    # Written to the context as it comes: a generator could not read and write at once.
    async def WatchPlacements(  # type: ignore[override]
        self,
        request_iterator: AsyncIterator[placement_pb2.WatchPlacementsRequest],
        context: Context,
    ) -> None:
        first = await anext(request_iterator, placement_pb2.WatchPlacementsRequest())
        if not first.subscribe.router:
            raise InvalidField(field="message", problem="a stream begins with subscribe.router")
        router = first.subscribe.router
        in_use = frozenset(map(_key, first.subscribe.in_use))
        self._loop.feed(ev.RouterJoined(router, in_use))
        subscriber = self._loop.placements.subscribe()
        try:
            async with asyncio.TaskGroup() as group:
                sender = group.create_task(self._send(subscriber, context))
                async for message in request_iterator:
                    self._hear(router, message, subscriber)
                sender.cancel()
        except* ShoalError as errors:
            raise errors.exceptions[0] from None
        finally:
            self._loop.placements.unsubscribe(subscriber)

    async def _send(self, subscriber: Subscriber, context: Context) -> None:
        while True:
            await context.write(self._loop.placements.next_message(subscriber))
            try:
                async with asyncio.timeout(CHECKPOINT_SECONDS):
                    await subscriber.changed.wait()
            except TimeoutError:
                continue

    def _hear(
        self,
        router: str,
        message: placement_pb2.WatchPlacementsRequest,
        subscriber: Subscriber,
    ) -> None:
        if router not in self._loop.engine.fleet.routers:
            raise NotReady(
                service="the placement stream",
                cause=f"router {router} was not heard from for too long; subscribe again",
            )
        kind = message.WhichOneof("message")
        if kind == "ack" and self._current(message.ack.revision):
            self._loop.feed(ev.RouterAcked(router, message.ack.revision.number))
        elif kind == "nack":
            subscriber.restart()
        elif kind == "drained" and self._current(message.drained.revision):
            drained = message.drained
            self._loop.feed(
                ev.RouterDrained(router, _key(drained.replica), drained.revision.number)
            )
        elif kind == "started":
            self._loop.feed(ev.RouterStarted(router, message.started.use_lease))
        elif kind == "usage":
            usage = {
                _key(row.replica): (row.age.ToTimedelta().total_seconds(), row.in_flight)
                for row in message.usage.replicas
            }
            self._loop.feed(ev.RouterUsed(router, usage))

    def _current(self, revision: placement_pb2.Revision) -> bool:
        return revision.epoch == self._loop.placements.epoch

    # --- names ------------------------------------------------------------------------------------

    def _one(self, name: str) -> Unit:
        """The unit that a resource name means; of a model, its default version."""
        model, version = _units_named(name)
        if version is not None:
            return Unit(model, version)
        entry = self._loop.catalog.entries.get(model)
        if entry is None:
            raise ModelNotFound(model=model)
        if not entry.model.default_version:
            raise NoApprovedVersion(model=model, versions=self._versions(model))
        return Unit(model, entry.model.default_version)

    def _all(self, name: str) -> tuple[Unit, ...]:
        """The units that a resource name means; of a model, all its versions."""
        model, version = _units_named(name)
        if model not in self._loop.catalog.entries:
            raise ModelNotFound(model=model)
        if version is None:
            specs = self._loop.engine.fleet.specs
            return tuple(sorted(unit for unit in specs if unit.model == model))
        if self._loop.catalog.version(Unit(model, version)) is None:
            raise self._not_found(Unit(model, version))
        return (Unit(model, version),)

    def _not_found(self, unit: Unit) -> ShoalError:
        if unit.model not in self._loop.catalog.entries:
            return ModelNotFound(model=unit.model)
        return VersionNotFound(
            model=unit.model, version=unit.version, versions=self._versions(unit.model)
        )

    def _told(self, error: ShoalError, unit: Unit) -> ShoalError:
        """The engine knows only what can be loaded; the catalogue knows why the rest can't."""
        if isinstance(error, ModelNotFound | VersionNotFound):
            version = self._loop.catalog.version(unit)
            if version is not None and version.invalid_reason:
                return InvalidArtifact(path=version.source, problem=version.invalid_reason)
            return self._not_found(unit)
        return error

    def _versions(self, model: str) -> str:
        entry = self._loop.catalog.entries[model]
        names = [parse_version_name(v.name) for v in entry.versions if v.state in ANSWERABLE]
        return ", ".join(str(name.version) for name in names if name) or "none"

    # --- messages ---------------------------------------------------------------------------------

    def _server(self, server: Server) -> types_pb2.Server:
        fleet = self._loop.engine.fleet
        here = list(occupied(fleet.replicas[server.id]))
        return types_pb2.Server(
            name=server_name(server.id),
            address=server.address,
            state=SERVER_STATES[server.health],
            state_reason=server.reason,
            memory_budget=server.budget,
            memory_reserved=fleet.occupied(server.id),
            memory_measured=server.measured,
            max_models=server.max_models,
            models=slots_used(here, fleet.specs),
        )

    def _replica_at(self, key: ReplicaKey) -> types_pb2.Replica:
        replica = self._loop.engine.fleet.replica(key)
        if replica is None:
            raise NotReady(service=str(key), cause="it was evicted again meanwhile")
        return self._replica(replica)

    def _replica(self, replica: Replica) -> types_pb2.Replica:
        fleet = self._loop.engine.fleet
        spec = fleet.specs.get(replica.unit)
        users = holders(replica.unit, fleet.replicas[replica.key.server], fleet.specs)
        message = types_pb2.Replica(
            name=_replica_name(replica),
            version=version_name(*replica.unit),
            state=_STATES[replica.state],
            state_reason=replica.reason,
            memory_reserved=replica.reserved,
            memory_measured=replica.measured,
            in_flight=replica.in_flight,
            pinned=spec is not None and spec.pinned,
            held_by=[version_name(*unit) for unit in sorted(users)],
        )
        message.idle.CopyFrom(_duration(max(0.0, time.monotonic() - replica.last_used)))
        if replica.load_seconds is not None:
            message.load_duration.CopyFrom(_duration(replica.load_seconds))
        return message


_STATES: Final[dict[State, types_pb2.ReplicaState.ValueType]] = {
    state: types_pb2.ReplicaState.Value(f"REPLICA_STATE_{state.name}")
    for state in State
    if state is not State.ABSENT
}


def _replica_name(replica: Replica) -> str:
    return replica_name(replica.key.server, *replica.unit)


def _key(ref: placement_pb2.ReplicaRef) -> ReplicaKey:
    return ReplicaKey(ref.server, Unit(ref.model, ref.version))


def _duration(seconds: float) -> Duration:
    message = Duration()
    message.FromTimedelta(timedelta(seconds=seconds))
    return message


def _units_named(name: str) -> tuple[str, int | None]:
    model = parse_model_name(name)
    if model is not None:
        return model, None
    version = parse_version_name(name)
    if version is None:
        raise InvalidName("name", name)
    return version.model, version.version


def _matches(unit: Unit, model: str, version: int | None) -> bool:
    return unit.model == model and version in (None, unit.version)


def _page_size(asked: int) -> int:
    if not 0 <= asked <= MAX_PAGE:
        raise InvalidField(field="page_size", problem=f"give 0 to {MAX_PAGE}, not {asked}")
    return asked or DEFAULT_PAGE


def _page(items: Iterable[_Item], size: int, token: str, key: "Any") -> tuple[list[_Item], str]:
    """The items after `token`, which is the key of the last one of the page before."""
    rest = [item for item in items if key(item) > token]
    limit = _page_size(size)
    page = rest[:limit]
    return page, key(page[-1]) if len(rest) > limit else ""


def _sequence(token: str) -> int | None:
    if not token:
        return None
    if not token.isdigit():
        _bad_token(token)
    return int(token)


def _bad_token(token: str) -> NoReturn:
    raise InvalidField(field="page_token", problem=f"{token!r} did not come from this service")


def _trace_phases(phases: Iterable[ev.Phase]) -> None:
    """Spans for what the call waited for, after the fact: only now is it known."""
    offset = time.time() - time.monotonic()
    for phase in phases:
        began, ended = (round((when + offset) * 1e9) for when in (phase.began, phase.ended))
        span = _tracer.start_span(phase.name, start_time=began, attributes=dict(phase.attributes))
        span.end(ended)
