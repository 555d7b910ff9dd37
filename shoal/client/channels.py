"""The channels of a client, and the methods that it calls over them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import grpc

from shoal.client.errors import CallFailed
from shoal.controller.v1.controller_service_pb2_grpc import ControllerServiceStub
from shoal.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from shoal.router.v1.router_service_pb2_grpc import RouterServiceStub

Options = Sequence[tuple[str, Any]]

CHANNEL_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    # Bytes; the services accept as much from each other.
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    ("grpc.max_send_message_length", 64 * 1024 * 1024),
    # Watches can be idle for long; without pings only TCP would notice a dead peer.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # An http_proxy in the environment is meant for the Internet, not for a control plane.
    ("grpc.enable_http_proxy", 0),
    # A service that is starting refuses connections, and gRPC's own back-off grows to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)

_INT32_MAX: Final = 2**31 - 1

# In place of the limits above: tensors may be as large as a protobuf message can be.
ROUTER_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    ("grpc.max_receive_message_length", _INT32_MAX),
    ("grpc.max_send_message_length", _INT32_MAX),
)

_INFERENCE: Final = "inference.GRPCInferenceService"

_STUBS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "registry": RegistryServiceStub,
    "controller": ControllerServiceStub,
    "router": RouterServiceStub,
}


class Services:
    """The services that a client has the addresses of.

    `open_one` opens a channel: `insecure_channel` of grpc or of grpc.aio. `several` makes one
    channel of the channels to several Controllers.
    """

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
            # Only Controllers stand by for each other; for equal Routers gRPC takes `ipv4:A,B`.
            places = address.split(",") if name == "controller" else [address]
            chosen = (*CHANNEL_OPTIONS, *(ROUTER_OPTIONS if name == "router" else ()), *options)
            channels = [open_one(place, options=tuple(dict(chosen).items())) for place in places]
            channel = channels[0] if len(channels) == 1 else several(channels)
            stub = _STUBS[name](channel)
            self.channels[name], self._stubs[name] = channel, stub
            self._service_of.update(dict.fromkeys(vars(stub).values(), name))

    def stub(self, name: str) -> Any:
        """Return the stub of a service. Raises ValueError where its address was not given."""
        self._need(name)
        return self._stubs[name]

    def method(self, service: str, name: str) -> Any:
        """Return the callable of a unary method.

        Methods of "inference" take and return bytes. Raises ValueError where the service's address
        was not given.
        """
        if service != "inference":
            return getattr(self.stub(service), name)
        if name not in self._inference:
            self._need("router")
            path = f"/{_INFERENCE}/{name}"
            self._inference[name] = self.channels["router"].unary_unary(path)
        return self._inference[name]

    def infer_stream(self) -> Any:
        """Return the callable of ModelStreamInfer, which takes and returns bytes."""
        self._need("router")
        return self.channels["router"].stream_stream(f"/{_INFERENCE}/ModelStreamInfer")

    def failure(self, error: grpc.RpcError, service: str) -> CallFailed:
        """Return `error`, which a call to `service` ended with, as one of this package's."""
        return CallFailed.of(error, self.address(service))

    def failure_of(self, error: grpc.RpcError, method: object) -> CallFailed:
        """Do the same as `failure`, for a method of one of the stubs."""
        return self.failure(error, self._service_of.get(method, ""))

    def address(self, service: str) -> str:
        """Return the address that was given for a service, or ""."""
        return self._addresses.get("router" if service == "inference" else service, "")

    def _need(self, name: str) -> None:
        if name not in self._stubs:
            raise ValueError(f"no address of the {name} was given: connect({name}='HOST:PORT')")


def given(registry: str, controller: str, router: str) -> dict[str, str]:
    """Return the addresses that are not empty, by service."""
    named = {"registry": registry, "controller": controller, "router": router}
    return {name: address for name, address in named.items() if address}
