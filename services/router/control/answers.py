"""How the Controller refuses a call, or fails to answer it."""

from typing import Final

import grpc

NOBODY_ACTS: Final = "no Controller that acts is heard from"


class Rejected(Exception):
    """The Controller answered with an error, which the client sees unchanged."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        super().__init__(error.details())
        self.error = error
