"""Sequences: requests that belong together, for models that keep a state between them."""

import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from shoal.client.inference import Parameter, Request, Result, answered
from shoal.client.steps import Headers, Operation

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from shoal.client.aio import AsyncClient
    from shoal.client.sync import Client


class _Sequence:
    """What both kinds share: which request begins, which one ends."""

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
        """Raises RuntimeError where the block ended well and the sequence didn't."""
        if error is None and self._begun and not self._ended:
            raise RuntimeError(
                f"sequence {self.id} of model {self.model!r} was left open: give its last request "
                "end=True, so that its place in the model is free again"
            )


class Sequence(_Sequence):
    """Use it in a `with` block, and give its last request `end=True`. `id`: a random one for None.

    After the first request nothing is repeated: what the model knows of it then cannot be known.
    """

    def __init__(
        self, client: "Client", model: str, version: int | str, id_: int | str | None
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
        """The next request and its answer. Raises CallFailed."""
        return self._client.perform(self._infer(inputs, end, parameters, headers, timeout))

    def __enter__(self) -> "Self":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: "TracebackType | None",
    ) -> None:
        self._left(error)


class AsyncSequence(_Sequence):
    """Sequence for asyncio."""

    def __init__(
        self, client: "AsyncClient", model: str, version: int | str, id_: int | str | None
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
        """The next request and its answer. Raises CallFailed."""
        return await self._client.perform(self._infer(inputs, end, parameters, headers, timeout))

    async def __aenter__(self) -> "Self":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: "TracebackType | None",
    ) -> None:
        self._left(error)
