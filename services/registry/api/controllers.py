"""What Controllers alone ask and report: completions, footprints, calls, and the lease."""

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import TypeVar

from services.common import paging
from services.common.rpc import Context
from services.registry.api import messages
from services.registry.catalogue.writer import Catalogue
from services.registry.completions import Completions
from services.registry.core import rules, validation
from services.registry.versions import Versions
from shoal.registry.v1 import registry_service_pb2 as pb
from shoal.registry.v1 import registry_service_pb2_grpc as pb_grpc

T = TypeVar("T")


class ControllerMethods(pb_grpc.RegistryServiceServicer):
    """The methods of the RegistryService that Controllers alone call."""

    def __init__(self, catalogue: Catalogue, versions: Versions, completions: Completions) -> None:
        self._catalogue = catalogue
        self._store = catalogue.store
        self._versions = versions
        self._completions = completions

    async def WatchCompletions(
        self, request: pb.WatchCompletionsRequest, context: Context
    ) -> AsyncIterator[pb.WatchCompletionsResponse]:
        async with aclosing(self._completions.watch()) as orders:
            async for order, requested in orders:
                yield pb.WatchCompletionsResponse(versions=[*map(str, order)], requested=requested)

    async def RequestCompletion(
        self, request: pb.RequestCompletionRequest, context: Context
    ) -> pb.RequestCompletionResponse:
        await self._completions.ask(validation.version_name("name", request.name))
        return pb.RequestCompletionResponse()

    async def ReportCompletion(
        self, request: pb.ReportCompletionRequest, context: Context
    ) -> pb.ReportCompletionResponse:
        model, number = validation.version_name("name", request.name)
        fingerprint = validation.token("fingerprint", request.fingerprint, required=True)
        if request.WhichOneof("outcome") == "config":
            version = await self._versions.complete(model, number, fingerprint, request.config)
        else:
            problem = request.problem or "a server could not complete its config"
            version = await self._versions.not_completed(model, number, fingerprint, problem)
        return pb.ReportCompletionResponse(version=messages.version(version))

    async def ReportFootprints(
        self, request: pb.ReportFootprintsRequest, context: Context
    ) -> pb.ReportFootprintsResponse:
        reported = [messages.footprint_of(*numbered) for numbered in enumerate(request.footprints)]
        await self._store.report_footprints(reported)
        return pb.ReportFootprintsResponse()

    async def ReportCalls(
        self, request: pb.ReportCallsRequest, context: Context
    ) -> pb.ReportCallsResponse:
        model, number = validation.version_name("name", request.name)
        called = [validation.model_name("models", name) for name in request.models]
        async with self._catalogue.change() as change:
            entry = await change.entry(model)
            for name in called:
                await change.entry(name)
            change.put(entry.with_version(rules.with_calls(entry.version(number), called)))
        after = (await change.entry(model)).version(number)
        return pb.ReportCallsResponse(version=messages.version(after))

    async def ListFootprints(
        self, request: pb.ListFootprintsRequest, context: Context
    ) -> pb.ListFootprintsResponse:
        page = paging.page("footprints", request.page_size, request.page_token)
        footprints, more = split_page(await self._store.list_footprints(page), page)
        token = paging.token("footprints", footprints[-1].version) if more else ""
        return pb.ListFootprintsResponse(
            footprints=map(messages.footprint, footprints), next_page_token=token
        )

    async def HoldControllerLease(
        self, request: pb.HoldControllerLeaseRequest, context: Context
    ) -> pb.HoldControllerLeaseResponse:
        named = request.followers.routers if request.HasField("followers") else None
        lease = await self._store.hold_lease(
            validation.token("holder", request.holder, required=True),
            validation.token("incarnation", request.incarnation, required=True),
            validation.ttl_us(request.ttl.ToNanoseconds()),
            validation.followers(named) if named is not None else None,
        )
        response = pb.HoldControllerLeaseResponse(epoch=lease.epoch)
        if lease.followers is not None:
            response.followers.SetInParent()
            response.followers.routers.extend(lease.followers)
        return response


def split_page(items: Sequence[T], page: paging.Page) -> tuple[Sequence[T], bool]:
    """Return the items that belong to the page, and whether there are more."""
    return items[: page.size], len(items) > page.size
