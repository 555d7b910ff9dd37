"""proto ↔ core of the Router's own service."""

import time
from datetime import timedelta
from typing import Final

from services.common.rpc import Context
from services.router.core.routes import Target, resolve, shares
from services.router.placement_watch import PlacementWatch
from services.router.statistics import Count, Statistics
from shoal.controller.v1 import placement_pb2
from shoal.router.v1 import router_service_pb2 as wire
from shoal.router.v1.router_service_pb2_grpc import RouterServiceServicer

SERVICE: Final = "shoal.router.v1.RouterService"
OPEN_METHODS: Final = frozenset(
    f"/{SERVICE}/{method}" for method in ("ExplainRoute", "GetStatistics")
)


class RouterServicer(RouterServiceServicer):
    def __init__(self, watch: PlacementWatch, statistics: Statistics) -> None:
        self._watch = watch
        self._statistics = statistics
        self._began = time.monotonic()

    async def ExplainRoute(
        self, request: wire.ExplainRouteRequest, context: Context
    ) -> wire.ExplainRouteResponse:
        routes = self._watch.table.routes
        found = shares(routes, request.model, request.version)
        return wire.ExplainRouteResponse(
            arms=[
                wire.RouteArm(
                    model=target.model,
                    version=target.version,
                    share=share,
                    servers=self._servers(target),
                )
                for target, share in found
            ],
            steps=self._steps(request.model, request.version, found),
        )

    def _servers(self, target: Target) -> tuple[str, ...]:
        route = self._watch.table.routes.get(target.model)
        entry = route.versions.get(target.version) if route is not None else None
        return entry.servers if entry is not None else ()

    def _steps(self, model: str, version: str, found: list[tuple[Target, float]]) -> list[str]:
        routes = self._watch.table.routes
        if version:
            target = resolve(routes, model, version, 0.0)
            steps = [f"version {version!r} was asked for: {target}"]
        elif routes[model].arms:
            arms = ", ".join(f"{share:.0%} {target}" for target, share in found)
            steps = [f"no version was asked for, the traffic policy draws one: {arms}"]
        else:
            steps = [f"no version was asked for, the default is {found[0][0].version}"]
        for target, _ in found:
            servers = self._servers(target)
            if servers:
                steps.append(f"{target} is resident on {', '.join(servers)}: forwarded as it is")
            else:
                entry = routes[target.model].versions.get(target.version)
                reason = entry.reason if entry is not None else "not registered"
                steps.append(f"{target} is not resident ({reason}): the Controller is asked")
        heard = "is heard from" if self._watch.connected else "is away; the table is kept"
        steps.append(f"the Controller {heard}, at {self._watch.table.revision}")
        return steps

    async def GetStatistics(
        self, request: wire.GetStatisticsRequest, context: Context
    ) -> wire.GetStatisticsResponse:
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

    def _model(self, target: Target, count: Count) -> wire.ModelStatistics:
        in_flight = self._watch.in_use.usage_of(target)
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
