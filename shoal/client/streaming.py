"""Inference in streams: many answers to one request, or many requests in one stream."""

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator

import grpc
from google.protobuf.message import DecodeError

from shoal.client import inference, wire
from shoal.client.errors import CallFailed, Internal
from shoal.client.inference import Request, Result


def answer(response: bytes, address: str) -> Result | CallFailed:
    """Return the answer or the refusal in a serialized ModelStreamInferResponse.

    Raises Internal where it cannot be read.
    """
    try:
        error, content = wire.stream_parts(response)
    except DecodeError as cause:
        text = f"the answer cannot be read: {cause}"
        raise Internal(grpc.StatusCode.INTERNAL, text, address=address) from cause
    if not error:
        return inference.result(content)
    id_ = inference.result(content).id if content else ""
    # Triton gives no status inside a stream, only a text.
    return CallFailed(
        grpc.StatusCode.UNKNOWN, error, metadata={"id": id_} if id_ else None, address=address
    )


class Answers:
    """The answers to one request, as they arrive from the server at `address`."""

    def __init__(self, address: str) -> None:
        self.begun = False
        self._address = address
        self._refusal: CallFailed | None = None

    def received(self, response: bytes) -> Result | None:
        """Return what the caller gets of a response, or None where it has no outputs."""
        self.begun = True
        found = answer(response, self._address)
        if isinstance(found, CallFailed):
            self._refusal = self._refusal or found
            return None
        return found if self._refusal is None and found.outputs else None

    def ended(self) -> None:
        """Raise the refusal that came among the answers, if one did."""
        if self._refusal is not None:
            raise self._refusal


class Outgoing:
    """The requests of a stream.

    An exception of their iterator ends them and is kept until `ended`. If gRPC saw it, it would end
    the stream and lose the answers that are still to come.
    """

    def __init__(self) -> None:
        self._failure: Exception | None = None

    def serialized(self, requests: Iterable[Request]) -> Iterator[bytes]:
        """Yield each request as it is sent."""
        try:
            for request in requests:
                yield _bytes(request)
        except Exception as error:
            self._failure = error

    async def serialized_async(
        self, requests: Iterable[Request] | AsyncIterable[Request]
    ) -> AsyncIterator[bytes]:
        """Do the same as `serialized` for asyncio."""
        try:
            if isinstance(requests, AsyncIterable):
                async for request in requests:
                    yield _bytes(request)
            else:
                for request in requests:
                    yield _bytes(request)
        except Exception as error:
            self._failure = error

    def ended(self) -> None:
        """Raise what the requests' iterator raised, if it did."""
        if self._failure is not None:
            raise self._failure


def _bytes(request: Request) -> bytes:
    return request.serialized(triton_enable_empty_final_response=True)
