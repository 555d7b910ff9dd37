"""The Registry, put together."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import structlog

from services.common import metrics
from services.common.caller import CallerPolicy
from services.common.errors import NotReady
from services.common.rpc import RpcServer
from services.common.tasks import TaskScope
from services.registry.api.servicer import NAME, OPEN_METHODS, RegistryServicer
from services.registry.api.storage import Storage
from services.registry.artifacts.repository import Problem
from services.registry.artifacts.staging import Staging
from services.registry.catalogue.store import Store
from services.registry.catalogue.watch import CatalogueLog
from services.registry.catalogue.writer import Catalogue
from services.registry.completions import Completions
from services.registry.contents import Contents
from services.registry.core.errors import InvalidArtifact
from services.registry.disk import Disk
from services.registry.imports import Imports
from services.registry.inspections import Inspections
from services.registry.intake import Intake
from services.registry.locks import KeyedLocks
from services.registry.registrations import Registrations
from services.registry.repositories import Repositories
from services.registry.returning import Returns
from services.registry.settings import RegistrySettings
from services.registry.signatures import Signatures
from services.registry.source_watches import SourceWatches
from services.registry.sources.origins import origin_of
from services.registry.storage.blobs import Blobs
from services.registry.storage.fetching import Fetcher
from services.registry.storage.room import Room
from services.registry.storage.trees import Trees
from services.registry.uploads import Uploads
from services.registry.versions import Versions
from shoal.registry.v1 import registry_service_pb2_grpc as pb_grpc

FINISH_SECONDS: Final = 5.0  # for work whose callers have gone

_log = structlog.get_logger(__name__)


class Running(NamedTuple):
    """The ports that a Registry has bound."""

    port: int
    metrics_port: int | None


@asynccontextmanager
async def running(settings: RegistrySettings) -> AsyncIterator[Running]:
    """Run a Registry. It answers at once, and is SERVING once it has scanned all files.

    Raises ports.PortTaken, database.UnknownDatabase, staging.NotStaging.
    """
    async with contextlib.AsyncExitStack() as stack:
        store = await Store.open(settings.database)
        stack.push_async_callback(store.close)
        staging = Staging(settings.staging, settings.store)
        stack.callback(staging.close)
        scope = TaskScope("registry")
        stack.push_async_callback(scope.close, FINISH_SECONDS)
        await asyncio.to_thread(staging.prepare)
        trees = Trees(settings.store, Blobs(settings.store))
        await asyncio.to_thread(trees.prepare)
        room = Room(trees.blobs, settings.store_budget, settings.store_free)
        room.look()
        models = KeyedLocks()
        log = CatalogueLog(await store.revision())
        catalogue = Catalogue(store, staging, log, scope)
        repositories = Repositories(store, settings.repositories, settings.link_roots, trees)
        await repositories.load()
        intake = Intake(catalogue, staging, repositories, scope)
        disk = Disk(store.storage, trees, room, staging, models, scope)
        fetcher = Fetcher(trees.blobs, room, settings.fetches, scope)
        origins = settings.origins
        contents = Contents(partial(origin_of, settings=origins), fetcher, disk, origins.max_bytes)
        kind = settings.default_instance_kind
        registrations = Registrations(catalogue, intake, repositories, models, kind, scope)
        signatures = Signatures(
            settings.signature_keys,
            settings.repositories,
            trees.blobs,
            required=settings.signature_required,
        )
        servers = {"tensorrt": settings.tensorrt_version}
        inspections = Inspections(settings.code_sources, servers)
        imports = Imports(
            store.storage, contents, registrations, disk, signatures, inspections, scope
        )
        stack.push_async_callback(imports.close)
        watches = SourceWatches(store.storage, contents, imports, settings.source_watch_seconds)
        returns = Returns(contents, disk, imports.scope)
        versions = Versions(
            catalogue, staging, repositories, intake, disk, returns, models, kind, scope
        )
        server = RpcServer(CallerPolicy(settings.trusted_proxies), open_methods=OPEN_METHODS)
        completions = Completions(catalogue)
        servicer = RegistryServicer(
            catalogue,
            versions,
            registrations,
            repositories,
            completions,
            Storage(
                imports,
                watches,
                signatures,
                contents,
                Uploads(disk, fetcher.locks, scope),
                disk,
            ),
            scope,
            settings.watch_checkpoint_seconds,
        )
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
        stack.callback(completions.close)
        _log.info("listening", host=settings.host, port=port, metrics_port=metrics_port)
        async with asyncio.TaskGroup() as tasks:
            background = [
                tasks.create_task(_prepare(versions, repositories, imports, settings, server)),
                tasks.create_task(completions.follow()),
                tasks.create_task(watches.follow()),
            ]
            yield Running(port, metrics_port)
            for task in background:
                task.cancel()


async def _prepare(
    versions: Versions,
    repositories: Repositories,
    imports: Imports,
    settings: RegistrySettings,
    server: RpcServer,
) -> None:
    """Import everything, report ready, and import again every `poll_seconds`."""
    await versions.forget_failed_completions()
    await versions.restore()
    for path in settings.repositories:
        await _import(versions, repositories, path, known=frozenset())
    await versions.remove_unknown()
    await imports.resume()
    await server.set_ready(True)
    _log.info("ready")
    while settings.poll_seconds:
        await asyncio.sleep(settings.poll_seconds)
        for path in settings.repositories:
            known = frozenset(repositories.problems(path))
            try:
                await _import(versions, repositories, path, known)
            except NotReady as error:
                _log.warning("repository not polled", path=str(path), problem=error.message)


async def _import(
    versions: Versions, repositories: Repositories, path: Path, known: Collection[Problem]
) -> None:
    """Import one repository, and log what is not `known`.

    A repository that cannot be read does not keep the others from being served.
    """
    try:
        imported = await versions.import_repository(path)
    except InvalidArtifact as error:
        problem = Problem(error.metadata["path"], error.metadata["problem"])
        if problem not in known:
            _log.error("repository not imported", path=problem.path, problem=problem.reason)
        await repositories.keep(path, [problem])
        return
    for problem in imported.problems:
        if problem not in known:
            _log.warning("not imported", path=problem.path, problem=problem.reason)
    if imported.changed or not known:
        _log.info("repository imported", path=str(path), versions=len(imported.versions))
