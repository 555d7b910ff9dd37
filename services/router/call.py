"""A call of Triton's protocol, whichever way it came in."""

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import grpc

from services.common.caller import Caller, CallerPolicy
from services.common.rpc import Context, deadline_of
from services.common.trailers import ROOM, cut


class RefusedByServers(Exception):
    """The servers refused a call. Clients see Triton's own code and text."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class Call(NamedTuple):
    """A call: who makes it, from where, and how long they wait."""

    caller: Caller
    #: The caller's address in gRPC's notation.
    peer: str
    #: Seconds of the monotonic clock, or None without a deadline.
    deadline: float | None


GrpcMethod = Callable[[Any, Context], Awaitable[Any]]
Answer = Callable[[Any, Call], Awaitable[Any]]


def over_grpc(answer: Answer, callers: CallerPolicy) -> GrpcMethod:
    """Return `answer` as a method of a gRPC service. Refusals by servers are passed on
    unchanged."""

    async def answered(request: Any, context: Context) -> Any:
        metadata = tuple(context.invocation_metadata() or ())
        deadline = deadline_of(context)
        peer = callers.peer(context.peer(), metadata)
        try:
            return await answer(request, Call(callers.caller(peer, metadata), peer, deadline))
        except RefusedByServers as answered:
            await context.abort(answered.code, cut(answered.text, ROOM))

    return answered
