"""The channels of a client, and the methods behind them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import grpc

from shoal.client.errors import CallFailed
from shoal.client.inference import SERVICE
from shoal.controller.v1.controller_service_pb2_grpc import ControllerServiceStub
from shoal.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from shoal.router.v1.router_service_pb2_grpc import RouterServiceStub

Options = Sequence[tuple[str, Any]]

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

_INT32_MAX: Final = 2**31 - 1

# Beside those: tensors may be as large as a protobuf message can be.
ROUTER_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    ("grpc.max_receive_message_length", _INT32_MAX),
    ("grpc.max_send_message_length", _INT32_MAX),
)

_STUBS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "registry": RegistryServiceStub,
    "controller": ControllerServiceStub,
    "router": RouterServiceStub,
}


class Services:
    """Those that were given an address. `open_one`: grpc's or grpc.aio's insecure_channel;
    `several`: makes one of several channels."""

    def __init__(
        self,
        addresses: Mapping[str, str],
        options: Options,
        open_one: Callable[..., Any],
        several: Callable[[Sequence[Any]], Any],
    ) -> None:
        self._addresses = addresses
        self._stubs: dict[str, Any] = {}
        self._service_of: dict[object, str] = {}
        self._inference: dict[str, Any] = {}
        self.channels: dict[str, Any] = {}
        for name, address in addresses.items():
            # Only Controllers stand by; Routers are equals, and gRPC itself takes `ipv4:A,B`.
            places = address.split(",") if name == "controller" else [address]
            chosen = (*CHANNEL_OPTIONS, *(ROUTER_OPTIONS if name == "router" else ()), *options)
            channels = [open_one(place, options=tuple(dict(chosen).items())) for place in places]
            channel = channels[0] if len(channels) == 1 else several(channels)
            stub = _STUBS[name](channel)
            self.channels[name], self._stubs[name] = channel, stub
            self._service_of.update(dict.fromkeys(vars(stub).values(), name))

    def stub(self, name: str) -> Any:
        """Raises ValueError where no address was given for it."""
        self._given(name)
        return self._stubs[name]

    def method(self, service: str, name: str) -> Any:
        """What calls a unary method; of "inference", bytes in and bytes out."""
        if service != "inference":
            return getattr(self.stub(service), name)
        if name not in self._inference:
            self._given("router")
            path = f"/{SERVICE}/{name}"
            self._inference[name] = self.channels["router"].unary_unary(path)
        return self._inference[name]

    def infer_stream(self) -> Any:
        """What calls ModelStreamInfer, bytes in and bytes out."""
        self._given("router")
        return self.channels["router"].stream_stream(f"/{SERVICE}/ModelStreamInfer")

    def failure(self, error: grpc.RpcError, service: str) -> CallFailed:
        return CallFailed.of(error, self.address(service))

    def failure_of(self, error: grpc.RpcError, method: object) -> CallFailed:
        """`method`: of one of the stubs."""
        return self.failure(error, self._service_of.get(method, ""))

    def address(self, service: str) -> str:
        return self._addresses.get("router" if service == "inference" else service, "")

    def _given(self, name: str) -> None:
        if name not in self._stubs:
            raise ValueError(f"no address was given for it: connect({name}='HOST:PORT')")


def given(registry: str, controller: str, router: str) -> dict[str, str]:
    """The addresses that are not empty."""
    named = {"registry": registry, "controller": controller, "router": router}
    return {name: address for name, address in named.items() if address}
