"""`/generate` and `/generate_stream`: Triton's generate extension."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Final

from services.common.errors import ShoalError
from services.router.control import model_info
from services.router.control.answers import Rejected
from services.router.core.rest.generate import Declared, parse_generate
from services.router.core.rest.values import INTERNAL, INVALID, WrongRequest
from services.router.rest import tensors
from services.router.rest.documents import loads
from services.router.rest.incoming import HttpRequest
from services.router.rest.reply import (
    TOO_LATE,
    HttpReply,
    json_reply,
    refused_reply,
    shoal_error_reply,
    status_reply,
)
from services.router.rest.service import Service
from services.router.servers.answers import TritonError
from services.router.unary.inference import Request

EVENTS: Final = (b"content-type", b"text/event-stream; charset=utf-8")
_NOT_ONE: Final = (
    "generate expects model to produce exactly 1 response, use generate stream for model that "
    "generates various number of responses"
)


async def generate(incoming: HttpRequest, service: Service) -> HttpReply:
    """Answer with the one response of the model."""
    async with aclosing(await _responses(incoming, service)) as responses:
        found = [response async for response in responses]
    if len(found) != 1:
        raise WrongRequest(INTERNAL, _NOT_ONE)
    return await service.converter.run(len(found[0]), _merged, found[0])


async def generate_stream(incoming: HttpRequest, service: Service) -> HttpReply:
    """Answer with an event for each response. A refusal has its own status, while a failure of the
    model is an event."""
    replies = _replies(service, await _responses(incoming, service))
    first = await anext(replies, None)
    if first is None:
        return HttpReply(200, headers=(EVENTS,))
    if first.status not in (200, 500):
        return first

    async def events() -> AsyncGenerator[bytes, None]:
        reply: HttpReply | None = first
        async with aclosing(replies):
            while reply is not None:
                yield b"data: " + reply.body + b"\n\n"
                try:
                    async with asyncio.timeout(incoming.left()):
                        reply = await anext(replies, None)
                except TimeoutError:
                    yield b"data: " + refused_reply(TOO_LATE).body + b"\n\n"
                    return

    return HttpReply(first.status, headers=(EVENTS,), events=events())


async def _responses(incoming: HttpRequest, service: Service) -> AsyncGenerator[bytes, None]:
    """Return serialized ModelInferResponses: one, or any number from a decoupled model."""
    model, version = incoming.path["model"], incoming.path.get("version", "")
    service.require_known(model, version)
    config = (await service.call("ModelConfig", incoming, name=model, version=version)).config
    if incoming.headers.get(b"content-encoding", b"") not in (b"", b"identity"):
        raise WrongRequest(INVALID, "Unsupported content-encoding, only 'identity' is supported.")
    batch = (-1,) * bool(config.max_batch_size)
    declared = {
        one.name: Declared(model_info.datatype(one.data_type), (*batch, *one.dims))
        for one in config.input
    }
    body = incoming.body
    message = await service.read(len(body), _message, model, version, body, declared)
    request = service.request(message, incoming)
    if not config.model_transaction_policy.decoupled:
        return _one(service, request)
    return service.responses(request)


def _message(model: str, version: str, body: bytes, declared: Mapping[str, Declared]) -> bytes:
    asked = parse_generate(loads(body), declared)
    return tensors.message(model, version, asked, memoryview(b""))


def _merged(response: bytes) -> HttpReply:
    return json_reply(tensors.flattened(tensors.decoded(response)))


async def _one(service: Service, request: Request) -> AsyncGenerator[bytes, None]:
    yield (await service.inference.answer(request)).message


async def _replies(
    service: Service, responses: AsyncGenerator[bytes, None]
) -> AsyncGenerator[HttpReply, None]:
    """Yield a reply for each response. An error is the last one."""
    try:
        async with aclosing(responses):
            async for response in responses:
                yield await service.converter.run(len(response), _merged, response)
    except WrongRequest as refused:
        yield refused_reply(refused)
    except ShoalError as error:
        yield shoal_error_reply(error)
    except (TritonError, Rejected) as answered:
        yield status_reply(answered.error)
