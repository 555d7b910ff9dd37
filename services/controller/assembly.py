"""The Controller put together."""

import asyncio
import gc
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, cast

import grpc
from prometheus_client import REGISTRY

from services.common import channels, metrics
from services.common.caller import CallerPolicy
from services.common.rpc import RpcServer
from services.controller.api import diagnostics
from services.controller.api.servicer import OPEN_METHODS, SERVICE, ControllerServicer
from services.controller.api.standby import Standby
from services.controller.core import events as ev
from services.controller.core.entities import Server
from services.controller.core.limits import Limits
from services.controller.core.residency import Engine
from services.controller.core.view import FleetView
from services.controller.loop import EngineLoop
from services.controller.measurement.footprint_watch import FootprintWatch, Remote
from services.controller.measurement.gpus import Gpus
from services.controller.measurement.processes import Processes
from services.controller.measurement.queues import QueueTimes
from services.controller.measurement.statistics_watch import StatisticsWatch
from services.controller.registry.called import CalledModels
from services.controller.registry.catalogue import Catalogue
from services.controller.registry.completer import Completer
from services.controller.registry.completions import Completions, complete
from services.controller.registry.followers import Followers
from services.controller.registry.lease import ACTING, EPOCH, Fence, Lease
from services.controller.registry.residents import Residents
from services.controller.registry.sources import Sources
from services.controller.registry.watch import RegistryWatch, report
from services.controller.routers.placements import Placements
from services.controller.routers.stream import RouterStreams
from services.controller.servers.changes import Changes, Timeouts, no_problem
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

STOP_GRACE_SECONDS: Final = 2.0


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[int]:
    """Run a Controller: on standby at first, and acting once it has the lease.

    Yields the port that it answers on. Raises PortTaken, and in a group LeaseLost when another
    Controller acts.
    """
    async with AsyncExitStack() as stack:
        rpc = RpcServer(CallerPolicy(settings.trusted_proxies), open_methods=OPEN_METHODS)
        rpc.announce(SERVICE)
        exporter = metrics.serve(settings.host, settings.metrics_port)
        stack.callback(exporter.close)
        channel = await stack.enter_async_context(channels.control(settings.registry))
        registry = RegistryServiceStub(channel)
        tritons = {
            one.id: await stack.enter_async_context(
                Triton(one.id, one.address, settings.triton_admin_key.get_secret_value())
            )
            for one in settings.servers
        }
        lease = Lease(registry, settings.holder, uuid.uuid4().hex, settings.lease_ttl)
        standby = Standby(lease)
        rpc.services.add_generic_rpc_handlers((standby,))
        port = await rpc.start(settings.host, settings.port)
        stack.push_async_callback(rpc.stop, 0)
        async with asyncio.TaskGroup() as tasks:
            work = tasks.create_task(_serve(settings, rpc, standby, lease, registry, tritons))
            yield port
            await rpc.stop(STOP_GRACE_SECONDS)
            work.cancel()
        await lease.release()


async def _serve(
    settings: Settings,
    rpc: RpcServer,
    standby: Standby,
    lease: Lease,
    registry: Any,
    tritons: Mapping[str, Triton],
) -> None:
    """Stand by with the catalogue at hand, take the lease, then act until cancelled."""
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
        remotes = {
            one.id: Remote(tritons[one.id], metrics_url(settings, one))
            for one in settings.servers
            if not one.local
        }
        async with acting(
            settings,
            [server(settings, one) for one in settings.servers],
            limits(settings),
            tritons,
            catalogue,
            epoch=epoch,
            fence=fence,
            gpus=Gpus.of_this_host(),
            remotes=remotes,
            registry=registry,
            watch=watch,
            followers=lease.followers,
        ) as controller:
            watch.listen(controller.loop.catalogue_changed)
            gc.collect()
            gc.freeze()  # a large catalogue makes each full collection a pause of its own
            add_ControllerServiceServicer_to_server(
                controller.servicer, cast("grpc.aio.Server", standby)
            )
            collector = FleetMetrics(controller.view, controller.journal)
            REGISTRY.register(collector)
            try:
                await rpc.set_ready(True)
                await asyncio.Event().wait()
            finally:
                REGISTRY.unregister(collector)


@dataclass(frozen=True, slots=True)
class Acting:
    """A Controller that acts."""

    engine: Engine
    view: FleetView
    catalogue: Catalogue
    journal: Journal
    loop: EngineLoop
    servicer: ControllerServicer


@asynccontextmanager
async def acting(
    settings: Settings,
    servers: Sequence[Server],
    bounds: Limits,
    tritons: Mapping[str, Triton],
    catalogue: Catalogue,
    *,
    epoch: int,
    fence: Fence | None = None,
    gpus: Gpus | None = None,
    remotes: Mapping[str, Remote] | None = None,
    registry: Any = None,
    watch: RegistryWatch | None = None,
    followers: Followers | None = None,
    measured: bool = True,
) -> AsyncIterator[Acting]:
    """Build what acts, and run it.

    The servers and their `bounds` are given apart from the other settings. `fence`: None for one
    that is always open. `gpus`: those of this host, None where it has none. `remotes`: the servers
    that are on other hosts. `registry` and `watch`: the Registry's stub, and what follows it; None
    where there is no Registry. `followers`: the Routers, as the Registry knows them; None where
    nobody asks for them. `measured`: whether memory and queues are measured.

    Leaving it stops what runs in the background, and waits for loads and unloads under way.
    """
    fence, remotes, now = fence or Fence(), remotes or {}, time.monotonic()
    # The first Controller of all has no predecessor whose table a Router may still send by.
    unload_from = now if epoch == 1 else now + bounds.router_seconds
    followers = followers or Followers()
    engine = Engine(bounds, servers, now, unload_from, followers.inherited)
    view, journal = FleetView(engine.fleet), Journal(epoch)
    followers.current = lambda: view.followers(time.monotonic())
    residents = Residents(registry, lambda: {one.key.unit for one in view.replicas()})
    sources = Sources(registry, catalogue, watch, residents) if watch is not None else None
    completions = Completions(registry, catalogue, watch) if watch is not None else None
    http_addresses = {one.id: one.http_address for one in settings.servers if one.http_address}
    placements = Placements(view, catalogue, epoch, http_addresses)
    local = {one.id: one.address for one in servers if one.id not in remotes}
    processes = Processes(local, gpus or Gpus())
    statistics = StatisticsWatch(view, tritons, catalogue)
    watches: dict[str, ServerWatch] = {}
    async with asyncio.TaskGroup() as tasks:
        changes = Changes(
            tritons,
            catalogue,
            processes,
            Timeouts(settings.load_timeout, settings.unload_timeout, settings.probe_timeout),
            verify=lambda id_: watches[id_].verify(),
            fence=fence,
            source_problem=sources.problem if sources is not None else no_problem,
            before_load=statistics.before_load,
            before_unload=statistics.before_unload,
            after_probe=statistics.after_probe,
        )
        loop = EngineLoop(
            engine,
            catalogue,
            placements,
            journal,
            tasks,
            changes,
            measure=(lambda id_: footprints.measure(id_)) if measured else None,
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
        for one in servers:
            watches[one.id] = ServerWatch(
                one,
                tritons[one.id],
                view,
                catalogue,
                feed=loop.feed,
                lost=loop.server_lost,
                fence=fence,
                interval=settings.health_interval,
                selfcheck=settings.selfcheck_model,
            )
        called = CalledModels(registry, watch, catalogue, view)
        servicer = ControllerServicer(
            view,
            catalogue,
            journal,
            RouterStreams(
                view, placements, feed=loop.feed, fence=fence, recorded=followers.recorded
            ),
            statistics,
            watches,
            tritons,
            registry,
            called,
            epoch=epoch,
            ask=loop.ask,
            feed=loop.feed,
            diagnose=partial(diagnostics.of, engine),
            refresh=sources.refresh if sources is not None else None,
            completed=completions.awaited if completions is not None else complete,
            max_wait=settings.max_wait,
        )
        loop.catalogue_changed(catalogue.entries)
        loop.feed(ev.UsesRecalled(catalogue.take_used(time.time())))
        loop.feed(ev.FailuresRecalled(catalogue.take_failed(time.time())))
        work = [loop.tick(), *(watch.run() for watch in watches.values())]
        if measured:
            work += [footprints.run(), statistics.run(QueueTimes(loop.feed).seen)]
        if registry is not None:
            work += [report(registry, loop.learned), residents.run()]
            completer = Completer(
                registry, catalogue, view, tritons, loop.ask, settings.load_timeout
            )
            work.append(completer.run())
        if settings.events_webhook is not None:
            url = str(settings.events_webhook.get_secret_value())
            work.append(Webhook(url, journal, f"/shoal/controllers/{settings.holder}").run())
        background = [tasks.create_task(one) for one in work]
        yield Acting(engine, view, catalogue, journal, loop, servicer)
        for task in background:
            task.cancel()
