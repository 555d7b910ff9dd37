"""What comes back from a Triton, and the errors if nothing does."""

from typing import NamedTuple

import grpc

from services.router.core.errors import ServerLost
from services.router.core.routing.metadata import Pairs
from services.router.core.routing.routes import Replica


class InferReply(NamedTuple):
    """The answer to an inference request."""

    #: A serialized ModelInferResponse, or a ModelStreamInferResponse if `streamed`.
    message: bytes
    #: Whether the Controller was asked.
    cold: bool
    #: The server that answered.
    server: str
    streamed: bool = False
    #: Metadata for the caller. None is read from servers' answers, since no Triton sends any.
    trailing: Pairs = ()


class TritonError(Exception):
    """Triton answered with an error, which the client sees unchanged."""

    def __init__(self, error: grpc.aio.AioRpcError, *, cold: bool) -> None:
        super().__init__(error.details())
        self.error = error
        self.cold = cold


def server_lost(replica: Replica, text: str) -> ServerLost:
    """Return the error for a request that is not sent again."""
    return ServerLost(
        server=replica.server,
        model=replica.target.model,
        version=replica.target.version,
        cause=text,
        retry_after=1.0,
    )
