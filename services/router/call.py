"""A call of Triton's protocol that somebody in the Router answers, however it came in."""

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import grpc

from services.common.caller import Caller, CallerPolicy
from services.common.rpc import Context, deadline_of


class RefusedByServers(Exception):
    """Triton's own code and text; the client's to see."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class Call(NamedTuple):
    """Who calls, from where (as gRPC spells a peer), and until when: seconds of the monotonic
    clock, None for no deadline."""

    caller: Caller
    peer: str
    deadline: float | None


GrpcMethod = Callable[[Any, Context], Awaitable[Any]]
Answer = Callable[[Any, Call], Awaitable[Any]]


def over_grpc(answer: Answer, callers: CallerPolicy) -> GrpcMethod:
    """Return `answer` as a method of a gRPC service, which passes Triton's own refusals on."""

    async def answered(request: Any, context: Context) -> Any:
        metadata = tuple(context.invocation_metadata() or ())
        deadline = deadline_of(context)
        peer = context.peer()
        try:
            return await answer(request, Call(callers.caller(peer, metadata), peer, deadline))
        except RefusedByServers as answered:
            await context.abort(answered.code, answered.text)

    return answered
