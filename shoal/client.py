"""Calls to Registry, Controller and Router from Python; needs only grpcio and protobuf.

    with connect(registry="127.0.0.1:9101") as shoal:
        reply = shoal.call(shoal.registry.GetModel, GetModelRequest(name="models/resnet"))

Inference has no wrapper here: the Router speaks Triton's protocol, so tritonclient is its client.
"""

from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from shoal import failover
from shoal.controller.v1.controller_service_pb2_grpc import ControllerServiceStub
from shoal.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from shoal.router.v1.router_service_pb2_grpc import RouterServiceStub

if TYPE_CHECKING:
    from typing import Self

    from shoal.controller.v1.controller_service_pb2_grpc import ControllerServiceAsyncStub
    from shoal.registry.v1.registry_service_pb2_grpc import RegistryServiceAsyncStub
    from shoal.router.v1.router_service_pb2_grpc import RouterServiceAsyncStub

DEFAULT_TIMEOUT: Final = 30.0  # seconds

ERROR_DOMAIN: Final = "shoal"
_DETAILS_KEY: Final = "grpc-status-details-bin"

CHANNEL_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    # Bytes; what the services accept of each other.
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    ("grpc.max_send_message_length", 64 * 1024 * 1024),
    # Watches idle for long; without pings a dead peer is noticed only by TCP.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # An http_proxy in the environment is for the Internet, not for a control plane.
    ("grpc.enable_http_proxy", 0),
    # A service that is starting refuses connections; gRPC's own back-off grows to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)

_Request = TypeVar("_Request", bound=Message)
_Response = TypeVar("_Response", bound=Message)
_Stub = TypeVar("_Stub")


class CallFailed(Exception):
    """A call that a service refused, or that nobody answered.

    `reason`: a value of shoal.errors.v1.ErrorReason without its prefix; "" where the error is not
    Shoal's own (Triton's, or gRPC's when nobody answered). `metadata`: the variables of `message`.
    `retry_after`: seconds after which the same call may succeed, None where the service named
    none. `address`: what was called, as it was given to `connect`.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        *,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        retry_after: float | None = None,
        address: str = "",
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.reason = reason
        self.metadata = dict(metadata or {})
        self.retry_after = retry_after
        self.address = address

    def __str__(self) -> str:
        return f"{self.reason or self.code.name}: {self.message}"

    @property
    def unreachable(self) -> bool:
        """Whether nobody answers at the address, rather than a service that refused."""
        return self.code is grpc.StatusCode.UNAVAILABLE and not self.reason

    @classmethod
    def of(cls, error: grpc.RpcError, address: str = "") -> "CallFailed":
        """From what grpc raises, google.rpc.Status in the trailing metadata included."""
        status = _status(error.trailing_metadata() or ())
        info = error_details_pb2.ErrorInfo()
        delay = error_details_pb2.RetryInfo()
        for detail in status.details:
            if not detail.Unpack(info):
                detail.Unpack(delay)
        ours = info.domain == ERROR_DOMAIN
        return cls(
            error.code(),
            error.details() or status.message,
            reason=info.reason if ours else "",
            metadata=dict(info.metadata),
            retry_after=(
                delay.retry_delay.ToNanoseconds() / 1e9 if delay.HasField("retry_delay") else None
            ),
            address=address,
        )


def _status(trailing: Iterable[Any]) -> status_pb2.Status:
    for key, value in trailing:
        if key == _DETAILS_KEY and isinstance(value, bytes):
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                break
    return status_pb2.Status()


class _Addresses:
    """Which of the three was given an address, and which address a stub's method calls."""

    def __init__(self) -> None:
        self._stubs: dict[str, Any] = {}
        self._of_method: dict[object, str] = {}

    def add(self, name: str, address: str, stub: Any) -> None:
        self._stubs[name] = stub
        self._of_method.update(dict.fromkeys(vars(stub).values(), address))

    def stub(self, name: str) -> Any:
        if name not in self._stubs:
            raise ValueError(f"no address was given for it: connect({name}='HOST:PORT')")
        return self._stubs[name]

    def failure(self, error: grpc.RpcError, method: object) -> CallFailed:
        return CallFailed.of(error, self._of_method.get(method, ""))


_STUBS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "registry": RegistryServiceStub,
    "controller": ControllerServiceStub,
    "router": RouterServiceStub,
}


class Client:
    """What `connect` gives. A stub whose address was not given raises ValueError."""

    def __init__(
        self, addresses: Mapping[str, str], timeout: float, options: Sequence[tuple[str, Any]]
    ) -> None:
        self.timeout = timeout
        self._addresses = _Addresses()
        self._channels = [
            _opened(failover.channel, name, address, options, self._addresses)
            for name, address in addresses.items()
        ]

    @property
    def registry(self) -> RegistryServiceStub:
        stub: RegistryServiceStub = self._addresses.stub("registry")
        return stub

    @property
    def controller(self) -> ControllerServiceStub:
        stub: ControllerServiceStub = self._addresses.stub("controller")
        return stub

    @property
    def router(self) -> RouterServiceStub:
        stub: RouterServiceStub = self._addresses.stub("router")
        return stub

    def call(
        self,
        method: "grpc.UnaryUnaryMultiCallable[_Request, _Response]",
        request: _Request,
        *,
        timeout: float | None = None,
    ) -> _Response:
        """The answer of one of the stubs' methods. `timeout`: seconds, None: the client's own.

        Raises CallFailed.
        """
        try:
            return method(request, timeout=self.timeout if timeout is None else timeout)
        except grpc.RpcError as error:
            raise self._addresses.failure(error, method) from error

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
            asked = _next_page(asked, page)

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
            raise self._addresses.failure(error, method) from error
        finally:
            responses.cancel()

    def close(self) -> None:
        for channel in self._channels:
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


class AsyncClient:
    """What `connect_async` gives: Client for asyncio."""

    def __init__(
        self, addresses: Mapping[str, str], timeout: float, options: Sequence[tuple[str, Any]]
    ) -> None:
        self.timeout = timeout
        self._addresses = _Addresses()
        self._channels = [
            _opened(failover.async_channel, name, address, options, self._addresses)
            for name, address in addresses.items()
        ]

    @property
    def registry(self) -> "RegistryServiceAsyncStub":
        stub: RegistryServiceAsyncStub = self._addresses.stub("registry")
        return stub

    @property
    def controller(self) -> "ControllerServiceAsyncStub":
        stub: ControllerServiceAsyncStub = self._addresses.stub("controller")
        return stub

    @property
    def router(self) -> "RouterServiceAsyncStub":
        stub: RouterServiceAsyncStub = self._addresses.stub("router")
        return stub

    async def call(
        self,
        method: "grpc.aio.UnaryUnaryMultiCallable[_Request, _Response]",
        request: _Request,
        *,
        timeout: float | None = None,
    ) -> _Response:
        """As Client.call."""
        try:
            return await method(request, timeout=self.timeout if timeout is None else timeout)
        except grpc.RpcError as error:
            raise self._addresses.failure(error, method) from error

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
            asked = _next_page(asked, page)

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
            raise self._addresses.failure(error, method) from error
        finally:
            responses.cancel()

    async def close(self) -> None:
        for channel in self._channels:
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


def connect(
    *,
    registry: str = "",
    controller: str = "",
    router: str = "",
    timeout: float = DEFAULT_TIMEOUT,
    options: Sequence[tuple[str, Any]] = (),
) -> Client:
    """A client of the services whose `host:port` is given; of several Controllers, separated by
    commas, the one that acts is called. Nothing is sent before the first call.

    `timeout`: seconds for each call that sets none itself. `options`: of the gRPC channels, beside
    CHANNEL_OPTIONS.
    """
    return Client(_given(registry, controller, router), timeout, options)


def connect_async(
    *,
    registry: str = "",
    controller: str = "",
    router: str = "",
    timeout: float = DEFAULT_TIMEOUT,
    options: Sequence[tuple[str, Any]] = (),
) -> AsyncClient:
    """As `connect`, for asyncio. Call it, and close the client, in a running event loop."""
    return AsyncClient(_given(registry, controller, router), timeout, options)


def _given(registry: str, controller: str, router: str) -> dict[str, str]:
    named = {"registry": registry, "controller": controller, "router": router}
    return {name: address for name, address in named.items() if address}


def _opened(
    open_channel: Callable[..., Any],
    name: str,
    address: str,
    options: Sequence[tuple[str, Any]],
    addresses: _Addresses,
) -> Any:
    channel = open_channel(address, (*CHANNEL_OPTIONS, *options))
    addresses.add(name, address, _STUBS[name](channel))
    return channel


def _next_page(request: _Request, page: Any) -> _Request | None:
    if not page.next_page_token:
        return None
    following: Any = type(request)()
    following.CopyFrom(request)
    following.page_token = page.next_page_token
    return cast("_Request", following)
