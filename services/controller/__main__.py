"""Composition root of the Controller: `python -m services.controller`."""

import asyncio
import sys
import time
import uuid
from contextlib import AsyncExitStack
from typing import Any

from prometheus_client import REGISTRY

from services.common import channels, metrics, process
from services.common.caller import CallerPolicy
from services.common.rpc import RpcServer
from services.controller import registry_watch
from services.controller.catalog import Catalog
from services.controller.core.entities import Limits, Server
from services.controller.core.residency import Engine
from services.controller.journal import Journal
from services.controller.loop import Loop, Timeouts
from services.controller.metrics import FleetMetrics
from services.controller.placements import Placements
from services.controller.registry_watch import Lease, RegistryWatch
from services.controller.servers import FootprintWatch, ServerWatch
from services.controller.servicer import OPEN_METHODS, SERVICE, ControllerServicer
from services.controller.settings import Settings
from services.controller.triton import Triton
from shoal.controller.v1.controller_service_pb2_grpc import (
    add_ControllerServiceServicer_to_server,
)
from shoal.registry.v1.registry_service_pb2_grpc import RegistryServiceStub

STOP_GRACE_SECONDS = 2.0


async def main(stop: asyncio.Event) -> None:
    settings = Settings()
    async with AsyncExitStack() as stack:
        rpc = RpcServer(CallerPolicy(settings.trusted_proxies), open_methods=OPEN_METHODS)
        rpc.announce(SERVICE)
        exporter = metrics.serve(settings.host, settings.metrics_port)
        stack.callback(exporter.close)
        channel = await stack.enter_async_context(channels.control(settings.registry))
        tritons = {
            server.id: await stack.enter_async_context(
                Triton(server.id, server.address, settings.triton_admin_key.get_secret_value())
            )
            for server in settings.servers
        }
        async with asyncio.TaskGroup() as outer:
            work = outer.create_task(_serve(settings, rpc, RegistryServiceStub(channel), tritons))
            await stop.wait()
            await rpc.stop(STOP_GRACE_SECONDS)
            work.cancel()


async def _serve(
    settings: Settings, rpc: RpcServer, registry: Any, tritons: dict[str, Triton]
) -> None:
    """Take the lease, learn what exists, then act."""
    async with asyncio.TaskGroup() as tasks:
        lease = Lease(registry, settings.holder, uuid.uuid4().hex, settings.lease_ttl)
        epoch = await lease.acquire()
        tasks.create_task(lease.keep())
        catalog = Catalog()
        watch = RegistryWatch(registry, catalog)
        await watch.load_footprints()

        servers = [
            Server(server.id, server.address, server.memory_budget, server.max_models)
            for server in settings.servers
        ]
        limits = Limits(
            loads_per_server=settings.loads_per_server,
            router_seconds=settings.router_lease,
            backoff_seconds=settings.load_backoff,
            server_patience_seconds=settings.server_patience,
        )
        now = time.monotonic()
        first = epoch == 1  # of all Controllers on this Registry: no Router has another's table
        engine = Engine(limits, servers, now, now if first else now + settings.router_lease)
        watches: dict[str, ServerWatch] = {}
        loop = Loop(
            engine,
            catalog,
            tritons,
            Placements(engine.fleet, catalog, epoch),
            Journal(),
            tasks,
            Timeouts(settings.load_timeout, settings.unload_timeout),
            verify=lambda server: watches[server].verify(),
            measure=lambda server: footprints.measure(server),
        )
        local = {server.id: server.address for server in settings.servers if server.local}
        footprints = FootprintWatch(loop, local, settings.measure_interval)
        REGISTRY.register(FleetMetrics(engine.fleet, loop.journal))
        for server in servers:
            watches[server.id] = ServerWatch(
                server,
                tritons[server.id],
                loop,
                interval=settings.health_interval,
                selfcheck=settings.selfcheck_model,
            )
        tasks.create_task(watch.run(loop.catalog_changed))
        await watch.synchronized.wait()
        for server_watch in watches.values():
            tasks.create_task(server_watch.run())
        tasks.create_task(footprints.run())
        tasks.create_task(registry_watch.report(registry, loop.learned))
        tasks.create_task(loop.tick())

        servicer = ControllerServicer(loop, watches, registry, settings.max_wait)
        add_ControllerServiceServicer_to_server(servicer, rpc.grpc)
        await rpc.start(settings.host, settings.port)
        await rpc.set_ready(True)


if __name__ == "__main__":
    sys.exit(process.run("controller", main))
