"""proto ↔ core of the Controller's own service."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from itertools import islice
from typing import Any, Final

import grpc
from opentelemetry import trace

from services.common import paging, telemetry
from services.common.errors import (
    Held,
    InvalidArtifact,
    InvalidName,
    ModelNotFound,
    NoApprovedVersion,
    NotReady,
    RegistryUnavailable,
    ServerNotFound,
    ShoalError,
    VersionNotFound,
)
from services.common.rpc import Context, deadline_of
from services.controller import diagnostics, explanations, messages, router_stream, server_calls
from services.controller.catalog import ANSWERABLE
from services.controller.core import events as ev
from services.controller.core.entities import ReplicaKey, Unit
from services.controller.loop import Loop
from services.controller.servers import ServerWatch
from services.controller.statistics_watch import StatisticsWatch
from shoal.controller.v1 import controller_service_pb2 as wire
from shoal.controller.v1 import placement_pb2, types_pb2
from shoal.controller.v1.controller_service_pb2_grpc import ControllerServiceServicer
from shoal.names import (
    parse_model_name,
    parse_server_name,
    parse_version_name,
    replica_name,
    version_name,
)
from shoal.registry.v1 import registry_service_pb2

SERVICE: Final = "shoal.controller.v1.ControllerService"
OPEN_METHODS: Final = frozenset(
    f"/{SERVICE}/{method}"
    for method in (
        *("ListServers", "ListReplicas", "ListEvents", "WatchEvents"),
        *("GetModelConfig", "GetModelStatistics"),
        *("WhyResident", "WhyEvicted", "WhyNotLoaded"),
    )
)

_tracer = trace.get_tracer("shoal.controller")


class ControllerServicer(ControllerServiceServicer):
    """`registry`: the Registry's stub, for pins. `max_wait`: seconds for callers that set no
    deadline."""

    def __init__(
        self,
        loop: Loop,
        watches: dict[str, ServerWatch],
        statistics: StatisticsWatch,
        registry: Any,
        max_wait: float,
    ) -> None:
        self._loop = loop
        self._watches = watches
        self._statistics = statistics
        self._registry = registry
        self._max_wait = max_wait

    # --- reading ----------------------------------------------------------------------------------

    async def ListServers(
        self, request: wire.ListServersRequest, context: Context
    ) -> wire.ListServersResponse:
        fleet = self._loop.engine.fleet
        page = paging.page("servers", request.page_size, request.page_token)
        names = [name for name in sorted(fleet.servers) if (name, 0) > page.after]
        return wire.ListServersResponse(
            servers=[messages.server(fleet, fleet.servers[name]) for name in names[: page.size]],
            next_page_token=_token("servers", names, page),
        )

    async def ListReplicas(
        self, request: wire.ListReplicasRequest, context: Context
    ) -> wire.ListReplicasResponse:
        fleet = self._loop.engine.fleet
        page = paging.page("replicas", request.page_size, request.page_token)
        wanted = _units_named(request.model) if request.model else None
        found = {
            replica_name(server, *unit): replica
            for server, here in fleet.replicas.items()
            for unit, replica in here.items()
            if wanted is None or _matches(unit, *wanted)
        }
        names = [name for name in sorted(found) if (name, 0) > page.after]
        return wire.ListReplicasResponse(
            replicas=[messages.replica(fleet, found[name]) for name in names[: page.size]],
            next_page_token=_token("replicas", names, page),
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

    async def GetModelStatistics(
        self, request: wire.GetModelStatisticsRequest, context: Context
    ) -> wire.GetModelStatisticsResponse:
        told = await self._statistics.of(request.model, request.version)
        return wire.GetModelStatisticsResponse(statistics=told.SerializeToString())

    async def ListEvents(
        self, request: wire.ListEventsRequest, context: Context
    ) -> wire.ListEventsResponse:
        page = paging.page("events", request.page_size, request.page_token)
        before = page.after[1]
        newest = self._loop.journal.newest(request.about)
        found = list(
            islice((e for e in newest if not before or e.sequence < before), page.size + 1)
        )
        shown = found[: page.size]
        more = len(found) > page.size
        return wire.ListEventsResponse(
            events=shown,
            next_page_token=paging.token("events", ("", shown[-1].sequence)) if more else "",
        )

    async def WatchEvents(
        self, request: wire.WatchEventsRequest, context: Context
    ) -> AsyncIterator[wire.WatchEventsResponse]:
        async for event in self._loop.journal.follow(request.after_sequence, request.after_epoch):
            yield wire.WatchEventsResponse(event=event)

    async def WhyResident(
        self, request: wire.WhyResidentRequest, context: Context
    ) -> wire.WhyResidentResponse:
        return explanations.why_resident(self._loop, self._one(request.name))

    async def WhyEvicted(
        self, request: wire.WhyEvictedRequest, context: Context
    ) -> wire.WhyEvictedResponse:
        return explanations.why_evicted(self._loop, self._one(request.name), request)

    async def WhyNotLoaded(
        self, request: wire.WhyNotLoadedRequest, context: Context
    ) -> wire.WhyNotLoadedResponse:
        return explanations.why_not_loaded(self._loop, self._one(request.name))

    async def GetDiagnostics(
        self, request: wire.GetDiagnosticsRequest, context: Context
    ) -> wire.GetDiagnosticsResponse:
        return diagnostics.of(self._loop.engine, time.time() - time.monotonic())

    # --- moving -----------------------------------------------------------------------------------

    async def MakeResident(
        self, request: wire.MakeResidentRequest, context: Context
    ) -> wire.MakeResidentResponse:
        unit = Unit(request.model, request.version)
        if request.HasField("missed") and request.missed.server in self._watches:
            if request.missed_cause == wire.MISS_CAUSE_UNHEALTHY:
                cause = "a request was answered that its process is not healthy"
                self._loop.feed(ev.ReplicaBroken(messages.key(request.missed), cause))
            else:
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
        units = self._all(request.name)
        evicted = await self._evict(units)
        if request.parts:
            specs = self._loop.engine.fleet.known.specs
            parts = {part for unit in units if unit in specs for part in specs[unit].requires}
            async with asyncio.TaskGroup() as tasks:
                leaving = [tasks.create_task(self._evict_part(part)) for part in sorted(parts)]
            evicted += [name for task in leaving for name in task.result()]
        return wire.EvictModelResponse(evicted=evicted)

    async def _evict_part(self, unit: Unit) -> list[str]:
        """Unless something else keeps it."""
        try:
            return await self._evict((unit,))
        except Held:
            return []

    async def _evict(self, units: tuple[Unit, ...]) -> list[str]:
        """The replicas that are gone now. Raises Held."""
        answer = await self._loop.ask(ev.EvictionWanted, units=units)
        if isinstance(answer, ev.Refused):
            raise answer.error
        assert isinstance(answer, ev.Evicted)
        return [replica_name(key.server, *key.unit) for key in answer.keys]

    async def CallServers(
        self, request: wire.CallServersRequest, context: Context
    ) -> wire.CallServersResponse:
        loop = self._loop
        return await server_calls.call(loop.engine.fleet.servers, loop.changes.tritons, request)

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

    async def DrainServer(
        self, request: wire.DrainServerRequest, context: Context
    ) -> wire.DrainServerResponse:
        reason = "an operator wants it " + ("restarted" if request.restart else "drained")
        return wire.DrainServerResponse(
            server=self._drained(request.name, reason, restart=request.restart)
        )

    async def UndrainServer(
        self, request: wire.UndrainServerRequest, context: Context
    ) -> wire.UndrainServerResponse:
        return wire.UndrainServerResponse(server=self._drained(request.name, "", restart=False))

    def _drained(self, name: str, reason: str, *, restart: bool) -> types_pb2.Server:
        fleet = self._loop.engine.fleet
        id_ = parse_server_name(name)
        if id_ is None:
            raise InvalidName("name", name)
        if id_ not in fleet.servers:
            raise ServerNotFound(server=id_, servers=", ".join(sorted(fleet.servers)) or "none")
        self._loop.feed(ev.DrainWanted(id_, reason, restart))
        return messages.server(fleet, fleet.servers[id_])

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
        longest = time.monotonic() + self._max_wait
        deadline = deadline_of(context)
        return longest if deadline is None else min(deadline, longest)

    # --- Routers ----------------------------------------------------------------------------------

    # Written to the context as it comes: a generator could not read and write at once.
    async def WatchPlacements(  # type: ignore[override]
        self,
        request_iterator: AsyncIterator[placement_pb2.WatchPlacementsRequest],
        context: Context,
    ) -> None:
        await router_stream.follow(self._loop, request_iterator, context)

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
            specs = self._loop.engine.fleet.known.specs
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

    def _replica_at(self, key: ReplicaKey) -> types_pb2.Replica:
        replica = self._loop.engine.fleet.replica(key)
        if replica is None:
            raise NotReady(service=str(key), cause="it was evicted again meanwhile")
        return messages.replica(self._loop.engine.fleet, replica)


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


def _token(scope: str, names: list[str], page: paging.Page) -> str:
    """What asks for the names after this page; empty where there are none."""
    return paging.token(scope, (names[page.size - 1], 0)) if len(names) > page.size else ""


def _trace_phases(phases: Iterable[ev.Phase]) -> None:
    """Spans for what the call waited for, after the fact: only now is it known."""
    offset = time.time() - time.monotonic()
    for phase in phases:
        began, ended = (round((when + offset) * 1e9) for when in (phase.began, phase.ended))
        span = _tracer.start_span(phase.name, start_time=began, attributes=dict(phase.attributes))
        span.end(ended)
