"""Everything that the HTTP routes need to answer: the same functions as behind gRPC."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar, TypeVarTuple

from tritonclient.grpc import service_pb2

from services.common.caller import CallerPolicy
from services.router.call import Answer, Call
from services.router.control.placement_watch import PlacementWatch
from services.router.core.admission.memory import MemoryBudget
from services.router.core.errors import JsonTooLarge, NotProxied
from services.router.core.rest.browsers import BrowserPolicy
from services.router.core.rest.values import INVALID, WrongRequest
from services.router.core.routing.routes import resolve
from services.router.rest.converter import LARGE, Converter
from services.router.rest.documents import loads
from services.router.rest.incoming import HttpRequest
from services.router.unary.inference import Request, UnaryInference

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

ReplyStream = Callable[[Request], AsyncGenerator[bytes, None]]


class Pages(NamedTuple):
    """The OpenAPI document, and the page that shows it."""

    openapi: bytes
    docs: bytes


@dataclass(frozen=True, slots=True)
class Service:
    """What the HTTP routes answer from."""

    watch: PlacementWatch
    inference: UnaryInference
    callers: CallerPolicy
    #: The answers to calls of inference.GRPCInferenceService, by RPC name.
    answers: Mapping[str, Answer]
    #: Returns the metrics in Prometheus's text format.
    metrics: Callable[[], Awaitable[bytes]]
    pages: Pages
    #: Bytes.
    max_body: int
    #: Bytes.
    max_json: int
    #: Yields any number of serialized ModelInferResponses to one request.
    responses: ReplyStream
    memory_budget: MemoryBudget = field(default_factory=MemoryBudget)
    converter: Converter = field(default_factory=Converter)
    browsers: BrowserPolicy = field(default_factory=BrowserPolicy)

    async def call(self, rpc: str, incoming: HttpRequest, /, **fields: Any) -> Any:
        """Make a call. Raises NotProxied if this Router does not have it, and what the call
        raises; WrongRequest for a value that no such call can carry."""
        answer = self.answers.get(rpc)
        if answer is None:
            raise NotProxied(method=rpc, hint="it is not there in this release.")
        try:
            message = getattr(service_pb2, f"{rpc}Request")(**fields)
        except ValueError as error:
            raise WrongRequest(INVALID, f"{rpc} does not take this: {error}") from error
        return await answer(message, Call(incoming.caller, incoming.peer, incoming.deadline))

    def json(self, body: bytes) -> Any:
        """Read the JSON of a call without tensors. Raises WrongRequest, JsonTooLarge."""
        if len(body) > LARGE:
            hint = "a call of this kind needs less."
            raise JsonTooLarge(size=len(body), limit=LARGE, hint=hint)
        return loads(body)

    async def read(self, size: int, read: Callable[[*Ts], T], *given: *Ts) -> T:
        """Return the result of `read` for `given`, which has `size` bytes of JSON. Raises
        JsonTooLarge, ConverterLost, and what `read` raises."""
        if size > self.max_json:
            hint = "send tensors in binary, or raise SHOAL_ROUTER_MAX_JSON_BYTES."
            raise JsonTooLarge(size=size, limit=self.max_json, hint=hint)
        return await self.converter.run(size, read, *given)

    def require_known(self, model: str, version: str) -> None:
        """Raises what `resolve` raises if nothing is registered under that name and version."""
        routes = self.watch.table.routes
        if version or model not in routes:
            resolve(routes, model, version, 0.0)

    def request(self, message: bytes, incoming: HttpRequest) -> Request:
        """Return an inference request that came by HTTP. Raises MetadataTooLarge."""
        metadata = self.inference.checked_metadata(incoming.metadata)
        return Request(message, metadata, incoming.deadline, incoming.caller)
