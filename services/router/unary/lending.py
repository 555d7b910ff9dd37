"""The memory of the caller that a request's tensors lie in, as far as its sender needs it."""

from typing import Protocol


class Lending(Protocol):
    """The memory lent to one request.

    `message` is the serialized ModelInferRequest with the servers' names of it. `lost` says that a
    server did not know the memory, until `map_again`. Servers write to it until they have answered,
    whether or not the caller waits: so whoever sends the request holds it until then."""

    message: bytes
    lost: bool

    def hold(self) -> None: ...

    def release(self) -> None: ...

    def forgotten(self, text: str) -> bool:
        """Return whether a server's refusal says that it does not know the memory, and mapping it
        again may help."""

    async def map_again(self) -> None:
        """Have servers that have been started since map it. Raises NoController, Rejected."""

    def reply(self, message: bytes) -> bytes:
        """Return a serialized ModelStreamInferResponse with the caller's names."""
