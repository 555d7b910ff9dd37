"""Sequences: requests that belong together, for models that keep a state between them."""

import secrets
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from shoal.client.headers import Headers
from shoal.client.inference import Parameter, Request, Result, answered
from shoal.client.operations import Operation

if TYPE_CHECKING:
    from typing import Self

_T = TypeVar("_T")


class Performer(Protocol):
    """The part of `Client` that a sequence needs."""

    def perform(self, operation: Operation[_T]) -> _T: ...


class AsyncPerformer(Protocol):
    """The part of `AsyncClient` that a sequence needs."""

    async def perform(self, operation: Operation[_T]) -> _T: ...


class _Sequence:
    """The state of a sequence: whether it has begun, and whether it has ended."""

    def __init__(self, model: str, version: int | str, id_: int | str | None) -> None:
        self.model = model
        self.version = version
        self.id = secrets.randbelow(2**63 - 1) + 1 if id_ is None else id_
        self._begun = False
        self._ended = False

    def _infer(
        self,
        inputs: Mapping[str, Any],
        end: bool,
        parameters: Mapping[str, Parameter] | None,
        headers: Headers | None,
        timeout: float | None,
    ) -> Operation[Result]:
        if self._ended:
            raise ValueError(f"sequence {self.id} has ended: begin another one")
        start = not self._begun
        request = Request(self.model, inputs, self.version, parameters=parameters or {})
        message = request.serialized(sequence_id=self.id, sequence_start=start, sequence_end=end)
        result = yield from answered(message, headers=headers, timeout=timeout, repeatable=start)
        self._begun, self._ended = True, end
        return result

    def _left(self, error: BaseException | None) -> None:
        """Raise RuntimeError where the block ended without an error, but the sequence did not."""
        if error is None and self._begun and not self._ended:
            raise RuntimeError(
                f"sequence {self.id} of model {self.model!r} was left open: give its last request "
                "end=True, so that the model can free its place"
            )


class Sequence(_Sequence):
    """A sequence of requests to one model, made by `Client.sequence`.

    Use it in a `with` block, and give its last request `end=True`; leaving the block without that
    raises RuntimeError. Only the first request is ever repeated: after it, the state that the model
    has reached would be unknown.

    Attributes:
        model: The model's name.
        version: A version or an alias; "" for the model's own choice.
        id: The sequence's ID; a random number unless one was given.
    """

    def __init__(
        self, client: Performer, model: str, version: int | str, id_: int | str | None
    ) -> None:
        super().__init__(model, version, id_)
        self._client = client

    def infer(
        self,
        inputs: Mapping[str, Any],
        *,
        end: bool = False,
        parameters: Mapping[str, Parameter] | None = None,
        headers: Headers | None = None,
        timeout: float | None = None,
    ) -> Result:
        """Send the next request of the sequence and return its answer.

        Args:
            inputs: Arrays by input name, or values that numpy can make arrays of.
            end: Whether this is the last request.
            parameters: Further parameters of the request.
            headers: gRPC metadata.
            timeout: Seconds for the request, including a load that it needs. None means the
                client's own.

        Raises:
            CallFailed: The request was refused, or nobody answered.
            TypeError: The protocol has no datatype for one of the inputs.
            ValueError: The sequence has ended.
        """
        return self._client.perform(self._infer(inputs, end, parameters, headers, timeout))

    def __enter__(self) -> "Self":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._left(error)


class AsyncSequence(_Sequence):
    """A `Sequence` for asyncio, used in an `async with` block."""

    def __init__(
        self, client: AsyncPerformer, model: str, version: int | str, id_: int | str | None
    ) -> None:
        super().__init__(model, version, id_)
        self._client = client

    async def infer(
        self,
        inputs: Mapping[str, Any],
        *,
        end: bool = False,
        parameters: Mapping[str, Parameter] | None = None,
        headers: Headers | None = None,
        timeout: float | None = None,
    ) -> Result:
        """Send the next request of the sequence and return its answer, as `Sequence.infer` does."""
        return await self._client.perform(self._infer(inputs, end, parameters, headers, timeout))

    async def __aenter__(self) -> "Self":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._left(error)
