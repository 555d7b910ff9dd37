"""The caller's memory that a request's tensors lie in, as its sender sees it."""

from typing import Protocol

from services.common.caller import Caller


class Lending(Protocol):
    """The memory lent to one request, which holds it once from the beginning.

    `message` is the serialized ModelInferRequest with the servers' names of the memory. `unmapped`
    says that a server did not know it, until `map_again`. Servers write to the memory until they
    have answered, whether or not the caller waits. Whoever sends the request therefore retains it
    until then."""

    message: bytes
    unmapped: bool

    def retain(self) -> None: ...

    def release(self) -> None: ...

    def note_refusal(self, text: str) -> bool:
        """Return whether a server refused with `text` because it does not know the memory, and
        mapping it again may help."""

    async def map_again(self) -> None:
        """Map the memory on servers that have started since. Raises NoController, Rejected."""

    def restore_names(self, text: str) -> str:
        """Return `text` with the caller's names."""

    def restore_answer(self, message: bytes) -> bytes:
        """Return a serialized ModelInferResponse with the caller's names."""

    def restore_reply(self, message: bytes) -> bytes:
        """Return a serialized ModelStreamInferResponse with the caller's names."""


class Lender(Protocol):
    """Lends memory to requests."""

    def lend(self, message: bytes, caller: Caller) -> Lending | None:
        """Return the memory that the tensors of a serialized ModelInferRequest lie in, or None.
        Raises RegionNotFound, RegionBounds, NotProxied."""
