"""What comes back from a Triton, or does not."""

from typing import NamedTuple

import grpc

from services.router.core.errors import ServerLost
from services.router.core.routing.metadata import Pairs
from services.router.core.routing.routes import Replica


class InferReply(NamedTuple):
    """`message`: a serialized ModelInferResponse. `cold`: the Controller was asked. `server`: whose
    answer it is. `streamed`: the message is a ModelStreamInferResponse. `trailing`: the caller's
    metadata; of what the server sends with an answer none is read, for no Triton sends any."""

    message: bytes
    cold: bool
    server: str
    streamed: bool = False
    trailing: Pairs = ()


class TritonError(Exception):
    """Triton's own answer is an error: the client's to see, as it is."""

    def __init__(self, error: grpc.aio.AioRpcError, *, cold: bool) -> None:
        super().__init__(error.details())
        self.error = error
        self.cold = cold


def lost(replica: Replica, text: str) -> ServerLost:
    """The refusal of a request that is not sent again."""
    return ServerLost(
        server=replica.server,
        model=replica.target.model,
        version=replica.target.version,
        cause=text,
        retry_after=1.0,
    )
