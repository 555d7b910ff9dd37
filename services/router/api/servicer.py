"""The gRPC services of the Router itself: conversions between messages and what they report."""

import time
from datetime import timedelta
from typing import Final

from services.common.caller import TENANT_HEADER
from services.common.rpc import Context, current_caller
from services.router.api.explanations import Explanations, Question
from services.router.control.placement_watch import PlacementWatch
from services.router.core.routing.routes import Target
from services.router.process.peers import Peers
from services.router.telemetry.statistics import Statistics, VersionCount
from shoal.controller.v1 import placement_pb2
from shoal.router.v1 import router_service_pb2 as wire
from shoal.router.v1 import worker_service_pb2 as worker
from shoal.router.v1.router_service_pb2_grpc import RouterServiceServicer
from shoal.router.v1.worker_service_pb2_grpc import WorkerServiceServicer

SERVICE: Final = "shoal.router.v1.RouterService"
OPEN_METHODS: Final = frozenset(
    f"/{SERVICE}/{method}" for method in ("ExplainRoute", "GetStatistics")
)


class RouterServicer(RouterServiceServicer):
    """Answers shoal.router.v1.RouterService."""

    def __init__(self, explanations: Explanations, peers: Peers) -> None:
        self._explanations = explanations
        self._peers = peers

    async def ExplainRoute(
        self, request: wire.ExplainRouteRequest, context: Context
    ) -> wire.ExplainRouteResponse:
        headers = {key.lower(): value for key, value in request.headers.items()}
        tenant = headers.get(TENANT_HEADER) or current_caller.get().tenant
        found = await self._explanations.explain(
            Question(request.model, request.version, headers, request.sequence_id, tenant)
        )
        return wire.ExplainRouteResponse(
            arms=[
                wire.RouteArm(
                    model=target.model, version=target.version, share=share, servers=servers
                )
                for target, share, servers in found.arms
            ],
            steps=found.steps,
            priority=found.priority.label,
            tenant=tenant,
        )

    async def GetStatistics(
        self, request: wire.GetStatisticsRequest, context: Context
    ) -> wire.GetStatisticsResponse:
        return await self._peers.statistics()


class WorkerServicer(WorkerServiceServicer):
    """Answers the other workers of this Router."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers

    async def GetShare(
        self, request: worker.GetShareRequest, context: Context
    ) -> worker.GetShareResponse:
        return self._peers.share()


class ProcessStatistics:
    """Reports the statistics of this process."""

    def __init__(self, watch: PlacementWatch, statistics: Statistics) -> None:
        self._watch = watch
        self._statistics = statistics
        self._began = time.monotonic()

    def __call__(self) -> wire.GetStatisticsResponse:
        revision = self._watch.table.revision
        reply = wire.GetStatisticsResponse(
            router=self._watch.router,
            revision=placement_pb2.Revision(epoch=revision.epoch, number=revision.number),
            controller_connected=self._watch.connected,
            models=[
                self._model(target, count)
                for target, count in sorted(self._statistics.counts.items())
            ],
        )
        reply.uptime.FromTimedelta(timedelta(seconds=time.monotonic() - self._began))
        return reply

    def _model(self, target: Target, count: VersionCount) -> wire.ModelStatistics:
        in_flight = self._watch.in_use.in_flight_on(target)
        message = wire.ModelStatistics(
            model=target.model,
            version=target.version,
            requests=count.requests,
            errors=count.errors,
            cold=count.cold,
            in_flight=in_flight,
        )
        message.total_duration.FromTimedelta(timedelta(seconds=count.seconds))
        message.cold_duration.FromTimedelta(timedelta(seconds=count.cold_seconds))
        return message
