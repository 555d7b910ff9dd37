"""One call of the protocol, as bytes, and all that a client can see of its answer."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

SERVICE = "inference.GRPCInferenceService"
STREAM = "ModelStreamInfer"
TIMEOUT = 60.0  # seconds

Metadata = tuple[tuple[str, str], ...]

# What gRPC itself adds, or what a ShoalError brings with it.
_TRANSPORT = ("grpc-", "content-type", "date", "accept-encoding", "user-agent")


@dataclass(frozen=True)
class Outcome:
    """`messages`: serialized, as they came. `extra`: metadata before and after them."""

    code: str
    text: str
    messages: tuple[bytes, ...]
    extra: Metadata = ()

    def parsed(self, method: str) -> list[Any]:
        kind = getattr(service_pb2, f"{method}Response")
        return [kind.FromString(message) for message in self.messages]


def call(channel: grpc.Channel, method: str, requests: Iterable[bytes], sent: Metadata) -> Outcome:
    """A stream with all of the requests, or one unary call after another until one fails."""
    path = f"/{SERVICE}/{method}"
    if method == STREAM:
        return _stream(channel.stream_stream(path), requests, sent)
    unary: Any = channel.unary_unary(path)
    messages: list[bytes] = []
    extra: Metadata = ()
    for request in requests:
        done = unary.future(request, metadata=sent, timeout=TIMEOUT)
        try:
            messages.append(done.result())
        except grpc.RpcError as error:
            return Outcome(error.code().name, error.details() or "", tuple(messages), _extra(error))
        extra = _extra(done)
    return Outcome("OK", "", tuple(messages), extra)


def _stream(method: Any, requests: Iterable[bytes], sent: Metadata) -> Outcome:
    responses = method(iter(list(requests)), metadata=sent, timeout=TIMEOUT)
    messages: list[bytes] = []
    try:
        messages.extend(responses)
    except grpc.RpcError as error:
        return Outcome(error.code().name, error.details() or "", tuple(messages), _extra(error))
    return Outcome("OK", "", tuple(messages), _extra(responses))


def _extra(done: Any) -> Metadata:
    found = (*(done.initial_metadata() or ()), *(done.trailing_metadata() or ()))
    return tuple((key, value) for key, value in found if not key.startswith(_TRANSPORT))


def by_model(outcome: Outcome) -> dict[tuple[str, str], list[Any]]:
    """The replies of a stream, in order, by the model that gave them; of a decoupled one, whose
    requests are answered side by side, by id too. Errors of the server itself name no model."""
    found: dict[tuple[str, str], list[Any]] = {}
    for parsed in outcome.parsed(STREAM):
        reply = parsed.infer_response
        apart = not reply.parameters["triton_final_response"].bool_param
        found.setdefault((reply.model_name, reply.id if apart else ""), []).append(parsed)
    return found
