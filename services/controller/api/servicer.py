"""The Controller's gRPC service: each call, from its request to its response."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from functools import partial
from itertools import islice
from typing import Any, Final

import grpc
from opentelemetry import trace

from services.common import paging, telemetry
from services.common.errors import (
    InvalidName,
    ModelNotFound,
    NotReady,
    ShoalError,
    VersionNotFound,
)
from services.common.rpc import Context, deadline_of
from services.controller.api import messages
from services.controller.api.explanations import Explanations
from services.controller.api.names import Names, parse_name
from services.controller.core import events as ev
from services.controller.core.entities import ReplicaKey, Unit
from services.controller.core.errors import Held, RegistryUnavailable, ServerNotFound
from services.controller.core.view import FleetView
from services.controller.loop import Ask
from services.controller.measurement.statistics_watch import StatisticsWatch
from services.controller.registry.called import CalledModels
from services.controller.registry.catalogue import ANSWERABLE, Catalogue
from services.controller.routers.messages import replica_key
from services.controller.routers.stream import RouterStreams
from services.controller.servers import calls as server_calls
from services.controller.servers.watch import ServerWatch
from services.controller.telemetry.journal import Journal
from services.controller.triton.client import Triton
from shoal.controller.v1 import controller_service_pb2 as wire
from shoal.controller.v1 import placement_pb2, types_pb2
from shoal.controller.v1.controller_service_pb2_grpc import ControllerServiceServicer
from shoal.names import parse_model_name, parse_server_name, replica_name, version_name
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
    """The service of a Controller that acts.

    `registry`: the Registry's stub, for pins; None where there is no Registry. `called`: learns
    which models are called by others. `epoch`: the Controller's. `ask` and `feed` are the ways into
    the engine, and `diagnose` has it checked. `refresh`: has a model's folders read again; None
    where there is no Registry. `completed`: waits until a unit's config is complete, or raises
    NotCompleted. `max_wait`: seconds that callers without a deadline wait at most.
    """

    def __init__(
        self,
        view: FleetView,
        catalogue: Catalogue,
        journal: Journal,
        streams: RouterStreams,
        statistics: StatisticsWatch,
        watches: Mapping[str, ServerWatch],
        tritons: Mapping[str, Triton],
        registry: Any,
        called: CalledModels,
        *,
        epoch: int,
        ask: Ask,
        feed: Callable[[ev.Event], None],
        diagnose: Callable[[], wire.GetDiagnosticsResponse],
        refresh: Callable[[str], Awaitable[str]] | None,
        completed: Callable[[Unit, float], Awaitable[None]],
        max_wait: float,
    ) -> None:
        self._view = view
        self._catalogue = catalogue
        self._journal = journal
        self._streams = streams
        self._statistics = statistics
        self._watches = watches
        self._tritons = tritons
        self._registry = registry
        self._called = called
        self._epoch = epoch
        self._ask = ask
        self._feed = feed
        self._diagnose = diagnose
        self._refresh = refresh
        self._completed = completed
        self._max_wait = max_wait
        self._names = Names(catalogue, view)
        self._explanations = Explanations(view, self._names, journal)

    # --- reading ----------------------------------------------------------------------------------

    async def ListServers(
        self, request: wire.ListServersRequest, context: Context
    ) -> wire.ListServersResponse:
        page = paging.page("servers", request.page_size, request.page_token)
        ids = [id_ for id_ in sorted(self._view.servers) if (id_, 0) > page.after]
        return wire.ListServersResponse(
            servers=[self._server(id_) for id_ in ids[: page.size]],
            next_page_token=_token("servers", ids, page),
        )

    async def ListReplicas(
        self, request: wire.ListReplicasRequest, context: Context
    ) -> wire.ListReplicasResponse:
        page = paging.page("replicas", request.page_size, request.page_token)
        wanted = parse_name(request.model) if request.model else None
        found = {
            replica_name(replica.key.server, *replica.unit): replica
            for replica in self._view.replicas()
            if wanted is None or _matches(replica.unit, *wanted)
        }
        rest = [name for name in sorted(found) if (name, 0) > page.after]
        return wire.ListReplicasResponse(
            replicas=[messages.replica(self._view, found[name]) for name in rest[: page.size]],
            next_page_token=_token("replicas", rest, page),
        )

    async def GetModelConfig(
        self, request: wire.GetModelConfigRequest, context: Context
    ) -> wire.GetModelConfigResponse:
        unit = Unit(request.model, request.version)
        await self._completed(unit, self._deadline(context))
        version = self._catalogue.version(unit)
        if version is None or version.state not in ANSWERABLE:
            raise self._names.not_found(unit)
        return wire.GetModelConfigResponse(
            config=version.config,
            config_digest=version.config_digest,
            fingerprint=version.fingerprint,
        )

    async def GetModelStatistics(
        self, request: wire.GetModelStatisticsRequest, context: Context
    ) -> wire.GetModelStatisticsResponse:
        found = await self._statistics.statistics(request.model, request.version)
        return wire.GetModelStatisticsResponse(statistics=found.SerializeToString())

    async def ListEvents(
        self, request: wire.ListEventsRequest, context: Context
    ) -> wire.ListEventsResponse:
        page = paging.page("events", request.page_size, request.page_token)
        before = page.after[1]
        newest = self._journal.newest(request.about)
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
        async for event in self._journal.follow(request.after_sequence, request.after_epoch):
            yield wire.WatchEventsResponse(event=event)

    async def WhyResident(
        self, request: wire.WhyResidentRequest, context: Context
    ) -> wire.WhyResidentResponse:
        return self._explanations.why_resident(self._names.one(request.name))

    async def WhyEvicted(
        self, request: wire.WhyEvictedRequest, context: Context
    ) -> wire.WhyEvictedResponse:
        return self._explanations.why_evicted(self._names.one(request.name), request)

    async def WhyNotLoaded(
        self, request: wire.WhyNotLoadedRequest, context: Context
    ) -> wire.WhyNotLoadedResponse:
        return self._explanations.why_not_loaded(self._names.one(request.name))

    async def GetDiagnostics(
        self, request: wire.GetDiagnosticsRequest, context: Context
    ) -> wire.GetDiagnosticsResponse:
        return self._diagnose()

    # --- moving -----------------------------------------------------------------------------------

    async def MakeResident(
        self, request: wire.MakeResidentRequest, context: Context
    ) -> wire.MakeResidentResponse:
        unit = Unit(request.model, request.version)
        if request.HasField("missed") and request.missed.server in self._watches:
            if request.missed_cause == wire.MISS_CAUSE_UNHEALTHY:
                cause = "a request was answered that its process is not healthy"
                self._feed(ev.ReplicaBroken(replica_key(request.missed), cause))
            else:
                await self._watches[request.missed.server].verify()
        if request.called:
            await self._called.learn(unit, request.called)
        waited = max(0.0, request.waited.ToNanoseconds() / 1e9)
        granted = await self._resident(unit, context, request.router or None, waited)
        return wire.MakeResidentResponse(
            replica=placement_pb2.ReplicaRef(
                server=granted.key.server, model=unit.model, version=unit.version
            ),
            address=self._view.servers[granted.key.server].address,
            revision=placement_pb2.Revision(epoch=self._epoch, number=granted.revision),
            use_lease=granted.use_lease,
        )

    async def LoadModel(
        self, request: wire.LoadModelRequest, context: Context
    ) -> wire.LoadModelResponse:
        granted = await self._resident(self._names.one(request.name), context, None)
        return wire.LoadModelResponse(replica=self._replica_at(granted.key))

    async def RefreshModel(
        self, request: wire.RefreshModelRequest, context: Context
    ) -> wire.RefreshModelResponse:
        model = parse_model_name(request.name)
        if model is None:
            raise InvalidName("name", request.name)
        problem = await self._refresh(model) if self._refresh is not None else ""
        return wire.RefreshModelResponse(
            revision=placement_pb2.Revision(epoch=self._epoch, number=self._view.revision),
            problem=problem,
        )

    async def EvictModel(
        self, request: wire.EvictModelRequest, context: Context
    ) -> wire.EvictModelResponse:
        units = self._names.all(request.name)
        evicted = await self._evict(units)
        if request.parts:
            parts = {part for unit in units for part in self._view.parts_of(unit)}
            async with asyncio.TaskGroup() as tasks:
                leaving = [tasks.create_task(self._evict_part(part)) for part in sorted(parts)]
            evicted += [name for task in leaving for name in task.result()]
        return wire.EvictModelResponse(evicted=evicted)

    async def _evict_part(self, unit: Unit) -> list[str]:
        """Evict a part, unless something else keeps it."""
        try:
            return await self._evict([unit])
        except Held:
            return []

    async def _evict(self, units: list[Unit]) -> list[str]:
        """Evict every replica of `units`; return the names of those that are gone.

        Raises Held.
        """
        answer = await self._ask(partial(ev.EvictionWanted, units=tuple(units)))
        if isinstance(answer, ev.Refused):
            raise answer.error
        assert isinstance(answer, ev.Evicted)
        return [replica_name(key.server, *key.unit) for key in answer.keys]

    async def CallServers(
        self, request: wire.CallServersRequest, context: Context
    ) -> wire.CallServersResponse:
        return await server_calls.call(self._view.servers, self._tritons, request)

    async def PinModel(
        self, request: wire.PinModelRequest, context: Context
    ) -> wire.PinModelResponse:
        unit = self._names.one(request.name)
        await self._set_pinned(unit, True)
        granted = await self._resident(unit, context, None)
        return wire.PinModelResponse(replica=self._replica_at(granted.key))

    async def UnpinModel(
        self, request: wire.UnpinModelRequest, context: Context
    ) -> wire.UnpinModelResponse:
        await self._set_pinned(self._names.one(request.name), False)
        return wire.UnpinModelResponse()

    async def DrainServer(
        self, request: wire.DrainServerRequest, context: Context
    ) -> wire.DrainServerResponse:
        reason = "an operator wants it " + ("restarted" if request.restart else "drained")
        return wire.DrainServerResponse(
            server=self._drain(request.name, reason, restart=request.restart)
        )

    async def UndrainServer(
        self, request: wire.UndrainServerRequest, context: Context
    ) -> wire.UndrainServerResponse:
        return wire.UndrainServerResponse(server=self._drain(request.name, "", restart=False))

    def _drain(self, name: str, reason: str, *, restart: bool) -> types_pb2.Server:
        """Drain the server, or for an empty `reason` use it again."""
        id_ = parse_server_name(name)
        if id_ is None:
            raise InvalidName("name", name)
        servers = self._view.servers
        if id_ not in servers:
            raise ServerNotFound(server=id_, servers=", ".join(sorted(servers)) or "none")
        self._feed(ev.DrainWanted(id_, reason, restart))
        return self._server(id_)

    def _server(self, id_: str) -> types_pb2.Server:
        return messages.server(self._view, self._view.servers[id_])

    async def _set_pinned(self, unit: Unit, pinned: bool) -> None:
        """Set the pin in the Registry, which keeps pins so that they outlive this process."""
        request = registry_service_pb2.UpdateModelVersionRequest()
        request.version.name = version_name(*unit)
        request.version.pinned = pinned
        request.update_mask.paths.append("pinned")
        try:
            await self._registry.UpdateModelVersion(request, timeout=5.0)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                raise self._names.not_found(unit) from error
            raise RegistryUnavailable(registry="its address", cause=error.details()) from error

    async def _resident(
        self, unit: Unit, context: Context, router: str | None, waited: float = 0.0
    ) -> ev.Granted:
        span, deadline = trace.get_current_span(), self._deadline(context)
        await self._completed(unit, deadline)
        question = partial(
            ev.ResidentWanted,
            unit=unit,
            deadline=deadline,
            router=router,
            trace_id=telemetry.trace_id(span),
            waited=waited,
        )
        answer = await self._ask(question)
        assert isinstance(answer, ev.Granted | ev.Refused)
        if span.is_recording():
            _trace_phases(answer.phases)
        if isinstance(answer, ev.Refused):
            raise self._explained(answer.error, unit)
        return answer

    def _deadline(self, context: Context) -> float:
        longest = time.monotonic() + self._max_wait
        deadline = deadline_of(context)
        return longest if deadline is None else min(deadline, longest)

    def _explained(self, error: ShoalError, unit: Unit) -> ShoalError:
        """Return the error that the caller sees.

        The engine knows only what can be loaded; the catalogue knows why the rest cannot.
        """
        if isinstance(error, ModelNotFound | VersionNotFound):
            return self._names.not_found(unit)
        return error

    def _replica_at(self, key: ReplicaKey) -> types_pb2.Replica:
        replica = self._view.replica(key)
        if replica is None:
            raise NotReady(service=str(key), cause="it was evicted again meanwhile")
        return messages.replica(self._view, replica)

    # --- Routers ----------------------------------------------------------------------------------

    # Written to the context as it comes: a generator could not read and write at once.
    async def WatchPlacements(  # type: ignore[override]
        self,
        request_iterator: AsyncIterator[placement_pb2.WatchPlacementsRequest],
        context: Context,
    ) -> None:
        await self._streams.serve(request_iterator, context)


def _matches(unit: Unit, model: str, version: int | None) -> bool:
    return unit.model == model and version in (None, unit.version)


def _token(scope: str, rest: list[str], page: paging.Page) -> str:
    """Return the token of the page after this one; empty where all of `rest` is on this one."""
    return paging.token(scope, (rest[page.size - 1], 0)) if len(rest) > page.size else ""


def _trace_phases(phases: Iterable[ev.Phase]) -> None:
    """Add spans for what the call has waited for, which is known only afterwards."""
    offset = time.time() - time.monotonic()
    for phase in phases:
        began, ended = (round((when + offset) * 1e9) for when in (phase.began, phase.ended))
        span = _tracer.start_span(phase.name, start_time=began, attributes=dict(phase.attributes))
        span.end(ended)
