"""What the HTTP routes are answered from: the same functions as the gRPC ones."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar, TypeVarTuple

from tritonclient.grpc import service_pb2

from services.common.caller import CallerPolicy
from services.common.errors import JsonTooLarge, NotProxied
from services.router.call import Answer, Call
from services.router.control.placement_watch import PlacementWatch
from services.router.core.admission.memory import MemoryBudget
from services.router.core.routing.routes import resolve
from services.router.rest.converter import LARGE, Converter
from services.router.rest.documents import loads
from services.router.rest.incoming import HttpRequest
from services.router.unary.inference import Request, UnaryInference

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

ReplyStream = Callable[[Request], AsyncGenerator[bytes, None]]


class Pages(NamedTuple):
    """Of OpenAPI: the document, and the page that shows it."""

    openapi: bytes
    docs: bytes


@dataclass(frozen=True, slots=True)
class Service:
    """`calls`: of inference.GRPCInferenceService by RPC name, from request message to response
    message. `hints`: what to do instead of those that are not there. `stream`: from one request to
    any number of serialized ModelInferResponses. `metrics`: as Prometheus reads them. `max_body`,
    `max_json`: bytes; `held`: of all requests. `converter`: of what is JSON."""

    watch: PlacementWatch
    inference: UnaryInference
    callers: CallerPolicy
    answers: Mapping[str, Answer]
    metrics: Callable[[], Awaitable[bytes]]
    pages: Pages
    max_body: int
    max_json: int
    responses: ReplyStream
    memory_budget: MemoryBudget = field(default_factory=MemoryBudget)
    converter: Converter = field(default_factory=Converter)

    async def call(self, rpc: str, incoming: HttpRequest, /, **fields: Any) -> Any:
        """Raises NotProxied where this Router has no such call."""
        answer = self.answers.get(rpc)
        if answer is None:
            raise NotProxied(method=rpc, hint="it is not there in this release.")
        message = getattr(service_pb2, f"{rpc}Request")(**fields)
        return await answer(message, Call(incoming.caller, incoming.peer, incoming.deadline))

    def json(self, body: bytes) -> Any:
        """Of a call without tensors. Raises Refused, JsonTooLarge."""
        if len(body) > LARGE:
            hint = "a call of this kind needs less."
            raise JsonTooLarge(size=len(body), limit=LARGE, hint=hint)
        return loads(body)

    async def read(self, size: int, read: Callable[[*Ts], T], *given: *Ts) -> T:
        """What `read` makes of what is `given`, `size` bytes of JSON in it. Raises JsonTooLarge,
        ConverterLost, and what `read` raises."""
        if size > self.max_json:
            hint = "send tensors in binary, or raise SHOAL_ROUTER_MAX_JSON_BYTES."
            raise JsonTooLarge(size=size, limit=self.max_json, hint=hint)
        return await self.converter.run(size, read, *given)

    def require_known(self, model: str, version: str) -> None:
        """Raises what `resolve` raises for a name or version that nothing is registered as."""
        routes = self.watch.table.routes
        if version or model not in routes:
            resolve(routes, model, version, 0.0)

    def request(self, message: bytes, incoming: HttpRequest) -> Request:
        """Raises MetadataTooLarge."""
        metadata = self.inference.checked_metadata(incoming.metadata)
        return Request(message, metadata, incoming.deadline, incoming.caller)
