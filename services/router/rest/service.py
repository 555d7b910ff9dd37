"""What the HTTP routes are answered from: the same functions as the gRPC ones."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tritonclient.grpc import service_pb2

from services.common.caller import CallerPolicy
from services.common.errors import JsonTooLarge, NotProxied
from services.router.administration import Answer, Call
from services.router.core.held import Held
from services.router.core.routes import resolve
from services.router.placement_watch import PlacementWatch
from services.router.requests import Request, Requests
from services.router.rest import documents
from services.router.rest.incoming import Incoming

Stream = Callable[[Request], AsyncGenerator[bytes, None]]


class Pages(NamedTuple):
    """Of OpenAPI: the document, and the page that shows it."""

    openapi: bytes
    docs: bytes


@dataclass(frozen=True, slots=True)
class Service:
    """`calls`: of inference.GRPCInferenceService by RPC name, from request message to response
    message. `hints`: what to do instead of those that are not there. `stream`: from one request to
    any number of serialized ModelInferResponses. `metrics`: as Prometheus reads them. `max_body`,
    `max_json`: bytes; `held`: of all requests."""

    watch: PlacementWatch
    requests: Requests
    callers: CallerPolicy
    calls: Mapping[str, Answer]
    metrics: Callable[[], Awaitable[bytes]]
    pages: Pages
    max_body: int
    max_json: int
    stream: Stream | None = None
    held: Held = field(default_factory=Held)
    hints: Mapping[str, str] = field(default_factory=dict)

    async def call(self, rpc: str, incoming: Incoming, /, **fields: Any) -> Any:
        """Raises NotProxied where this Router has no such call."""
        behaviour = self.calls.get(rpc)
        if behaviour is None:
            hint = self.hints.get(rpc, "it is not there in this release.")
            raise NotProxied(method=rpc, hint=hint)
        message = getattr(service_pb2, f"{rpc}Request")(**fields)
        return await behaviour(message, Call(incoming.caller, incoming.peer, incoming.deadline))

    def json(self, body: bytes | memoryview) -> Any:
        """Raises Refused, JsonTooLarge: nobody else is answered while it is read."""
        if len(body) > self.max_json:
            raise JsonTooLarge(size=len(body), limit=self.max_json)
        return documents.loads(body)

    def known(self, model: str, version: str) -> None:
        """Raises what `resolve` raises for a name or version that nothing is registered as."""
        routes = self.watch.table.routes
        if version or model not in routes:
            resolve(routes, model, version, 0.0)

    def request(self, message: bytes, incoming: Incoming) -> Request:
        """Raises MetadataTooLarge."""
        said = self.requests.said(incoming.metadata)
        return Request(message, said, incoming.deadline, incoming.caller)
