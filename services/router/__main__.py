"""The Router's composition root: `python -m services.router`."""

# ruff: noqa: E402
from services.router.process import tuning

tuning.before_grpc()

import asyncio
import sys
import uuid
from collections.abc import Coroutine, Iterator
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

from prometheus_client import REGISTRY

from services.common import channels, process, web
from services.common.caller import CallerPolicy
from services.common.http1 import HttpLimits
from services.common.ports import listen
from services.common.rpc import RpcServer
from services.router.api import inference, servicer
from services.router.api.explanations import Explanations
from services.router.api.servicer import ProcessStatistics, RouterServicer, WorkerServicer
from services.router.assembly import Router, assembled
from services.router.control.placement_watch import PlacementWatch
from services.router.control.table_file import TableFile
from services.router.process.peers import Peers
from services.router.process.workers import Workers, follow_parent
from services.router.rest.app import app
from services.router.rest.converter import Converter
from services.router.rest.openapi import pages
from services.router.rest.service import Service
from services.router.rest.table import ROUTES
from services.router.settings import Settings
from services.router.telemetry.statistics import AdmissionMetrics, LaneMetrics
from shoal.controller.v1.controller_service_pb2_grpc import ControllerServiceStub
from shoal.router.v1.router_service_pb2_grpc import add_RouterServiceServicer_to_server

if TYPE_CHECKING:
    from services.router.lane.lane import Lane

FIRST_TABLE_SECONDS = 2.0  # for the Controller's table; then the one on disk is used


async def main(stop: asyncio.Event) -> None:
    settings = Settings()
    if settings.workers > 1 and settings.worker is None:
        await Workers(settings).run(stop)
    else:
        await serve(settings, stop)


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Answer requests until `stop` is set, alone or as one of several workers."""
    shared = settings.worker is not None
    tuning.process(batch=settings.batch_scheduling)
    async with AsyncExitStack() as stack:
        listener = stack.enter_context(listen(settings.own_host, settings.http_port, shared=shared))
        controllers = {
            address: ControllerServiceStub(
                await stack.enter_async_context(channels.control(address))
            )
            for address in settings.controllers
        }
        kept = _table_file(settings)
        name = f"router-{uuid.uuid4().hex[:12]}"
        router = await stack.enter_async_context(
            assembled(settings, controllers, name=name, table_file=kept, stop=stop)
        )
        watch, admission = router.watch, router.admission
        REGISTRY.register(router.statistics)
        REGISTRY.register(AdmissionMetrics(admission, router.forwarder.budget))
        if router.lane is not None:
            REGISTRY.register(LaneMetrics(router.lane))
        rpc = _rpc_server(settings, router.callers, shared=shared)
        rpc.grpc.add_generic_rpc_handlers((router.service.methods(),))
        own = ProcessStatistics(watch, router.statistics)
        peers = Peers(own, settings.worker_sockets if shared else None, settings.worker or 0)
        add_RouterServiceServicer_to_server(
            RouterServicer(
                Explanations(
                    watch,
                    admission,
                    router.cancellations,
                    settings.lane_rules if settings.lane else None,
                ),
                peers,
            ),
            rpc.services,
        )
        await stack.enter_async_context(peers.serving(WorkerServicer(peers)))
        converter = Converter(settings.json_processes)
        stack.push_async_callback(converter.close)
        rest = Service(
            watch=watch,
            inference=router.inference,
            callers=router.callers,
            answers=router.answers,
            metrics=peers.metrics,
            pages=pages(ROUTES, router.version),
            max_body=settings.max_message_bytes,
            max_json=settings.max_json_bytes,
            responses=router.streams.responses,
            memory_budget=admission.memory_budget,
            converter=converter,
            browsers=settings.browsers,
        )
        http = HttpLimits(settings.max_header_bytes, connections=settings.limits.connections)
        await stack.enter_async_context(web.serving(app(rest), listener, http))
        work = [
            watch.run(),
            _begin(settings, watch, rpc, kept),
            *_lane_work(settings, router, stack),
        ]
        if kept is not None:
            work.append(kept.write())
        if shared:
            work.append(follow_parent(stop, partial(setattr, admission, "workers")))
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(one) for one in work]
            tuning.freeze_heap()
            await stop.wait()
            if watch.synchronized.is_set():
                await rpc.set_ready(False)
                await asyncio.sleep(settings.drain)
            if router.lane is not None:
                await router.lane.drain(settings.stop_grace)
            await rpc.stop(settings.stop_grace)
            for task in running:
                task.cancel()


def _rpc_server(settings: Settings, callers: CallerPolicy, *, shared: bool) -> RpcServer:
    """Return the gRPC server. `shared` says that other workers listen on its port as well."""
    rpc = RpcServer(
        callers,
        open_methods=servicer.OPEN_METHODS,
        options=(
            *tuning.SERVER_OPTIONS,
            *settings.limits.options(),
            ("grpc.max_receive_message_length", settings.max_received_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", int(shared)),
        ),
    )
    rpc.announce(inference.SERVICE, servicer.SERVICE)
    return rpc


def _table_file(settings: Settings) -> TableFile | None:
    """Return the file in which this process keeps its placement table, or None if no table is
    kept."""
    if settings.state_dir is None:
        return None
    name = f"router-{settings.grpc_port}"
    if settings.worker is not None:
        name += f"-{settings.worker}"
    return TableFile(settings.state_dir / f"{name}.placements")


async def _begin(
    settings: Settings, watch: PlacementWatch, rpc: RpcServer, kept: TableFile | None
) -> None:
    """Start answering once there is a first table, since every model would be unknown before. The
    table is the Controller's or, while no Controller can be reached, the one on disk."""
    if kept is not None:
        try:
            async with asyncio.timeout(FIRST_TABLE_SECONDS):
                await watch.synchronized.wait()
        except TimeoutError:
            if not watch.synchronized.is_set() and await kept.restore(watch.table):
                watch.synchronized.set()
    await watch.synchronized.wait()
    await rpc.start(settings.own_host, settings.grpc_port)
    await rpc.set_ready(True)


def _lane_work(
    settings: Settings, router: Router, stack: AsyncExitStack
) -> Iterator[Coroutine[Any, Any, None]]:
    """Yield what has the proxy follow the table, if there is one."""
    if settings.lane is not None and router.lane is not None:
        yield _serve_lane(router.lane, router.watch, settings.lane.discovery, stack)


async def _serve_lane(
    lane: "Lane", watch: PlacementWatch, address: str, stack: AsyncExitStack
) -> None:
    await watch.synchronized.wait()
    await lane.serve(stack, address)


if __name__ == "__main__":
    sys.exit(process.run("router", main))
