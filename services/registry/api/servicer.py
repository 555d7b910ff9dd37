"""The RegistryService: requests become changes of the catalogue, entries become responses."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from services.common import paging
from services.common.rpc import Context, current_caller, deadline_of
from services.common.tasks import TaskScope
from services.registry.api import messages
from services.registry.api.completion import completing_calls
from services.registry.api.controllers import ControllerMethods, split_page
from services.registry.api.storage import Storage, StorageMethods
from services.registry.api.storage_messages import digest
from services.registry.catalogue.lists import (
    MODEL_FIELDS,
    MODEL_ORDERS,
    VERSION_FIELDS,
    VERSION_ORDERS,
)
from services.registry.catalogue.store import Snapshot, wall_clock_us
from services.registry.catalogue.writer import Catalogue
from services.registry.completions import Completions
from services.registry.core import residency, rules, traffic, validation
from services.registry.core.catalogue import Entry, Model, Move, TrafficPolicy, Version
from services.registry.core.errors import AlreadyExists
from services.registry.core.filters import parse_filter, parse_order
from services.registry.core.provenance import Provenance
from services.registry.core.source import Source
from services.registry.registrations import Registration, Registrations
from services.registry.repositories import Repositories
from services.registry.versions import Versions
from shoal import names
from shoal.registry.v1 import registry_service_pb2 as pb
from shoal.registry.v1 import types_pb2 as types

NAME: Final = pb.DESCRIPTOR.services_by_name["RegistryService"].full_name
OPEN_METHODS: Final = frozenset(
    f"/{NAME}/{method.name}"
    for method in pb.DESCRIPTOR.services_by_name["RegistryService"].methods
    if method.name.startswith(("Get", "List", "Watch"))
)

# How long before its deadline a check that waits for files is answered.
ANSWER_SECONDS: Final = 1.0

_MODEL_FIELDS: Final = ("description", "labels", "retry_policy", *residency.PATHS)
_VERSION_FIELDS: Final = ("declared_memory", "pinned")


@completing_calls
class RegistryServicer(ControllerMethods, StorageMethods):
    """The RegistryService. A watcher gets a checkpoint after `idle_seconds` without a change."""

    def __init__(
        self,
        catalogue: Catalogue,
        versions: Versions,
        registrations: Registrations,
        repositories: Repositories,
        completions: Completions,
        storage: Storage,
        tasks: TaskScope,
        idle_seconds: float,
    ) -> None:
        super().__init__(catalogue, versions, completions)
        self._registrations = registrations
        self._storage = storage
        self.tasks = tasks
        self._repositories = repositories
        self._idle_seconds = idle_seconds

    # --- models -------------------------------------------------------------------------------

    async def CreateModel(
        self, request: pb.CreateModelRequest, context: Context
    ) -> pb.CreateModelResponse:
        name = validation.model_name("model.name", request.model.name)
        request_id = validation.token("request_id", request.request_id)
        model = Model(
            name=name,
            description=validation.description(request.model.description),
            labels=validation.labels(request.model.labels),
            retry_policy=messages.retry_policy_of(request.model.retry_policy),
            residency=messages.residency_of(request.model.residency),
        )
        known_by = digest(request)
        async with self._catalogue.change() as change:
            if made := await change.remembered(request_id, known_by):
                await change.entry(made)
            elif await change.find(name) is not None:
                raise AlreadyExists(name=names.model_name(name), hint="update it instead")
            else:
                change.put(Entry(model))
                await change.remember(request_id, known_by, name)
        return pb.CreateModelResponse(model=messages.model(await change.entry(name)))

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        name = validation.model_name("name", request.name)
        return pb.GetModelResponse(model=messages.model(await self._store.entry(name)))

    async def ListModels(
        self, request: pb.ListModelsRequest, context: Context
    ) -> pb.ListModelsResponse:
        condition = parse_filter(request.filter, MODEL_FIELDS)
        order = parse_order(request.order_by, MODEL_ORDERS)
        scope = list_scope("models", request)
        page = paging.page(scope, request.page_size, request.page_token)
        entries, more = await self._store.lists.models(page, order, condition)
        token = paging.token(scope, more) if more else ""
        return pb.ListModelsResponse(models=map(messages.model, entries), next_page_token=token)

    async def UpdateModel(
        self, request: pb.UpdateModelRequest, context: Context
    ) -> pb.UpdateModelResponse:
        name = validation.model_name("model.name", request.model.name)
        fields = validation.update_mask(request.update_mask.paths, _MODEL_FIELDS)
        given: dict[str, Any] = {
            "description": validation.description(request.model.description),
            "labels": validation.labels(request.model.labels),
            "retry_policy": messages.retry_policy_of(request.model.retry_policy),
        }
        asked = messages.residency_of(request.model.residency)
        async with self._catalogue.change() as change:
            entry = await change.entry(name)
            rules.check_etag(request.model.name, request.model.etag, entry.model.revision)
            model = replace(
                entry.model,
                residency=residency.merged(entry.model.residency, asked, fields),
                **{field: given[field] for field in fields & given.keys()},
            )
            change.put(replace(entry, model=model))
        return pb.UpdateModelResponse(model=messages.model(await change.entry(name)))

    async def DeleteModel(
        self, request: pb.DeleteModelRequest, context: Context
    ) -> pb.DeleteModelResponse:
        name = validation.model_name("name", request.name)
        await self._versions.delete_model(name, request.etag)
        await self._storage.watches.forget(name)
        return pb.DeleteModelResponse()

    # --- versions -----------------------------------------------------------------------------

    async def RegisterModelVersion(
        self, request: pb.RegisterModelVersionRequest, context: Context
    ) -> pb.RegisterModelVersionResponse:
        model = validation.model_name("parent", request.parent)
        number = validation.version_number(model, request.version) if request.version else 0
        memory = validation.memory("declared_memory", request.declared_memory)
        if "://" in request.source:
            version = await self._import(request)
            return pb.RegisterModelVersionResponse(version=messages.version(version))
        path = Path(validation.folder("source", request.source))
        self._storage.signatures.check_in_place(path)
        wanted = Registration(
            model=model,
            path=path,
            number=number,
            declared_memory=memory,
            pending=request.pending,
            provenance=Provenance(
                source=Source("file", str(path)),
                who=current_caller.get().subject,
                at_us=wall_clock_us(),
            ),
            request_id=validation.token("request_id", request.request_id),
            request_digest=digest(request),
        )
        version = await self._registrations.register(wanted)
        return pb.RegisterModelVersionResponse(version=messages.version(version))

    async def _import(self, request: pb.RegisterModelVersionRequest) -> Version:
        """Import a version, and wait until it is registered."""
        start = pb.StartImportsRequest(
            parent=request.parent,
            source=request.source,
            version=request.version,
            declared_memory=request.declared_memory,
            pending=request.pending,
            request_id=request.request_id,
        )
        (started,) = (await self._start(start)).imports
        return await self._storage.imports.finish(started.name.removeprefix("imports/"))

    async def GetModelVersion(
        self, request: pb.GetModelVersionRequest, context: Context
    ) -> pb.GetModelVersionResponse:
        model, number = validation.version_name("name", request.name)
        entry = await self._store.entry(model)
        return pb.GetModelVersionResponse(version=messages.version(entry.version(number)))

    async def ListModelVersions(
        self, request: pb.ListModelVersionsRequest, context: Context
    ) -> pb.ListModelVersionsResponse:
        every = request.parent == names.model_name("-")
        model = None if every else validation.model_name("parent", request.parent)
        condition = parse_filter(request.filter, VERSION_FIELDS)
        order = parse_order(request.order_by, VERSION_ORDERS)
        scope = list_scope(request.parent, request)
        page = paging.page(scope, request.page_size, request.page_token)
        versions, more = await self._store.lists.versions(model, page, order, condition)
        token = paging.token(scope, more) if more else ""
        return pb.ListModelVersionsResponse(
            versions=map(messages.version, versions), next_page_token=token
        )

    async def UpdateModelVersion(
        self, request: pb.UpdateModelVersionRequest, context: Context
    ) -> pb.UpdateModelVersionResponse:
        model, number = validation.version_name("version.name", request.version.name)
        fields = validation.update_mask(request.update_mask.paths, _VERSION_FIELDS)
        memory = validation.memory("version.declared_memory", request.version.declared_memory)
        given: dict[str, Any] = {
            "declared_memory": memory,
            "pinned": request.version.pinned,
        }
        async with self._catalogue.change() as change:
            entry = await change.entry(model)
            version = entry.version(number)
            rules.check_etag(version.name, request.version.etag, version.revision)
            after = replace(version, **{field: given[field] for field in fields})
            change.put(entry.with_version(after))
        updated = (await change.entry(model)).version(number)
        return pb.UpdateModelVersionResponse(version=messages.version(updated))

    async def ApproveModelVersion(
        self, request: pb.ApproveModelVersionRequest, context: Context
    ) -> pb.ApproveModelVersionResponse:
        version = await self._decide(request.name, request.etag, Move.APPROVE)
        return pb.ApproveModelVersionResponse(version=version)

    async def RejectModelVersion(
        self, request: pb.RejectModelVersionRequest, context: Context
    ) -> pb.RejectModelVersionResponse:
        version = await self._decide(request.name, request.etag, Move.REJECT)
        return pb.RejectModelVersionResponse(version=version)

    async def DeleteModelVersion(
        self, request: pb.DeleteModelVersionRequest, context: Context
    ) -> pb.DeleteModelVersionResponse:
        model, number = validation.version_name("name", request.name)
        await self._versions.delete_version(model, number, request.etag)
        return pb.DeleteModelVersionResponse()

    async def _decide(self, name: str, etag: str, move: Move) -> types.ModelVersion:
        model, number = validation.version_name("name", name)
        async with self._catalogue.change() as change:
            entry = await change.entry(model)
            version = entry.version(number)
            rules.check_etag(version.name, etag, version.revision)
            change.put(entry.with_version(rules.decide(version, move)))
        return messages.version((await change.entry(model)).version(number))

    # --- aliases and traffic ------------------------------------------------------------------

    async def SetAlias(self, request: pb.SetAliasRequest, context: Context) -> pb.SetAliasResponse:
        model, alias = validation.alias_name("name", request.name)
        number = validation.version_number(model, request.version)
        async with self._catalogue.change() as change:
            entry = await change.entry(model)
            rules.check_etag(names.model_name(model), request.etag, entry.model.revision)
            change.put(rules.set_alias(entry, alias, number))
        return pb.SetAliasResponse(model=messages.model(await change.entry(model)))

    async def DeleteAlias(
        self, request: pb.DeleteAliasRequest, context: Context
    ) -> pb.DeleteAliasResponse:
        model, alias = validation.alias_name("name", request.name)
        async with self._catalogue.change() as change:
            entry = await change.entry(model)
            rules.check_etag(names.model_name(model), request.etag, entry.model.revision)
            users = [entry, *await change.users((model,))]
            change.put(rules.drop_alias(entry, alias, users))
        return pb.DeleteAliasResponse(model=messages.model(await change.entry(model)))

    async def SetTrafficPolicy(
        self, request: pb.SetTrafficPolicyRequest, context: Context
    ) -> pb.SetTrafficPolicyResponse:
        policy = request.traffic_policy
        model = validation.policy_name("traffic_policy.name", policy.name)
        arms = traffic.check_arms([(arm.target, arm.weight) for arm in policy.arms])
        async with self._catalogue.change() as change:
            entry = await change.entry(model)
            rules.check_policy_etag(entry, policy.etag)
            targets = {arm.target.model: await change.entry(arm.target.model) for arm in arms}
            traffic.check_targets(arms, targets)
            change.put(entry.with_policy(TrafficPolicy(arms)))
        return pb.SetTrafficPolicyResponse(model=messages.model(await change.entry(model)))

    async def DeleteTrafficPolicy(
        self, request: pb.DeleteTrafficPolicyRequest, context: Context
    ) -> pb.DeleteTrafficPolicyResponse:
        model = validation.policy_name("name", request.name)
        async with self._catalogue.change() as change:
            entry = await change.entry(model)
            rules.check_policy_etag(entry, request.etag)
            change.put(entry.with_policy(None))
        return pb.DeleteTrafficPolicyResponse(model=messages.model(await change.entry(model)))

    # --- everything ---------------------------------------------------------------------------

    async def ImportRepository(
        self, request: pb.ImportRepositoryRequest, context: Context
    ) -> pb.ImportRepositoryResponse:
        path = Path(validation.folder("path", request.path))
        self._storage.signatures.check_in_place(path)
        imported = await self._versions.import_repository(path)
        return pb.ImportRepositoryResponse(
            versions=map(messages.version, imported.versions),
            problems=map(messages.problem, imported.problems),
            changed=imported.changed,
        )

    async def ListImportProblems(
        self, request: pb.ListImportProblemsRequest, context: Context
    ) -> pb.ListImportProblemsResponse:
        page = paging.page("problems", request.page_size, request.page_token)
        found = [
            ((str(repository), index + 1), problem)
            for repository, index, problem in self._repositories.everything()
            if (str(repository), index + 1) > page.after
        ]
        shown, more = split_page(found, page)
        return pb.ListImportProblemsResponse(
            problems=[messages.problem(problem) for _, problem in shown],
            next_page_token=paging.token("problems", shown[-1][0]) if more else "",
        )

    async def RefreshModel(
        self, request: pb.RefreshModelRequest, context: Context
    ) -> pb.RefreshModelResponse:
        model = validation.model_name("name", request.name)
        imported = await self._versions.refresh(model)
        found = await self._store.entries({model})
        return pb.RefreshModelResponse(
            entry=messages.entry(found[model]) if model in found else None,
            problems=map(messages.problem, imported.problems),
        )

    async def CheckModelVersion(
        self, request: pb.CheckModelVersionRequest, context: Context
    ) -> pb.CheckModelVersionResponse:
        deadline = deadline_of(context)
        model, number = validation.version_name("name", request.name)
        seconds = None if deadline is None else deadline - time.monotonic() - ANSWER_SECONDS
        version, problem = await self._versions.check(model, number, seconds)
        return pb.CheckModelVersionResponse(version=messages.version(version), problem=problem)

    async def WatchCatalog(
        self, request: pb.WatchCatalogRequest, context: Context
    ) -> AsyncIterator[pb.WatchCatalogResponse]:
        news = self._catalogue.log.follow(
            request.start_revision,
            lambda: self.tasks.complete(self._store.snapshot()),
            self._idle_seconds,
        )
        async with aclosing(news):
            async for item in news:
                if isinstance(item, Snapshot):
                    yield await asyncio.to_thread(messages.snapshot, item)
                else:
                    yield messages.delta(item)


def list_scope(what: str, request: pb.ListModelsRequest | pb.ListModelVersionsRequest) -> str:
    """Return the name of a list, whose pages belong to one filter and one order."""
    return " ".join(filter(None, (what, request.filter, request.order_by)))
