"""Many answers to one request, and many requests in one stream, in Triton's protocol."""

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator

import grpc
from google.protobuf.message import DecodeError

from shoal.client import inference, messages
from shoal.client.errors import CallFailed, Internal
from shoal.client.inference import Request, Result


def answer(response: bytes, address: str) -> Result | CallFailed:
    """From a serialized ModelStreamInferResponse."""
    try:
        error, content = messages.stream_parts(response)
    except DecodeError as cause:
        text = f"the answer cannot be read: {cause}"
        raise Internal(grpc.StatusCode.INTERNAL, text, address=address) from cause
    if not error:
        return inference.result(content)
    id_ = inference.result(content).id if content else ""
    return inference.failure_in_stream(error, id_, address)


class Outgoing:
    """The requests of a stream. What their iterator raises is kept in `failure`, and ends them: in
    gRPC's hands it would end the stream without the answers that are still to come."""

    def __init__(self) -> None:
        self.failure: Exception | None = None

    def serialized(self, requests: Iterable[Request]) -> Iterator[bytes]:
        try:
            for request in requests:
                yield _bytes(request)
        except Exception as error:
            self.failure = error

    async def serialized_async(
        self, requests: Iterable[Request] | AsyncIterable[Request]
    ) -> AsyncIterator[bytes]:
        try:
            if isinstance(requests, AsyncIterable):
                async for request in requests:
                    yield _bytes(request)
            else:
                for request in requests:
                    yield _bytes(request)
        except Exception as error:
            self.failure = error

    def ended(self) -> None:
        """Raises what the requests' iterator raised."""
        if self.failure is not None:
            raise self.failure


def _bytes(request: Request) -> bytes:
    return request.serialized(triton_enable_empty_final_response=True)
