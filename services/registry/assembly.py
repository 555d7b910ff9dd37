"""The Registry put together."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, NamedTuple

import structlog

from services.common import metrics
from services.common.caller import CallerPolicy
from services.common.errors import InvalidArtifact
from services.common.rpc import RpcServer
from services.registry.api.servicer import NAME, OPEN_METHODS, RegistryServicer
from services.registry.artifacts.staging import Staging
from services.registry.catalogue.store import Store
from services.registry.catalogue.watch import CatalogLog
from services.registry.catalogue.writer import Catalogue
from services.registry.completion import finished
from services.registry.settings import RegistrySettings
from services.registry.versions import Inventory
from shoal.registry.v1 import registry_service_pb2_grpc as pb_grpc

FINISH_SECONDS: Final = 5.0

_log = structlog.get_logger(__name__)


class Running(NamedTuple):
    port: int
    metrics_port: int | None


@asynccontextmanager
async def running(settings: RegistrySettings) -> AsyncIterator[Running]:
    """A Registry that answers from now on, and is SERVING once it has looked at all files.

    Raises rpc.PortTaken, database.UnknownDatabase, staging.NotStaging.
    """
    async with contextlib.AsyncExitStack() as stack:
        store = await Store.open(settings.database)
        stack.push_async_callback(store.close)
        staging = Staging(settings.staging)
        stack.callback(staging.close)
        stack.push_async_callback(finished, FINISH_SECONDS)  # what calls have left behind
        await asyncio.to_thread(staging.prepare)
        log = CatalogLog(await store.revision())
        catalogue = Catalogue(store, staging, log)
        inventory = Inventory(catalogue, staging, settings.default_instance_kind)
        server = RpcServer(CallerPolicy(settings.trusted_proxies), open_methods=OPEN_METHODS)
        servicer = RegistryServicer(catalogue, inventory, settings.watch_checkpoint_seconds)
        pb_grpc.add_RegistryServiceServicer_to_server(servicer, server.services)
        server.announce(NAME)
        metrics_port = None
        if settings.metrics_port is not None:
            exporter = metrics.serve(settings.host, settings.metrics_port)
            stack.push_async_callback(asyncio.to_thread, exporter.close)
            metrics_port = exporter.port
        port = await server.start(settings.host, settings.port)
        stack.push_async_callback(server.stop, settings.stop_grace_seconds)
        stack.callback(log.close)
        _log.info("listening", host=settings.host, port=port, metrics_port=metrics_port)
        async with asyncio.TaskGroup() as tasks:
            preparing = tasks.create_task(_prepare(inventory, settings.repositories, server))
            yield Running(port, metrics_port)
            preparing.cancel()


async def _prepare(inventory: Inventory, repositories: Iterable[Path], server: RpcServer) -> None:
    await inventory.restore()
    for path in repositories:
        await _import(inventory, path)
    await inventory.remove_strangers()
    await server.set_ready(True)
    _log.info("ready")


async def _import(inventory: Inventory, path: Path) -> None:
    """One repository that cannot be read keeps no other model from being served."""
    try:
        versions, problems = await inventory.import_repository(path)
    except InvalidArtifact as error:
        _log.error("repository not imported", path=str(path), problem=error.message)
        return
    for problem in problems:
        _log.warning("not imported", path=problem.path, problem=problem.reason)
    _log.info("repository imported", path=str(path), versions=len(versions))
