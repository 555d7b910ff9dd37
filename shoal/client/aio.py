"""The client for asyncio."""

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Coroutine,
    Iterable,
    Mapping,
    Sequence,
)
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from shoal.client import catalogue, fleet, inference, streaming
from shoal.client.channels import Services, given
from shoal.client.errors import CallFailed
from shoal.client.failover import SeveralAsyncChannels
from shoal.client.inference import Parameter, Request, Result
from shoal.client.sequences import AsyncSequence
from shoal.client.steps import (
    Attempt,
    Headers,
    Limits,
    Operation,
    Pause,
    Tries,
    carried_out,
    metadata_of,
    run_async,
)
from shoal.client.sync import DEFAULT_RETRIES, DEFAULT_TIMEOUT, described, next_page

if TYPE_CHECKING:
    from typing import Self

    from shoal.controller.v1.controller_service_pb2_grpc import ControllerServiceAsyncStub
    from shoal.registry.v1.registry_service_pb2_grpc import RegistryServiceAsyncStub
    from shoal.router.v1.router_service_pb2_grpc import RouterServiceAsyncStub

_P = ParamSpec("_P")
_T = TypeVar("_T")
_Request = TypeVar("_Request", bound=Message)
_Response = TypeVar("_Response", bound=Message)


def _method(
    operation: Callable[_P, Operation[_T]],
) -> Callable[Concatenate["AsyncClient", _P], Coroutine[Any, Any, _T]]:
    async def method(self: "AsyncClient", /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return await self.perform(operation(*args, **kwargs))

    return described(method, operation)


class AsyncClient:
    """What `connect_async` gives: Client for asyncio."""

    def __init__(
        self,
        addresses: Mapping[str, str],
        timeout: float,
        options: Sequence[tuple[str, Any]],
        retries: int = DEFAULT_RETRIES,
    ) -> None:
        self.timeout = timeout
        self.retries = retries
        self._services = Services(
            addresses, options, grpc.aio.insecure_channel, SeveralAsyncChannels
        )

    # --- inference ----------------------------------------------------------------------------

    infer = _method(inference.infer)
    live = _method(inference.live)
    ready = _method(inference.ready)
    server_metadata = _method(inference.server_metadata)
    metadata = _method(inference.metadata)
    config = _method(inference.config)

    async def infer_stream(
        self,
        model: str,
        inputs: Mapping[str, Any],
        *,
        version: int | str = "",
        outputs: Iterable[str] | Mapping[str, Mapping[str, Parameter]] = (),
        id: str = "",  # noqa: A002
        parameters: Mapping[str, Parameter] | None = None,
        headers: Headers | None = None,
        timeout: float | None = None,
    ) -> AsyncGenerator[Result, None]:
        """As Client.infer_stream; to leave early, close it with `contextlib.aclosing`."""
        request = Request(model, inputs, version, outputs, id, parameters or {}).serialized()
        metadata = metadata_of(headers)
        address = self._services.address("inference")
        tries = Tries(timeout, self.retries)
        while True:
            call = self._services.infer_stream()(
                iter((request,)), timeout=tries.left(), metadata=metadata
            )
            begun, refusal = False, None
            try:
                async for response in call:
                    begun = True
                    found = streaming.answer(response, address)
                    if isinstance(found, CallFailed):
                        refusal = refusal or found
                    elif refusal is None and found.outputs:
                        yield found
            except grpc.RpcError as error:
                failure = self._services.failure(error, "inference")
                if begun:
                    raise failure from error
            else:
                if refusal is not None:
                    raise refusal
                return
            finally:
                call.cancel()
            await asyncio.sleep(tries.pause(failure))

    async def infer_many(
        self,
        requests: Iterable[Request] | AsyncIterable[Request],
        *,
        headers: Headers | None = None,
        timeout: float | None = None,
    ) -> AsyncGenerator[Result | CallFailed, None]:
        """As Client.infer_many; close it with `contextlib.aclosing`."""
        outgoing = streaming.Outgoing()
        call = self._services.infer_stream()(
            outgoing.serialized_async(requests), timeout=timeout, metadata=metadata_of(headers)
        )
        try:
            async for response in call:
                yield streaming.answer(response, self._services.address("inference"))
        except grpc.RpcError as error:
            raise self._services.failure(error, "inference") from error
        finally:
            call.cancel()
        outgoing.ended()

    def sequence(
        self,
        model: str,
        *,
        version: int | str = "",
        id: int | str | None = None,  # noqa: A002
    ) -> AsyncSequence:
        """As Client.sequence, in an `async with` block."""
        return AsyncSequence(self, model, version, id)

    # --- what exists --------------------------------------------------------------------------

    register = _method(catalogue.register)
    import_repository = _method(catalogue.import_repository)
    models = _method(catalogue.models)
    model = _method(catalogue.model)
    versions = _method(catalogue.versions)
    update_model = _method(catalogue.update_model)
    delete = _method(catalogue.delete)
    approve = _method(catalogue.approve)
    reject = _method(catalogue.reject)
    set_alias = _method(catalogue.set_alias)
    delete_alias = _method(catalogue.delete_alias)
    set_traffic = _method(catalogue.set_traffic)
    clear_traffic = _method(catalogue.clear_traffic)

    # --- where it lives -----------------------------------------------------------------------

    load = _method(fleet.load)
    evict = _method(fleet.evict)
    pin = _method(fleet.pin)
    unpin = _method(fleet.unpin)
    servers = _method(fleet.servers)
    replicas = _method(fleet.replicas)
    drain = _method(fleet.drain)
    undrain = _method(fleet.undrain)
    events = _method(fleet.events)
    explain = _method(fleet.explain)
    wait_for_route = _method(fleet.wait_for_route)

    # --- the stubs ----------------------------------------------------------------------------

    @property
    def registry(self) -> "RegistryServiceAsyncStub":
        stub: RegistryServiceAsyncStub = self._services.stub("registry")
        return stub

    @property
    def controller(self) -> "ControllerServiceAsyncStub":
        stub: ControllerServiceAsyncStub = self._services.stub("controller")
        return stub

    @property
    def router(self) -> "RouterServiceAsyncStub":
        stub: RouterServiceAsyncStub = self._services.stub("router")
        return stub

    async def call(
        self,
        method: "grpc.aio.UnaryUnaryMultiCallable[_Request, _Response]",
        request: _Request,
        *,
        timeout: float | None = None,
    ) -> _Response:
        """As Client.call."""
        limit = self.timeout if timeout is None else timeout
        try:
            return await method(request, timeout=limit, metadata=metadata_of(None))
        except grpc.RpcError as error:
            raise self._services.failure_of(error, method) from error

    async def pages(
        self,
        method: "grpc.aio.UnaryUnaryMultiCallable[_Request, _Response]",
        request: _Request,
        *,
        timeout: float | None = None,
    ) -> AsyncIterator[_Response]:
        """As Client.pages."""
        asked: _Request | None = request
        while asked is not None:
            page = await self.call(method, asked, timeout=timeout)
            yield page
            asked = next_page(asked, page)

    async def stream(
        self,
        method: "grpc.aio.UnaryStreamMultiCallable[_Request, _Response]",
        request: _Request,
        *,
        timeout: float | None = None,
    ) -> AsyncGenerator[_Response, None]:
        """As Client.stream; close it with `contextlib.aclosing`."""
        responses = method(request, timeout=timeout)
        try:
            async for response in responses:
                yield response
        except grpc.RpcError as error:
            raise self._services.failure_of(error, method) from error
        finally:
            responses.cancel()

    # --- life ---------------------------------------------------------------------------------

    async def perform(self, operation: Operation[_T]) -> _T:
        """As Client.perform."""
        limits = Limits(self.timeout, self.retries)
        try:
            return await run_async(carried_out(operation, limits), self._do)
        except CallFailed as error:
            raise error.with_traceback(None) from error.__cause__

    async def _do(self, step: Attempt | Pause) -> Any:
        if isinstance(step, Pause):
            return await asyncio.sleep(step.seconds)
        call = step.call
        method = self._services.method(call.service, call.method)
        try:
            return await method(call.request, timeout=step.timeout, metadata=step.metadata)
        except grpc.RpcError as error:
            raise self._services.failure(error, call.service) from error

    async def close(self) -> None:
        """Ends the connections."""
        for channel in self._services.channels.values():
            await channel.close()

    async def __aenter__(self) -> "Self":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()


def connect_async(
    *,
    registry: str = "",
    controller: str = "",
    router: str = "",
    timeout: float = DEFAULT_TIMEOUT,
    retries: int = DEFAULT_RETRIES,
    options: Sequence[tuple[str, Any]] = (),
) -> AsyncClient:
    """As `connect`, for asyncio. Call it, and close the client, in a running event loop."""
    return AsyncClient(given(registry, controller, router), timeout, options, retries)
