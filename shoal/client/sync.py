"""The client for threads."""

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import grpc
from google.protobuf.message import Message

from shoal.client import catalogue, fleet, inference, storage, streaming
from shoal.client.channels import Services, given
from shoal.client.errors import CallFailed
from shoal.client.failover import SeveralChannels
from shoal.client.headers import Headers, metadata_of
from shoal.client.inference import Parameter, Request, Result
from shoal.client.operations import Attempt, Operation, Pause, Work, attempts, described, run
from shoal.client.pages import next_page
from shoal.client.retries import DEFAULT_RETRIES, DEFAULT_TIMEOUT, Limits, Tries
from shoal.client.sequences import Sequence as InferenceSequence
from shoal.controller.v1.controller_service_pb2_grpc import ControllerServiceStub
from shoal.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from shoal.router.v1.router_service_pb2_grpc import RouterServiceStub

if TYPE_CHECKING:
    from typing import Self

_P = ParamSpec("_P")
_T = TypeVar("_T")
_Request = TypeVar("_Request", bound=Message)
_Response = TypeVar("_Response", bound=Message)


def _method(operation: Callable[_P, Operation[_T]]) -> Callable[Concatenate["Client", _P], _T]:
    def method(self: "Client", /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return self.perform(operation(*args, **kwargs))

    return described(method, operation)


class Client:
    """A client of Shoal's services, made by `connect`. Threads can share it.

    A method raises ValueError where it needs a service whose address was not given. A call is
    repeated only where its error names a time after which that may help (`google.rpc.RetryInfo`):
    not before that time, at most `retries` times, and only if the timeout allows. Every `timeout`
    is in seconds and covers the retries.

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
        """Send one request and yield its answers as they arrive.

        A decoupled model answers any number of times, any other model once. To stop before the last
        answer, close the generator: `with contextlib.closing(client.infer_stream(…)) as answers`.
        The request is repeated only as long as nothing has arrived.

        Args:
            model: The model's name.
            inputs: Arrays by input name, or values that numpy can make arrays of.
            version: A version or an alias; "" for the model's own choice.
            outputs: Names of the outputs to return, or a mapping of each name to the parameters of
                that output. Empty for all outputs.
            id: Returned with each answer.
            parameters: Further parameters of the request.
            headers: gRPC metadata.
            timeout: Seconds for all answers. None means no limit.

        Yields:
            The answers that have outputs.

        Raises:
            CallFailed: The request was refused, or the stream broke. A refusal inside the stream is
                raised when the stream has ended and has the code UNKNOWN, because Triton sends no
                status there.
            TypeError: The protocol has no datatype for one of the inputs.
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
                for response in call:
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
            time.sleep(tries.pause(failure))

    def infer_many(
        self,
        requests: Iterable[Request],
        *,
        headers: Headers | None = None,
        timeout: float | None = None,
    ) -> Generator[Result | CallFailed, None, None]:
        """Send many requests in one stream and yield their answers as they arrive.

        The requests can be for several models, and can be made while answers arrive. Give each
        request an `id` to tell its answers by. To stop early, close the generator with
        `contextlib.closing`.

        Args:
            requests: The requests. If iterating them raises, the exception is raised after the last
                answer.
            headers: gRPC metadata of the stream.
            timeout: Seconds for the whole stream. None means no limit.

        Yields:
            An answer, or the refusal of one request with its ID in `metadata["id"]`; the other
            requests are not affected. `Result.final` is true of the last answer to a request, which
            for a decoupled model can be one without outputs.

        Raises:
            CallFailed: The stream broke.
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
        """Begin a sequence of requests, for a model that keeps a state between them.

        Args:
            model: The model's name.
            version: A version or an alias; "" for the model's own choice.
            id: The ID of the sequence; a random number by default.

        Returns:
            The sequence, to use in a `with` block.
        """
        return InferenceSequence(self, model, version, id)

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
    def registry(self) -> RegistryServiceStub:
        """The generated stub of `shoal.registry.v1.RegistryService`."""
        stub: RegistryServiceStub = self._services.stub("registry")
        return stub

    @property
    def controller(self) -> ControllerServiceStub:
        """The generated stub of `shoal.controller.v1.ControllerService`."""
        stub: ControllerServiceStub = self._services.stub("controller")
        return stub

    @property
    def router(self) -> RouterServiceStub:
        """The generated stub of `shoal.router.v1.RouterService`."""
        stub: RouterServiceStub = self._services.stub("router")
        return stub

    def call(
        self,
        method: "grpc.UnaryUnaryMultiCallable[_Request, _Response]",
        request: _Request,
        *,
        timeout: float | None = None,
    ) -> _Response:
        """Call a unary method of one of the stubs once, without retries.

        Args:
            method: The method, such as `client.registry.GetModel`.
            request: Its request message.
            timeout: Seconds for the call. None means the client's own.

        Returns:
            The response message.

        Raises:
            CallFailed: The call was refused, or nobody answered.
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
        """Yield the pages of a List method of one of the stubs.

        Args:
            method: The method, such as `client.registry.ListModels`.
            request: The request for the first page.
            timeout: Seconds for each page. None means the client's own.

        Yields:
            The response messages.

        Raises:
            CallFailed: A call was refused, or nobody answered.
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
        """Yield the responses of a Watch method of one of the stubs, until it is closed.

        Args:
            method: The method, such as `client.controller.WatchEvents`.
            request: Its request message.
            timeout: Seconds for the whole stream. None means no limit.

        Yields:
            The response messages.

        Raises:
            CallFailed: The stream was refused, or broke.
        """
        responses = method(request, timeout=timeout)
        try:
            yield from responses
        except grpc.RpcError as error:
            raise self._services.failure_of(error, method) from error
        finally:
            responses.cancel()

    # --- calls and connections ----------------------------------------------------------------

    def perform(self, operation: Operation[_T]) -> _T:
        """Carry out an operation of this package.

        Raises:
            CallFailed: A call was refused, or nobody answered.
        """
        try:
            return run(attempts(operation, Limits(self.timeout, self.retries)), self._do)
        except CallFailed as error:
            # The traceback would show the steps of this package alone.
            raise error.with_traceback(None) from error.__cause__

    def _do(self, step: Attempt | Pause | Work) -> Any:
        if isinstance(step, Pause):
            time.sleep(step.seconds)
            return None
        if isinstance(step, Work):
            return step.do()
        call = step.call
        method = self._services.method(call.service, call.method)
        try:
            return method(call.request, timeout=step.timeout, metadata=step.metadata)
        except grpc.RpcError as error:
            raise self._services.failure(error, call.service) from error

    def close(self) -> None:
        """Close the connections. Calls made after that raise ValueError."""
        for channel in self._services.channels.values():
            channel.close()

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, *_: object) -> None:
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
    """Return a client of the services whose addresses are given. Nothing is sent yet.

    Close the client after use, or use it in a `with` block.

    Args:
        registry: HOST:PORT of the Registry.
        controller: HOST:PORT of the Controller. Give several separated by commas, and calls go to
            the one that acts.
        router: HOST:PORT of the Router. For inference, health and metadata this can be a Triton
            server instead.
        timeout: Seconds for each call that sets no timeout of its own.
        retries: The most that a call is repeated.
        options: Options of the gRPC channels, on top of `CHANNEL_OPTIONS`.

    Returns:
        The client.
    """
    return Client(given(registry, controller, router), timeout, options, retries)
