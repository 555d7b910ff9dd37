"""Envoy's aggregated discovery service (xDS v3): tells proxies their configuration, as it changes.

Each type of resource is sent whole, under a version of its own, and not again before the proxy has
answered the last one. Clusters go first: a route to a cluster that the proxy does not know yet
would fail its requests."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
import structlog

from services.common.rpc import Context
from services.router.lane.resources import CLUSTER, LISTENER, ROUTES
from services.router.lane.xds import TYPE, message
from services.router.waiting import Wakeup

_SERVICE: Final = "envoy.service.discovery.v3.AggregatedDiscoveryService"
_ORDER: Final = (CLUSTER, LISTENER, ROUTES)

_log = structlog.get_logger(__name__)

#: Resources by name, serialized.
Resources = Mapping[str, bytes]


@dataclass(slots=True)
class _Offer:
    """The newest resources of one type. They are serialized when they are sent."""

    version: int = 0
    serialize: Callable[[], Resources] = dict


@dataclass(slots=True)
class _Subscription:
    """What one proxy wants and has of one type. `names` is empty if it wants every resource."""

    names: frozenset[str] = frozenset()
    sent: int = 0
    nonce: str = ""
    #: Whether it has answered what was sent last.
    answered: bool = True
    #: The newest version that it has accepted.
    accepted: int = 0


@dataclass(eq=False, slots=True)
class _Proxy:
    """A connected proxy."""

    node: str = ""
    wakeup: Wakeup = field(default_factory=Wakeup)
    subscriptions: dict[str, _Subscription] = field(default_factory=dict)


class Discovery:
    """Tells every connected proxy the newest resources."""

    def __init__(self) -> None:
        self._offers = {kind: _Offer() for kind in _ORDER}
        self._proxies: set[_Proxy] = set()
        #: Set whenever a proxy answers, comes or goes.
        self.answered = asyncio.Event()
        #: Resources that a proxy has refused since the start.
        self.refused = 0

    def __len__(self) -> int:
        return len(self._proxies)

    def offer(self, kind: str, serialize: Callable[[], Resources]) -> int:
        """Offer new resources of one type, and return their version. `serialize` returns all of
        them by name, and is called once for each proxy."""
        offer = self._offers[kind]
        offer.version += 1
        offer.serialize = serialize
        for proxy in self._proxies:
            proxy.wakeup.wake()
        return offer.version

    def current(self, kind: str) -> bool:
        """Return whether every connected proxy has accepted the newest resources of this type."""
        newest = self._offers[kind].version
        return all(
            (subscription := proxy.subscriptions.get(kind)) is not None
            and subscription.accepted >= newest
            for proxy in self._proxies
        )

    def handlers(self) -> grpc.GenericRpcHandler:
        """Return the service's methods, for a server."""
        request = type(message("envoy.service.discovery.v3.DiscoveryRequest"))
        stream: Any = grpc.stream_stream_rpc_method_handler(
            self.stream,
            request_deserializer=request.FromString,
            response_serializer=lambda response: response.SerializeToString(),
        )
        return grpc.method_handlers_generic_handler(_SERVICE, {"StreamAggregatedResources": stream})

    async def stream(
        self, request_iterator: AsyncIterator[Any], context: Context
    ) -> AsyncIterator[Any]:
        """Answer one proxy's requests with resources, as long as it is connected."""
        proxy = _Proxy()
        self._proxies.add(proxy)
        reader = asyncio.create_task(self._read(proxy, request_iterator))
        try:
            while not reader.done():
                wait = proxy.wakeup.wait()
                for response in self._due(proxy):
                    yield response
                await wait
        finally:
            reader.cancel()
            self._proxies.discard(proxy)
            self._tell()

    async def _read(self, proxy: _Proxy, requests: AsyncIterator[Any]) -> None:
        try:
            async for request in requests:
                self._take(proxy, request)
                proxy.wakeup.wake()
                self._tell()
        finally:
            proxy.wakeup.wake()

    def _take(self, proxy: _Proxy, request: Any) -> None:
        if request.node.id:
            proxy.node = request.node.id
        subscription = proxy.subscriptions.setdefault(
            request.type_url.removeprefix(TYPE), _Subscription()
        )
        if request.response_nonce and request.response_nonce != subscription.nonce:
            return  # an answer to what was overtaken meanwhile
        names = frozenset(request.resource_names)
        if names != subscription.names:
            subscription.names = names
            subscription.sent = 0
        if not request.response_nonce:
            return
        subscription.answered = True
        if request.HasField("error_detail"):
            self.refused += 1
            _log.error(
                "the proxy refused its configuration",
                proxy=proxy.node,
                type=request.type_url,
                error=request.error_detail.message,
            )
        else:
            subscription.accepted = subscription.sent or subscription.accepted

    def _due(self, proxy: _Proxy) -> Iterable[Any]:
        """Yield what the proxy has to be sent now."""
        for kind in _ORDER:
            subscription = proxy.subscriptions.get(kind)
            if subscription is None:
                continue
            offer = self._offers[kind]
            if subscription.answered and subscription.sent < offer.version:
                subscription.sent = offer.version
                subscription.nonce = f"{offer.version}"
                subscription.answered = False
                resources = offer.serialize()
                yield _response(kind, subscription, resources)
            if kind == CLUSTER and not subscription.answered:
                return

    def _tell(self) -> None:
        self.answered.set()
        self.answered.clear()


def _response(kind: str, subscription: _Subscription, resources: Resources) -> Any:
    response = message("envoy.service.discovery.v3.DiscoveryResponse")
    response.version_info = response.nonce = subscription.nonce
    response.type_url = TYPE + kind
    for name, serialized in resources.items():
        if not subscription.names or name in subscription.names:
            response.resources.add(type_url=TYPE + kind, value=serialized)
    return response
