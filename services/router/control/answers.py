"""What comes back from a Controller, or does not."""

from typing import Final

import grpc

NOBODY: Final = "no Controller that acts is heard from"


class Rejected(Exception):
    """The Controller answered with an error; it is the client's to see, as it is."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        super().__init__(error.details())
        self.error = error
