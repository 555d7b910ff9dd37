"""Composition root of the Router: `python -m services.router`."""

# ruff: noqa: E402
from services.router.process import tuning

tuning.before_grpc()

import asyncio
import importlib.metadata
import sys
import uuid
from contextlib import AsyncExitStack
from functools import partial

from prometheus_client import REGISTRY

from services.common import channels, process, web
from services.common.caller import CallerPolicy
from services.common.memory import total_memory
from services.common.ports import listen
from services.common.rpc import RpcServer
from services.router.admission.admission import Admission
from services.router.api import inference, servicer
from services.router.api.administration import Administration
from services.router.api.explanations import Explanations
from services.router.api.inference import Inference
from services.router.api.servicer import Own, RouterServicer, WorkerServicer
from services.router.control.calls import ControllerCalls
from services.router.control.model_info import ModelInfo
from services.router.control.placement_watch import PlacementWatch
from services.router.control.residents import ControllerClient
from services.router.control.servers import ServerCalls
from services.router.control.table_file import TableFile
from services.router.core.admission.memory import Held
from services.router.core.routing.table import Table
from services.router.memory.regions import SharedMemory
from services.router.memory.requests import SharedMemoryRequests
from services.router.process.peers import Peers
from services.router.process.workers import Workers, follow_parent
from services.router.rest.app import app
from services.router.rest.converter import Converter
from services.router.rest.openapi import pages
from services.router.rest.service import Service
from services.router.rest.table import ROUTES
from services.router.settings import Settings, tenant_limits
from services.router.streams.call import StreamCalls
from services.router.streams.stream import Streams
from services.router.telemetry.statistics import Overload, Statistics
from services.router.unary.forward import Forwarder
from services.router.unary.inference import Requests
from shoal.controller.v1.controller_service_pb2_grpc import ControllerServiceStub
from shoal.router.v1.router_service_pb2_grpc import add_RouterServiceServicer_to_server

FIRST_TABLE_SECONDS = 2.0  # for the Controller's; then the one on disk is used


async def main(stop: asyncio.Event) -> None:
    settings = Settings()
    if settings.workers > 1 and settings.worker is None:
        await Workers(settings).run(stop)
    else:
        await serve(settings, stop)


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Answer until `stop` is set, alone or as one of several workers."""
    shared = settings.worker is not None
    index = settings.worker or 0
    tuning.process(batch=settings.batch_scheduling)
    callers = CallerPolicy(settings.trusted_proxies)
    rpc = _rpc_server(settings, callers, shared=shared)
    async with AsyncExitStack() as stack:
        listener = stack.enter_context(listen(settings.host, settings.http_port, shared=shared))
        controllers = {
            address: ControllerServiceStub(
                await stack.enter_async_context(channels.control(address))
            )
            for address in settings.controllers
        }
        kept = _table_file(settings)
        watch = PlacementWatch(controllers, f"router-{uuid.uuid4().hex[:12]}", Table(), kept)
        controller = ControllerClient(watch, settings.patience)
        forwarder = Forwarder(watch, controller, hedge_after=settings.hedge_after)
        stack.push_async_callback(forwarder.close)
        statistics = Statistics()
        REGISTRY.register(statistics)
        info = ModelInfo(controller)
        calls = ControllerCalls(watch)
        servers = ServerCalls(calls)
        further = dict(Administration(watch, calls, servers).answers())
        limit, metadata = settings.max_message_bytes, settings.max_header_bytes
        tenants = tenant_limits(settings.tenant_limits)
        held = Held(settings.held_bytes(total_memory()))
        admission = Admission(
            watch.table,
            tenants,
            settings.bounds,
            settings.in_flight_limits,
            held,
        )
        watch.waiting = admission.waiting
        REGISTRY.register(Overload(admission, forwarder.budget))
        requests = Requests(
            watch,
            forwarder,
            statistics,
            info,
            admission,
            max_message=limit,
            max_metadata=metadata,
        )
        if settings.shared_memory:
            here = str(settings.grpc_port)
            memory = SharedMemory(watch, servers, callers, router=here, several=shared)
            stack.push_async_callback(memory.close)
            further |= memory.answers()
            requests = SharedMemoryRequests(
                watch,
                forwarder,
                statistics,
                info,
                admission,
                memory,
                max_message=limit,
                max_metadata=metadata,
            )
        version = importlib.metadata.version("shoal")
        stream_calls = StreamCalls(
            watch, controller, forwarder.pick, forwarder.repeats, forwarder.budget
        )
        stack.push_async_callback(stream_calls.close)
        streams = Streams(watch, stream_calls, requests, statistics, max_message=limit)
        service = Inference(
            watch,
            requests,
            info,
            callers,
            further,
            streams,
            version=version,
        )
        rpc.grpc.add_generic_rpc_handlers((service.handlers(),))
        peers = Peers(Own(watch, statistics), settings.worker_sockets if shared else None, index)
        explanations = Explanations(watch, admission)
        add_RouterServiceServicer_to_server(RouterServicer(explanations, peers), rpc.services)
        await stack.enter_async_context(peers.serving(WorkerServicer(peers)))
        converter = Converter(settings.json_processes)
        stack.push_async_callback(converter.close)
        rest = Service(
            watch=watch,
            requests=requests,
            callers=callers,
            calls=service.answers(),
            metrics=peers.metrics,
            pages=pages(ROUTES, version),
            max_body=limit,
            max_json=settings.max_json_bytes,
            stream=streams.responses,
            held=held,
            converter=converter,
        )
        http = web.HttpLimits(settings.max_header_bytes, connections=settings.limits.connections)
        await stack.enter_async_context(web.serving(app(rest), listener, http))
        work = [watch.run(), _begin(settings, watch, rpc, kept)]
        if kept is not None:
            work.append(kept.write())
        if shared:
            work.append(follow_parent(stop, partial(setattr, admission, "workers")))
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(one) for one in work]
            tuning.settled()
            await stop.wait()
            await rpc.stop(settings.stop_grace)
            for task in running:
                task.cancel()


def _rpc_server(settings: Settings, callers: CallerPolicy, *, shared: bool) -> RpcServer:
    """`shared`: on a port that the other workers listen on, too."""
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
    """Where the table of placements is kept, if it is: one file for each process."""
    if settings.state_dir is None:
        return None
    name = f"router-{settings.grpc_port}"
    if settings.worker is not None:
        name += f"-{settings.worker}"
    return TableFile(settings.state_dir / f"{name}.placements")


async def _begin(
    settings: Settings, watch: PlacementWatch, rpc: RpcServer, kept: TableFile | None
) -> None:
    """Answer from the first table on: the Controller's, or while it is away the one on disk. Before
    that, every model would be unknown."""
    if kept is not None:
        try:
            async with asyncio.timeout(FIRST_TABLE_SECONDS):
                await watch.synchronized.wait()
        except TimeoutError:
            if not watch.synchronized.is_set() and await kept.restore(watch.table):
                watch.synchronized.set()
    await watch.synchronized.wait()
    await rpc.start(settings.host, settings.grpc_port)
    await rpc.set_ready(True)


if __name__ == "__main__":
    sys.exit(process.run("router", main))
