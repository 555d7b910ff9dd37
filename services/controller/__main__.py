"""Composition root of the Controller: `python -m services.controller`."""

import asyncio
import gc
import sys
import time
import uuid
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import grpc
import structlog
from prometheus_client import REGISTRY

from services.common import channels, metrics, process
from services.common.caller import CallerPolicy
from services.common.rpc import RpcServer
from services.controller.api.servicer import OPEN_METHODS, SERVICE, ControllerServicer
from services.controller.api.standby import Standby
from services.controller.core.residency import Engine
from services.controller.core.view import FleetView
from services.controller.loop import EngineLoop
from services.controller.measurement.footprint_watch import FootprintWatch, Remote
from services.controller.measurement.gpus import Gpus
from services.controller.measurement.processes import Processes
from services.controller.measurement.queues import QueueTimes
from services.controller.measurement.statistics_watch import StatisticsWatch
from services.controller.registry import watch as registry_watch
from services.controller.registry.catalogue import Catalogue
from services.controller.registry.lease import ACTING, EPOCH, Lease, LeaseLost
from services.controller.registry.watch import RegistryWatch
from services.controller.routers.placements import Placements
from services.controller.routers.stream import RouterStreams
from services.controller.servers.changes import Changes, Timeouts
from services.controller.servers.watch import ServerWatch
from services.controller.settings import Settings, defaults, limits, metrics_url, server
from services.controller.telemetry.journal import Journal
from services.controller.telemetry.metrics import FleetMetrics
from services.controller.telemetry.webhook import Webhook
from services.controller.triton.client import Triton
from shoal.controller.v1.controller_service_pb2_grpc import (
    add_ControllerServiceServicer_to_server,
)
from shoal.registry.v1.registry_service_pb2_grpc import RegistryServiceStub

STOP_GRACE_SECONDS = 2.0
EXIT_LEASE_LOST = 69  # EX_UNAVAILABLE: another Controller acts; started again, it stands by

_log = structlog.get_logger(__name__)


@dataclass
class Outcome:
    """How the process is to end."""

    status: int = 0


async def main(outcome: Outcome, stop: asyncio.Event) -> None:
    settings = Settings()
    async with AsyncExitStack() as stack:
        rpc = RpcServer(CallerPolicy(settings.trusted_proxies), open_methods=OPEN_METHODS)
        rpc.announce(SERVICE)
        exporter = metrics.serve(settings.host, settings.metrics_port)
        stack.callback(exporter.close)
        channel = await stack.enter_async_context(channels.control(settings.registry))
        registry = RegistryServiceStub(channel)
        tritons = {
            server.id: await stack.enter_async_context(
                Triton(server.id, server.address, settings.triton_admin_key.get_secret_value())
            )
            for server in settings.servers
        }
        lease = Lease(registry, settings.holder, uuid.uuid4().hex, settings.lease_ttl)
        try:
            async with asyncio.TaskGroup() as outer:
                work = outer.create_task(_serve(settings, rpc, lease, registry, tritons))
                await stop.wait()
                await rpc.stop(STOP_GRACE_SECONDS)
                work.cancel()
            await lease.release()
        except* LeaseLost as lost:
            outcome.status = EXIT_LEASE_LOST
            _log.error("another controller acts, start this one again", cause=_cause(lost))
            await rpc.stop(0)


async def _serve(
    settings: Settings, rpc: RpcServer, lease: Lease, registry: Any, tritons: dict[str, Triton]
) -> None:
    """Stand by with what exists at hand, take the lease, then act."""
    standby = Standby(lease)
    rpc.services.add_generic_rpc_handlers((standby,))
    await rpc.start(settings.host, settings.port)
    catalogue = Catalogue(defaults(settings))
    watch = RegistryWatch(registry, catalogue)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(watch.run())
        epoch, fence = await lease.acquire()
        ACTING.set(1)
        EPOCH.set(epoch)
        tasks.create_task(lease.keep(fence))
        await watch.synchronized.wait()
        await watch.load_footprints()

        known = {one.id: server(settings, one) for one in settings.servers}
        local = {one.id: one.address for one in settings.servers if one.local}
        remotes = {
            one.id: Remote(tritons[one.id], metrics_url(settings, one))
            for one in settings.servers
            if not one.local
        }
        now = time.monotonic()
        first = epoch == 1  # of all Controllers on this Registry: no Router has another's table
        unload_from = now if first else now + settings.router_lease
        engine = Engine(limits(settings), known.values(), now, unload_from)
        view = FleetView(engine.fleet)
        journal = Journal(epoch)
        placements = Placements(view, catalogue, epoch)
        processes = Processes(local, Gpus.of_this_host())
        watches: dict[str, ServerWatch] = {}
        statistics = StatisticsWatch(view, tritons, catalogue)
        loop = EngineLoop(
            engine,
            catalogue,
            placements,
            journal,
            tasks,
            Changes(
                tritons,
                catalogue,
                processes,
                Timeouts(settings.load_timeout, settings.unload_timeout, settings.probe_timeout),
                verify=lambda id_: watches[id_].verify(),
                fence=fence,
                loads=statistics.begins,
                unloads=statistics.ends,
                probed=statistics.probed,
            ),
            measure=lambda id_: footprints.measure(id_),
            fence=fence,
        )
        footprints = FootprintWatch(
            view,
            catalogue,
            processes,
            tritons,
            remotes,
            feed=loop.feed,
            interval=settings.measure_interval,
        )
        REGISTRY.register(FleetMetrics(view, journal))
        for id_, one in known.items():
            watches[id_] = ServerWatch(
                one,
                tritons[id_],
                view,
                catalogue,
                feed=loop.feed,
                lost=loop.server_lost,
                fence=fence,
                interval=settings.health_interval,
                selfcheck=settings.selfcheck_model,
            )
        watch.changed = loop.catalogue_changed
        loop.catalogue_changed(catalogue.entries)
        gc.collect()
        gc.freeze()  # a large catalogue makes each full collection a pause of its own
        for server_watch in watches.values():
            tasks.create_task(server_watch.run())
        tasks.create_task(footprints.run())
        tasks.create_task(statistics.run(QueueTimes(loop.feed).seen))
        tasks.create_task(registry_watch.report(registry, loop.learned))
        tasks.create_task(loop.tick())
        if settings.events_webhook is not None:
            url = str(settings.events_webhook.get_secret_value())
            source = f"/shoal/controllers/{settings.holder}"
            tasks.create_task(Webhook(url, journal, source).run())

        servicer = ControllerServicer(
            view,
            catalogue,
            journal,
            RouterStreams(view, placements, feed=loop.feed, fence=fence),
            statistics,
            watches,
            tritons,
            registry,
            epoch=epoch,
            ask=loop.ask,
            feed=loop.feed,
            max_wait=settings.max_wait,
        )
        add_ControllerServiceServicer_to_server(servicer, cast("grpc.aio.Server", standby))
        await rpc.set_ready(True)


def _cause(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error)


if __name__ == "__main__":
    ended = Outcome()
    sys.exit(process.run("controller", partial(main, ended)) or ended.status)
