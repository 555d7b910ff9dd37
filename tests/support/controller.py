"""A Controller's service in this process, over the Tritons that a test has, without a Registry."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from structlog.testing import capture_logs

from services.common import channels
from services.common.caller import CallerPolicy
from services.common.rpc import RpcServer
from services.controller.api.servicer import OPEN_METHODS, SERVICE, ControllerServicer
from services.controller.core.entities import Server
from services.controller.core.limits import Limits
from services.controller.core.residency import Engine
from services.controller.core.view import FleetView
from services.controller.loop import EngineLoop
from services.controller.measurement.gpus import Gpus
from services.controller.measurement.processes import Processes
from services.controller.measurement.statistics_watch import StatisticsWatch
from services.controller.registry.catalogue import Catalogue
from services.controller.registry.lease import Fence
from services.controller.routers.placements import Placements
from services.controller.routers.stream import RouterStreams
from services.controller.servers.changes import Changes, Timeouts
from services.controller.servers.watch import ServerWatch
from services.controller.telemetry.journal import Journal
from services.controller.triton.client import Triton
from shoal.controller.v1.controller_service_pb2_grpc import (
    ControllerServiceStub,
    add_ControllerServiceServicer_to_server,
)
from shoal.names import model_name, version_name
from shoal.registry.v1 import types_pb2 as registry
from tests.support.triton_models import wire

SECONDS = 20.0


@dataclass(frozen=True)
class Alone:
    """`stub`: of grpc.aio."""

    loop: EngineLoop
    view: FleetView
    address: str
    stub: Any


def entry(model: str, *versions: int, **more: Any) -> registry.CatalogEntry:
    """An approved Python model, the newest version its default; `more`: fields of each version."""
    made = {"config": wire(model), "state": registry.VERSION_STATE_APPROVED, **more}
    return registry.CatalogEntry(
        model=registry.Model(name=model_name(model), default_version=max(versions)),
        versions=[
            registry.ModelVersion(name=version_name(model, version), **made) for version in versions
        ],
    )


@asynccontextmanager
async def controller(
    servers: Sequence[Server] = (),
    entries: Iterable[registry.CatalogEntry] = (),
    keys: Mapping[str, str] | None = None,
    *,
    epoch: int = 1,
    port: int = 0,
    limits: Limits | None = None,
) -> AsyncIterator[Alone]:
    """Yields once it answers. `keys`: each server's admin key."""
    catalogue = Catalogue()
    catalogue.replace(entries, (), all_=True)
    now = time.monotonic()
    engine = Engine(limits or Limits(), servers, now, now)
    view, fence, journal = FleetView(engine.fleet), Fence(), Journal(epoch)
    watches: dict[str, ServerWatch] = {}
    async with AsyncExitStack() as stack:
        # Its log lines would stand between what a command prints.
        stack.enter_context(capture_logs())
        tritons = {
            server.id: await stack.enter_async_context(
                Triton(server.id, server.address, (keys or {})[server.id])
            )
            for server in servers
        }
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        statistics = StatisticsWatch(view, tritons, catalogue)
        changes = Changes(
            tritons,
            catalogue,
            Processes({server.id: server.address for server in servers}, Gpus()),
            Timeouts(SECONDS, SECONDS, SECONDS),
            verify=lambda server: watches[server].verify(),
            loads=statistics.begins,
            unloads=statistics.ends,
            probed=statistics.probed,
        )
        placements = Placements(view, catalogue, epoch)
        loop = EngineLoop(
            engine, catalogue, placements, journal, tasks, changes, _unmeasured, fence
        )
        loop.catalogue_changed(catalogue.entries)
        work = [tasks.create_task(loop.tick())]
        for server in servers:
            watch = ServerWatch(
                server,
                tritons[server.id],
                view,
                catalogue,
                feed=loop.feed,
                lost=loop.server_lost,
                fence=fence,
                interval=0.2,
            )
            watches[server.id] = watch
            work.append(tasks.create_task(watch.run()))
        stack.callback(lambda: [task.cancel() for task in work])
        rpc = RpcServer(CallerPolicy(), open_methods=OPEN_METHODS)
        rpc.announce(SERVICE)
        servicer = ControllerServicer(
            view,
            catalogue,
            journal,
            RouterStreams(view, placements, feed=loop.feed, fence=fence),
            statistics,
            watches,
            tritons,
            None,
            epoch=epoch,
            ask=loop.ask,
            feed=loop.feed,
            max_wait=SECONDS,
        )
        add_ControllerServiceServicer_to_server(servicer, rpc.services)
        address = f"127.0.0.1:{await rpc.start('127.0.0.1', port)}"
        stack.push_async_callback(rpc.stop, 0)
        await rpc.set_ready(True)
        channel = await stack.enter_async_context(channels.control(address))
        yield Alone(loop, view, address, ControllerServiceStub(channel))


async def _unmeasured(server: str) -> None:
    """What its models take is not looked at."""
