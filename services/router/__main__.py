"""Composition root of the Router: `python -m services.router`."""

# ruff: noqa: E402
from services.router import tuning

tuning.before_grpc()

import asyncio
import importlib.metadata
import sys
import uuid
from contextlib import AsyncExitStack

from prometheus_client import REGISTRY

from services.common import channels, process, web
from services.common.caller import CallerPolicy
from services.common.ports import listen
from services.common.rpc import RpcServer
from services.router import inference, servicer
from services.router.controller_client import ControllerClient
from services.router.core.table import Table
from services.router.forward import Forwarder
from services.router.inference import Inference
from services.router.model_info import ModelInfo
from services.router.placement_watch import PlacementWatch
from services.router.requests import Requests
from services.router.servicer import RouterServicer
from services.router.settings import MAX_MESSAGE, Settings
from services.router.statistics import Statistics
from services.router.table_file import TableFile
from services.router.web import app
from shoal.controller.v1.controller_service_pb2_grpc import ControllerServiceStub
from shoal.router.v1.router_service_pb2_grpc import add_RouterServiceServicer_to_server

FIRST_TABLE_SECONDS = 2.0  # for the Controller's; then the one on disk is used


async def main(stop: asyncio.Event) -> None:
    settings = Settings()
    tuning.process(batch=settings.batch_scheduling)
    callers = CallerPolicy(settings.trusted_proxies)
    rpc = RpcServer(
        callers,
        open_methods=servicer.OPEN_METHODS,
        options=(
            *tuning.SERVER_OPTIONS,
            # Above our own limit, so that it is our own error that a caller sees.
            ("grpc.max_receive_message_length", min(MAX_MESSAGE, 2 * settings.max_message_bytes)),
            ("grpc.max_send_message_length", -1),
        ),
    )
    rpc.announce(inference.SERVICE, servicer.SERVICE)
    async with AsyncExitStack() as stack:
        listener = stack.enter_context(listen(settings.host, settings.http_port))
        controllers = {
            address: ControllerServiceStub(
                await stack.enter_async_context(channels.control(address))
            )
            for address in settings.controllers
        }
        kept = None
        if settings.state_dir is not None:
            kept = TableFile(settings.state_dir / f"router-{settings.grpc_port}.placements")
        watch = PlacementWatch(controllers, f"router-{uuid.uuid4().hex[:12]}", Table(), kept)
        controller = ControllerClient(watch, settings.patience)
        forwarder = Forwarder(watch, controller)
        stack.push_async_callback(forwarder.close)
        statistics = Statistics()
        REGISTRY.register(statistics)
        service = Inference(
            watch,
            Requests(watch, forwarder, statistics, max_message=settings.max_message_bytes),
            ModelInfo(controller),
            callers,
            version=importlib.metadata.version("shoal"),
        )
        rpc.grpc.add_generic_rpc_handlers((service.handlers(),))
        add_RouterServiceServicer_to_server(RouterServicer(watch, statistics), rpc.grpc)
        await stack.enter_async_context(web.serving(app(watch), listener))
        async with asyncio.TaskGroup() as tasks:
            work = [tasks.create_task(watch.run())]
            if kept is not None:
                work.append(tasks.create_task(kept.write()))
            work.append(tasks.create_task(_begin(settings, watch, rpc, kept)))
            tuning.settled()
            await stop.wait()
            await rpc.stop(settings.stop_grace)
            for task in work:
                task.cancel()


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
