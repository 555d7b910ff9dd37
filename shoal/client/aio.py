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
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from shoal.client import catalogue, fleet, inference, storage, streaming
from shoal.client.channels import Services, given
from shoal.client.errors import CallFailed
from shoal.client.failover import SeveralAsyncChannels
from shoal.client.headers import Headers, metadata_of
from shoal.client.inference import Parameter, Request, Result
from shoal.client.operations import Attempt, Operation, Pause, Work, attempts, described, run_async
from shoal.client.pages import next_page
from shoal.client.retries import DEFAULT_RETRIES, DEFAULT_TIMEOUT, Limits, Tries
from shoal.client.sequences import AsyncSequence

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
    """A client of Shoal's services for asyncio, made by `connect_async`; otherwise like `Client`.

    Attributes:
        timeout: Seconds for each call that sets no timeout of its own.
        retries: The most that a call is repeated.
    """

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
        """Send one request and yield its answers as they arrive, as `Client.infer_stream` does.

        To stop before the last answer, close the generator with `contextlib.aclosing`.
        """
        request = Request(model, inputs, version, outputs, id, parameters or {}).serialized()
        metadata = metadata_of(headers)
        tries = Tries(timeout, self.retries)
        while True:
            call = self._services.infer_stream()(
                iter((request,)), timeout=tries.left(), metadata=metadata
            )
            answers = streaming.Answers(self._services.address("inference"))
            try:
                async for response in call:
                    if (result := answers.received(response)) is not None:
                        yield result
            except grpc.RpcError as error:
                failure = self._services.failure(error, "inference")
                if answers.begun:
                    raise failure from error
            else:
                answers.ended()
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
        """Send many requests in one stream and yield their answers, as `Client.infer_many` does.

        `requests` can be an asynchronous iterable. To stop early, close the generator with
        `contextlib.aclosing`.
        """
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
        """Begin a sequence, as `Client.sequence` does, to use in an `async with` block."""
        return AsyncSequence(self, model, version, id)

    # --- the catalogue ------------------------------------------------------------------------

    register = _method(catalogue.register)
    import_repository = _method(catalogue.import_repository)
    import_problems = _method(catalogue.import_problems)
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

    # --- the store ----------------------------------------------------------------------------

    upload = _method(storage.upload)
    start_imports = _method(storage.start_imports)
    source_watches = _method(storage.source_watches)
    delete_source_watch = _method(storage.delete_source_watch)
    imports = _method(storage.imports)
    cancel_import = _method(storage.cancel_import)
    disk_usage = _method(storage.disk_usage)
    collect_garbage = _method(storage.collect_garbage)

    # --- the fleet ----------------------------------------------------------------------------

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
        """The generated stub of `shoal.registry.v1.RegistryService`."""
        stub: RegistryServiceAsyncStub = self._services.stub("registry")
        return stub

    @property
    def controller(self) -> "ControllerServiceAsyncStub":
        """The generated stub of `shoal.controller.v1.ControllerService`."""
        stub: ControllerServiceAsyncStub = self._services.stub("controller")
        return stub

    @property
    def router(self) -> "RouterServiceAsyncStub":
        """The generated stub of `shoal.router.v1.RouterService`."""
        stub: RouterServiceAsyncStub = self._services.stub("router")
        return stub

    async def call(
        self,
        method: "grpc.aio.UnaryUnaryMultiCallable[_Request, _Response]",
        request: _Request,
        *,
        timeout: float | None = None,
    ) -> _Response:
        """Call a unary method of one of the stubs once, as `Client.call` does."""
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
        """Yield the pages of a List method of one of the stubs, as `Client.pages` does."""
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
        """Yield the responses of a Watch method of one of the stubs, as `Client.stream` does.

        Close the generator with `contextlib.aclosing`.
        """
        responses = method(request, timeout=timeout)
        try:
            async for response in responses:
                yield response
        except grpc.RpcError as error:
            raise self._services.failure_of(error, method) from error
        finally:
            responses.cancel()

    # --- calls and connections ----------------------------------------------------------------

    async def perform(self, operation: Operation[_T]) -> _T:
        """Carry out an operation of this package, as `Client.perform` does."""
        limits = Limits(self.timeout, self.retries)
        try:
            return await run_async(attempts(operation, limits), self._do)
        except CallFailed as error:
            raise error.with_traceback(None) from error.__cause__

    async def _do(self, step: Attempt | Pause | Work) -> Any:
        if isinstance(step, Pause):
            return await asyncio.sleep(step.seconds)
        if isinstance(step, Work):
            return await asyncio.to_thread(step.do)
        call = step.call
        method = self._services.method(call.service, call.method)
        try:
            return await method(call.request, timeout=step.timeout, metadata=step.metadata)
        except grpc.RpcError as error:
            raise self._services.failure(error, call.service) from error

    async def close(self) -> None:
        """Close the connections."""
        for channel in self._services.channels.values():
            await channel.close()

    async def __aenter__(self) -> "Self":
        return self

    async def __aexit__(self, *_: object) -> None:
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
    """Return a client for asyncio, as `connect` does. Arguments are the same.

    Call this, and close the client, while the event loop is running.
    """
    return AsyncClient(given(registry, controller, router), timeout, options, retries)
