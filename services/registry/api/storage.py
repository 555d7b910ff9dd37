"""Imports, uploads and the store's disk: requests become work, and work becomes messages."""

import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from services.common import paging
from services.common.errors import InvalidField, InvalidName
from services.common.rpc import Context, current_caller
from services.common.tasks import TaskScope
from services.registry.api import storage_messages as messages
from services.registry.catalogue.writer import Catalogue
from services.registry.contents import Contents
from services.registry.core import validation
from services.registry.core.imports import Import
from services.registry.core.manifest import Item, is_sha256, models_of
from services.registry.core.provenance import UPLOAD
from services.registry.core.source import Source, parse
from services.registry.core.source_watch import SourceWatch
from services.registry.disk import Disk
from services.registry.formats.config import BACKENDS, CONFIG_FILE
from services.registry.imports import Imports
from services.registry.signatures import Signatures
from services.registry.source_watches import SourceWatches
from services.registry.uploads import Uploads
from shoal import names
from shoal.registry.v1 import registry_service_pb2 as pb
from shoal.registry.v1 import registry_service_pb2_grpc as pb_grpc

SHOWN_DEPARTURES: Final = 100
MAX_CHUNK: Final = 4 * 2**20  # bytes
_MODEL_FILES: Final = frozenset(filename for _, _, filename in BACKENDS)


@dataclass(frozen=True, slots=True)
class Storage:
    """The parts of the store that the API needs."""

    imports: Imports
    watches: SourceWatches
    signatures: Signatures
    contents: Contents
    uploads: Uploads
    disk: Disk


class StorageMethods(pb_grpc.RegistryServiceServicer):
    """The methods of the RegistryService about what the store holds, and what comes into it."""

    _catalogue: Catalogue
    _storage: Storage
    tasks: TaskScope

    # --- imports ------------------------------------------------------------------------------

    async def StartImports(
        self, request: pb.StartImportsRequest, context: Context
    ) -> pb.StartImportsResponse:
        return await self.tasks.complete(self._start(request))

    async def _start(self, request: pb.StartImportsRequest) -> pb.StartImportsResponse:
        request_id = validation.token("request_id", request.request_id)
        digest = messages.digest(request)
        async with self._catalogue.change() as change:
            made = await change.remembered(request_id, digest)
        if made:
            found = [await self._storage.imports.get(id_) for id_ in made.split()]
            return pb.StartImportsResponse(imports=[messages.import_(*one) for one in found])
        response = pb.StartImportsResponse()
        wanted = await self._wanted(request, response)
        watch = self._watch(wanted) if request.watch else None
        started = await self._storage.imports.start(wanted, watch)
        async with self._catalogue.change() as change:
            await change.remember(request_id, digest, " ".join(one.id for one in started))
        for one in started:
            response.imports.append(messages.import_(*await self._storage.imports.get(one.id)))
        return response

    async def _wanted(
        self, request: pb.StartImportsRequest, response: pb.StartImportsResponse
    ) -> list[Import]:
        """Return the imports that a request asks for, and note what it gets none for."""
        source = _source(request)
        memory = validation.memory("declared_memory", request.declared_memory)

        def one(model: str, source: Source, folder: str, number: int) -> Import:
            return Import(
                id="",
                model=model,
                source=source,
                folder=folder,
                number=number,
                declared_memory=memory,
                pending=request.pending,
                who=current_caller.get().subject,
            )

        if request.watch:
            if request.parent == names.model_name("-") or request.version:
                raise InvalidField(field="watch", problem="name one model, and no version of it")
            if source.scheme in (UPLOAD, "file"):
                raise InvalidField(
                    field="watch", problem="files on the Registry's host and uploads do not move"
                )
            source = (await self._storage.contents.listing(source)).source
        if request.parent != names.model_name("-"):
            model = validation.model_name("parent", request.parent)
            number = validation.version_number(model, request.version) if request.version else 0
            return [one(model, source, "", number)]
        if request.version or source.scheme == UPLOAD:
            raise InvalidField(field="parent", problem="a version and an upload are of one model")
        listing = await self._storage.contents.listing(source)
        folders, problems = models_of(
            (file.path for file in listing.files), CONFIG_FILE, _MODEL_FILES
        )
        if "" in folders:
            raise InvalidField(
                field="parent", problem=f"{source} is one model: name it, as in models/bert"
            )
        for path, reason in problems:
            response.problems.add(path=path, reason=reason)
        entries = await self._catalogue.store.entries(folders)
        wanted: list[Import] = []
        for folder, numbers in sorted(folders.items()):
            entry = entries.get(folder)
            for number in numbers:
                known = entry.versions.get(number or 1) if entry else None
                provenance = known.provenance if known else None
                if provenance and (provenance.source, provenance.folder) == (
                    listing.source,
                    folder,
                ):
                    response.unchanged.append(names.version_name(folder, number or 1))
                else:
                    wanted.append(one(folder, listing.source, folder, number or 1))
        return wanted

    def _watch(self, wanted: list[Import]) -> SourceWatch:
        """Return a new watch of the source of one import."""
        (one,) = wanted
        return SourceWatch(
            id=uuid.uuid4().hex,
            model=one.model,
            source=one.source,
            last_import="",
            declared_memory=one.declared_memory,
            pending=one.pending,
            who=one.who,
            started_us=self._storage.imports.now_us(),
        )

    async def ListSourceWatches(
        self, request: pb.ListSourceWatchesRequest, context: Context
    ) -> pb.ListSourceWatchesResponse:
        page = paging.page("source watches", request.page_size, request.page_token)
        found = [one for one in await self._storage.watches.list() if (one.id, 0) > page.after]
        shown, more = found[: page.size], len(found) > page.size
        return pb.ListSourceWatchesResponse(
            source_watches=map(messages.source_watch, shown),
            next_page_token=paging.token("source watches", (shown[-1].id, 0)) if more else "",
        )

    async def DeleteSourceWatch(
        self, request: pb.DeleteSourceWatchRequest, context: Context
    ) -> pb.DeleteSourceWatchResponse:
        match request.name.split("/"):
            case ["sourceWatches", id_] if id_ and len(id_) <= 32:
                await self.tasks.complete(self._storage.watches.delete(id_))
                return pb.DeleteSourceWatchResponse()
        raise InvalidName("name", request.name)

    async def GetImport(
        self, request: pb.GetImportRequest, context: Context
    ) -> pb.GetImportResponse:
        found = await self._storage.imports.get(_import_id(request.name))
        return pb.GetImportResponse(**{"import": messages.import_(*found)})

    async def ListImports(
        self, request: pb.ListImportsRequest, context: Context
    ) -> pb.ListImportsResponse:
        model = validation.model_name("parent", request.parent) if request.parent else ""
        scope = f"imports {model}"
        page = paging.page(scope, request.page_size, request.page_token)
        found = await self._storage.imports.list(model, page.size + 1, page.after)
        shown, more = found[: page.size], len(found) > page.size
        last = (shown[-1][0].id, shown[-1][0].started_us) if more else paging.START
        return pb.ListImportsResponse(
            imports=[messages.import_(*one) for one in shown],
            next_page_token=paging.token(scope, last) if more else "",
        )

    async def WatchImport(
        self, request: pb.WatchImportRequest, context: Context
    ) -> AsyncIterator[pb.WatchImportResponse]:
        news = self._storage.imports.watch(_import_id(request.name))
        async with aclosing(news):
            async for one in news:
                yield pb.WatchImportResponse(**{"import": messages.import_(*one)})

    async def CancelImport(
        self, request: pb.CancelImportRequest, context: Context
    ) -> pb.CancelImportResponse:
        id_ = _import_id(request.name)
        await self.tasks.complete(self._storage.imports.cancel(id_))
        found = await self._storage.imports.get(id_)
        return pb.CancelImportResponse(**{"import": messages.import_(*found)})

    # --- uploads ------------------------------------------------------------------------------

    async def BeginUpload(
        self, request: pb.BeginUploadRequest, context: Context
    ) -> pb.BeginUploadResponse:
        items = [_item(index, file) for index, file in enumerate(request.files)]
        upload, missing = await self._storage.uploads.begin(items)
        return pb.BeginUploadResponse(
            upload=upload,
            missing=[
                pb.MissingContent(sha256=sha256, received=received)
                for sha256, received in missing.items()
            ],
        )

    async def UploadFile(
        self, request: AsyncIterator[pb.UploadFileRequest], context: Context
    ) -> pb.UploadFileResponse:
        first = await anext(aiter(request), None)
        if first is None:
            raise InvalidField(field="sha256", problem="the stream has no message")

        async def chunks() -> AsyncIterator[bytes]:
            yield _chunk(first)
            async for message in request:
                yield _chunk(message)

        received = await self._storage.uploads.receive(
            first.upload, first.sha256, first.offset, chunks()
        )
        return pb.UploadFileResponse(received=received)

    # --- the disk -----------------------------------------------------------------------------

    async def GetDiskUsage(
        self, request: pb.GetDiskUsageRequest, context: Context
    ) -> pb.GetDiskUsageResponse:
        disk = self._storage.disk
        holdings = await disk.holdings()
        return pb.GetDiskUsageResponse(
            used_bytes=disk.room.used,
            budget_bytes=disk.room.budget or 0,
            free_bytes=disk.room.free_on_disk,
            holdings=messages.holdings(holdings),
            departures=map(messages.departure, await disk.departures(SHOWN_DEPARTURES)),
        )

    async def CollectGarbage(
        self, request: pb.CollectGarbageRequest, context: Context
    ) -> pb.CollectGarbageResponse:
        found = await self.tasks.complete(self._storage.disk.clear(dry_run=request.dry_run))
        return pb.CollectGarbageResponse(
            departures=map(messages.departure, found), freed_bytes=sum(one.frees for one in found)
        )

    async def ReportResidents(
        self, request: pb.ReportResidentsRequest, context: Context
    ) -> pb.ReportResidentsResponse:
        residents = [validation.version_name("versions", name) for name in request.versions]
        self._storage.disk.report(residents)
        return pb.ReportResidentsResponse()


def _source(request: pb.StartImportsRequest) -> Source:
    """Return where files come from. Raises InvalidField, InvalidSource."""
    if bool(request.upload) == bool(request.source):
        raise InvalidField(field="source", problem="give either a source or an upload")
    source = parse(request.source) if request.source else Source(UPLOAD, request.upload)
    if source.scheme == UPLOAD and not is_sha256(source.locator):
        raise InvalidField(field="upload", problem="it is not what BeginUpload has returned")
    return source


def _import_id(name: str) -> str:
    match name.split("/"):
        case ["imports", id_] if id_ and len(id_) <= 32:
            return id_
    raise InvalidName("name", name)


def _item(index: int, file: pb.UploadedFile) -> Item:
    if not is_sha256(file.sha256):
        raise InvalidField(
            field=f"files[{index}].sha256", problem="it is not 64 lower-case hexadecimal digits"
        )
    if file.size < 0:
        raise InvalidField(field=f"files[{index}].size", problem="it is negative")
    return Item(file.path, file.sha256, file.size)


def _chunk(message: pb.UploadFileRequest) -> bytes:
    if len(message.data) > MAX_CHUNK:
        raise InvalidField(field="data", problem=f"it has more than {MAX_CHUNK} bytes")
    return message.data
