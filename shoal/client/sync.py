"""The client for threads."""

import inspect
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, TypeVar, cast

import grpc
from google.protobuf.message import Message

from shoal.client import catalogue, fleet, inference, streaming
from shoal.client.channels import Services, given
from shoal.client.errors import CallFailed
from shoal.client.failover import SeveralChannels
from shoal.client.inference import Parameter, Request, Result
from shoal.client.sequences import Sequence as InferenceSequence
from shoal.client.steps import (
    Attempt,
    Headers,
    Limits,
    Operation,
    Pause,
    Tries,
    carried_out,
    metadata_of,
    run,
)
from shoal.controller.v1.controller_service_pb2_grpc import ControllerServiceStub
from shoal.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from shoal.router.v1.router_service_pb2_grpc import RouterServiceStub

if TYPE_CHECKING:
    from typing import Self

DEFAULT_TIMEOUT: Final = 30.0  # seconds
DEFAULT_RETRIES: Final = 5

_P = ParamSpec("_P")
_T = TypeVar("_T")
_Request = TypeVar("_Request", bound=Message)
_Response = TypeVar("_Response", bound=Message)


def _method(operation: Callable[_P, Operation[_T]]) -> Callable[Concatenate["Client", _P], _T]:
    def method(self: "Client", /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return self.perform(operation(*args, **kwargs))

    return described(method, operation)


def described(method: _T, operation: Callable[..., Any]) -> _T:
    """The method with its operation's name, text and signature, for help() and editors."""
    shown = inspect.signature(operation)
    self = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    about: Any = method
    about.__name__ = about.__qualname__ = operation.__name__
    about.__doc__ = operation.__doc__
    about.__signature__ = shown.replace(
        parameters=(self, *shown.parameters.values()), return_annotation=inspect.Signature.empty
    )
    return method


class Client:
    """What `connect` gives; threads may share it. What needs an address that was not given raises
    ValueError.

    Every method that takes a `timeout` takes seconds, for the call and all that is repeated of it.
    A call is repeated only where its error says after which time (google.rpc.RetryInfo), not before
    that, and only while its deadline allows.
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
        self._services = Services(addresses, options, grpc.insecure_channel, SeveralChannels)

    # --- inference ----------------------------------------------------------------------------

    infer = _method(inference.infer)
    live = _method(inference.live)
    ready = _method(inference.ready)
    server_metadata = _method(inference.server_metadata)
    metadata = _method(inference.metadata)
    config = _method(inference.config)

    def infer_stream(
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
    ) -> Generator[Result, None, None]:
        """Every answer of a decoupled model to one request, as it comes; of another model the one.

        `timeout`: seconds for all of them, None: no limit. To leave early, close it:
        `with contextlib.closing(client.infer_stream(…)) as answers`. Raises CallFailed; for what
        Triton refuses inside a stream, where it says no more than a text, when the stream has ended
        and with the code UNKNOWN. It is repeated only while nothing has come.
        """
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
                for response in call:
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
            time.sleep(tries.pause(failure))

    def infer_many(
        self,
        requests: Iterable[Request],
        *,
        headers: Headers | None = None,
        timeout: float | None = None,
    ) -> Generator[Result | CallFailed, None, None]:
        """Sends requests in one stream, for any models, and yields what is answered as it comes.

        Give each an `id` to know its answers by: those of one model come in its order. A refusal is
        yielded, with the id in its metadata, and the others go on. `final` is true of the last
        answer to a request; to one of a decoupled model that may be an answer without outputs.
        `timeout`: seconds for all of it, None: no limit. Raises CallFailed when the stream breaks,
        and after the last answer what `requests` raised.
        """
        outgoing = streaming.Outgoing()
        call = self._services.infer_stream()(
            outgoing.serialized(requests), timeout=timeout, metadata=metadata_of(headers)
        )
        try:
            for response in call:
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
    ) -> InferenceSequence:
        """Requests that belong together, for a model that keeps a state between them."""
        return InferenceSequence(self, model, version, id)

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
    def registry(self) -> RegistryServiceStub:
        stub: RegistryServiceStub = self._services.stub("registry")
        return stub

    @property
    def controller(self) -> ControllerServiceStub:
        stub: ControllerServiceStub = self._services.stub("controller")
        return stub

    @property
    def router(self) -> RouterServiceStub:
        stub: RouterServiceStub = self._services.stub("router")
        return stub

    def call(
        self,
        method: "grpc.UnaryUnaryMultiCallable[_Request, _Response]",
        request: _Request,
        *,
        timeout: float | None = None,
    ) -> _Response:
        """The answer of one of the stubs' methods; never repeated. `timeout`: seconds, None: the
        client's own.

        Raises CallFailed.
        """
        limit = self.timeout if timeout is None else timeout
        try:
            return method(request, timeout=limit, metadata=metadata_of(None))
        except grpc.RpcError as error:
            raise self._services.failure_of(error, method) from error

    def pages(
        self,
        method: "grpc.UnaryUnaryMultiCallable[_Request, _Response]",
        request: _Request,
        *,
        timeout: float | None = None,
    ) -> Iterator[_Response]:
        """Every page of a List call, from `request` on. `timeout`: seconds for each.

        Raises CallFailed.
        """
        asked: _Request | None = request
        while asked is not None:
            page = self.call(method, asked, timeout=timeout)
            yield page
            asked = next_page(asked, page)

    def stream(
        self,
        method: "grpc.UnaryStreamMultiCallable[_Request, _Response]",
        request: _Request,
        *,
        timeout: float | None = None,
    ) -> Generator[_Response, None, None]:
        """What a Watch call sends, until the iterator is closed or `timeout` seconds have passed.

        Raises CallFailed.
        """
        responses = method(request, timeout=timeout)
        try:
            yield from responses
        except grpc.RpcError as error:
            raise self._services.failure_of(error, method) from error
        finally:
            responses.cancel()

    # --- life ---------------------------------------------------------------------------------

    def perform(self, operation: Operation[_T]) -> _T:
        """Carries out an operation of this package. Raises CallFailed."""
        try:
            return run(carried_out(operation, Limits(self.timeout, self.retries)), self._do)
        except CallFailed as error:
            raise error.with_traceback(
                None
            ) from error.__cause__  # of our own steps it says nothing

    def _do(self, step: Attempt | Pause) -> Any:
        if isinstance(step, Pause):
            time.sleep(step.seconds)
            return None
        call = step.call
        method = self._services.method(call.service, call.method)
        try:
            return method(call.request, timeout=step.timeout, metadata=step.metadata)
        except grpc.RpcError as error:
            raise self._services.failure(error, call.service) from error

    def close(self) -> None:
        """Ends the connections; a call after it raises ValueError."""
        for channel in self._services.channels.values():
            channel.close()

    def __enter__(self) -> "Self":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def connect(
    *,
    registry: str = "",
    controller: str = "",
    router: str = "",
    timeout: float = DEFAULT_TIMEOUT,
    retries: int = DEFAULT_RETRIES,
    options: Sequence[tuple[str, Any]] = (),
) -> Client:
    """A client of the services whose `host:port` is given; of several Controllers, separated by
    commas, the one that acts is called. Nothing is sent before the first call.

    `router` may be a Triton too, for what is in Triton's protocol. `timeout`: seconds for each call
    that sets none itself. `retries`: at most, of a call whose error offers one. `options`: of the
    gRPC channels, beside CHANNEL_OPTIONS.
    """
    return Client(given(registry, controller, router), timeout, options, retries)


def next_page(request: _Request, page: Any) -> _Request | None:
    """The request for the page after `page`, None after the last."""
    if not page.next_page_token:
        return None
    following: Any = type(request)()
    following.CopyFrom(request)
    following.page_token = page.next_page_token
    return cast("_Request", following)
